"""Recordings of loops: scripts of actions that return to where they begin, in the environment of a run.

They are the ground truth of :mod:`worldmodel.evaluation.loops`. An episode is a free walk, some steps without a motion,
and the script (``explorer=script``).
"""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from worldmodel.config.checks import build, check_value
from worldmodel.config.cli import compose_config
from worldmodel.data.store import EpisodeStore
from worldmodel.dreaming.actions import parse_script
from worldmodel.errors import DataError, EnvError, WorldModelError
from worldmodel.recording.pool import RecorderPool, serialized
from worldmodel.recording.recorder import ActionSource, MakeEnv, Order
from worldmodel.runs.data import NOT_OF_THE_ENVIRONMENT, env_maker, spec_of
from worldmodel.runs.folder import load_config, load_spec
from worldmodel.types import Episode, Spec
from worldmodel.util.files import whole_folder
from worldmodel.util.output import words_in_name
from worldmodel.util.progress import deferred
from worldmodel.util.ranges import Names

EPISODES = 39  # recorded of each loop
FEWEST = 2  # episodes of which a loop is measured
SEED = 4_611_686_018_427_387_847  # of the recordings; no training is likely to have it
ROUNDS = 3  # times that the episodes are replaced which the environment ended before the script did

Progress = Callable[[str, int, int], None]

log = logging.getLogger(__name__)


def loops_of(run: DictConfig, config: DictConfig) -> list[str]:
    """The loops of the environment of a run with the settings ``run``.

    Those of runs that were trained before environments had loops are taken from ``config``, the settings of the command
    line, if these are of the same environment. Raises :class:`ConfigError` for a value that is not a list of scripts.
    """
    own, other = (_plain(settings.get("env")) for settings in (run, config))
    loops = own if "loops" in own else other
    scripts = loops.get("loops")
    for name in NOT_OF_THE_ENVIRONMENT:
        own.pop(name, None)
        other.pop(name, None)
    known = loops is own or own == other
    return list(check_value("env.loops", Names | None, scripts if known else None) or ())


def _plain(node: Any) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else {}
    return plain


def recorded_loops(folder: Path, run: Path, config: DictConfig, progress: Progress) -> dict[str, EpisodeStore]:
    """The recordings of each loop of the environment of a run, below ``folder``; they are made where they are missing.

    ``config``: the settings of the command line. What cannot be recorded is left out, and the reason is logged in one
    line: the data were imported, the environment is not installed or has changed, or it lacks an action.
    """
    settings, trained = load_config(run), load_spec(run)
    stores = {}
    try:
        scripts = loops_of(settings, config)
        if not scripts:
            return {}
        if "_target_" in settings.get("source", {}):
            raise DataError("the data of the run were imported, so that there is no environment to record in")
        make_env = env_maker(settings)
        spec = spec_of(make_env)
        if (spec.frame_shape, spec.action_names) != (trained.frame_shape, trained.action_names):
            raise DataError("the environment has other frames or actions than the run")
    except WorldModelError as error:
        log.warning("loops are not measured: %s", error)
        return {}
    for script in scripts:
        try:
            stores[script] = _recorded(folder / words_in_name(script), make_env, spec, script, config.collect, progress)
        except WorldModelError as error:
            log.warning("the loop %s is not measured: %s", script, error)
    return stores


def _recorded(
    path: Path, make_env: MakeEnv, spec: Spec, script: str, collect: DictConfig, progress: Progress
) -> EpisodeStore:
    """The recording of one script, which is made under another name, so that it is always whole."""
    actions = parse_script(script, spec).play()
    explorer = compose_config(["explorer=script"]).explorer
    explorer.script = script
    still = explorer.still if any(name.lower() == "noop" for name in spec.action_names) else 0
    steps = explorer.walk + still + len(actions)

    def fits(store: EpisodeStore) -> bool:
        whole = store.spec == spec and len(store) >= FEWEST and set(store.frame_counts) == {steps + 1}
        return whole and store.episode(0).actions[-len(actions) :].tolist() == actions.tolist()

    with contextlib.suppress(DataError):  # there is none, or it is damaged
        store = EpisodeStore.open(path)
        store.verify()
        if fits(store):
            return store
    agent = build(OmegaConf.to_container(explorer, resolve=True), "explorer")
    episodes = _play(make_env, agent, steps, collect, lambda done: progress(f"loop {script}", done, EPISODES * steps))
    if len(episodes) < FEWEST:
        raise EnvError(f"the environment ended all but {len(episodes)} of its episodes before the script did")
    with whole_folder(path) as draft, EpisodeStore.writer(draft, spec) as store:
        for episode in episodes:
            store.append(episode, held_out=True)
    return EpisodeStore.open(path)


def _play(
    make_env: MakeEnv, agent: ActionSource, steps: int, collect: DictConfig, on_steps: Callable[[int], None]
) -> list[Episode]:
    """At most :data:`EPISODES` episodes of exactly ``steps`` steps; they depend on nothing but the settings."""
    workers, timeout = (int(collect[name]) for name in ("workers", "timeout"))
    task = serialized(make_env, agent, workers)
    found: dict[int, Episode] = {}
    played = done = 0
    for _ in range(ROUNDS):
        orders = [Order.episode(SEED, number, steps) for number in range(played, played + EPISODES - len(found))]
        played += len(orders)
        if not orders:
            break
        with deferred() as stopped, RecorderPool(task, orders, workers, timeout) as pool:
            for report in pool.reports():
                if stopped():
                    raise KeyboardInterrupt
                done += report.steps
                on_steps(done)
                if report.recording and report.recording.episode.steps == steps:
                    found[report.recording.number] = report.recording.episode
    return [found[number] for number in sorted(found)]
