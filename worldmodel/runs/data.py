"""The data of a configuration: its environment or source, and the folder of its episodes."""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from omegaconf import DictConfig, OmegaConf

from worldmodel.config.checks import build, check, check_value, construct, read
from worldmodel.data.sources import Source, fill
from worldmodel.data.store import SOURCE, EpisodeStore
from worldmodel.errors import ConfigError, DataError, EnvError
from worldmodel.recording.cluster import collect_on_cluster
from worldmodel.recording.collect import CollectSettings, collect
from worldmodel.recording.recorder import ActionSource, FrameSource, MakeEnv
from worldmodel.runs.folder import load_config
from worldmodel.types import Spec
from worldmodel.util.files import expanded, replace_text
from worldmodel.util.progress import deferred, progress_bars
from worldmodel.util.ranges import Names, Share, Text

NOT_OF_THE_ENVIRONMENT: dict[str, Any] = {"loops": Names | None, "loop_probability": Share | None}
"""Settings of ``env`` that evaluations and explorers read, and their types."""

MOST_NAMED = 10  # files that cannot be read, one line each

log = logging.getLogger(__name__)


def env_maker(config: DictConfig | str | Path) -> MakeEnv:
    """A picklable constructor of the environment of the settings, or of the run in a folder.

    Raises :class:`ConfigError` for a missing setting, and :class:`RunError`.
    """
    config = config if isinstance(config, DictConfig) else load_config(config)
    missing = sorted(OmegaConf.missing_keys(config.env))
    if missing := [key for key in missing if key != "env.name"] or missing:  # it usually depends on the others
        raise ConfigError(f"the environment needs {', '.join(f'{key}=…' for key in missing)}")
    settings = OmegaConf.to_container(config.env, resolve=True)
    assert isinstance(settings, dict)
    check_value("env.name", Text, settings.pop("name", None))
    for name, kind in NOT_OF_THE_ENVIRONMENT.items():
        check_value(f"env.{name}", kind, settings.pop(name, None))
    return functools.partial(_make, _registered(settings.get("id")), check(settings, "env"))


def _registered(id: object) -> EnvSpec | None:
    """How this process makes an environment by its gymnasium id; None if the id names a module, or is unknown."""
    spec = gymnasium.registry.get(str(id))
    if spec is not None and str(spec.entry_point).startswith("__main__:"):
        spec = dataclasses.replace(spec, entry_point=load_env_creator(str(spec.entry_point)))  # type: ignore[arg-type]
    return spec


def _make(spec: EnvSpec | None, settings: dict[str, Any]) -> FrameSource:
    """The environment of checked settings, in a process to which ``spec`` may be unknown."""
    sent = spec is not None and spec.id not in gymnasium.registry
    if spec is not None:
        gymnasium.registry.setdefault(spec.id, spec)
    try:
        return construct(settings)  # type: ignore[no-any-return]
    except EnvError as error:
        if spec is None or not sent:
            raise
        # Not all that a script defines can be sent by value.
        raise EnvError(f"{error}; define and register it in a module: env.id=my_module:{spec.id}") from error


def spec_of(make_env: MakeEnv) -> Spec:
    """The spec of an environment."""
    with contextlib.closing(make_env()) as env:
        return env.data_spec


def build_source(config: DictConfig) -> Source:
    """The source of the settings. Raises :class:`ConfigError` for a missing setting."""
    if missing := sorted(OmegaConf.missing_keys(config.source)):
        given = ", ".join(f"{key}=…" for key in missing)
        raise ConfigError(f"the source {config.source.name} needs {given}, the folder to take it from")
    source = build(OmegaConf.to_container(config.source, resolve=True), "source")
    if not isinstance(source, Source):
        raise ConfigError(f"{config.source._target_} is no source; choose one of configs/source")
    if not len(source):
        raise DataError(f"{config.source.path} holds no episode that can be imported; choose another source.path=…")
    return source


def record_steps(config: DictConfig, explorer: ActionSource, steps: int) -> None:
    """Record ``steps`` more steps of ``explorer`` in the environment of the settings, and print a report.

    Raises :class:`ConfigError` for an engine that makes several stores, and what :func:`collect` raises.
    """
    settings = config.collect
    check_engine(config)
    make_env, spec = _checked_env(config, explorer)
    with EpisodeStore.writer(config.data, spec) as store:
        store.verify()
        limits = {"longest": settings.longest, "timeout": settings.timeout}
        print(collect(store, make_env, explorer, steps, settings.workers, config.seed, **limits).describe())
        held_out = len(store.split("held_out"))
        print(f"now       {store.steps:,} steps in {len(store):,} episodes ({held_out:,} held out) at {store.path}")


def _checked_env(config: DictConfig, explorer: ActionSource) -> tuple[MakeEnv, Spec]:
    make_env = env_maker(config)
    spec = spec_of(make_env)
    if check_explorer := getattr(explorer, "check", None):
        check_explorer(spec.action_names)
    return make_env, spec


def check_engine(config: DictConfig) -> None:
    """Raises :class:`ConfigError` if the settings record several stores and one is needed."""
    if config.collect.engine != "local":
        reason = f"collect.engine is {config.collect.engine}, which makes several stores"
        remedy = (
            "record with python -m worldmodel.collect, merge them with source=stores, and leave the setting out here"
        )
        raise ConfigError(f"{reason}; {remedy}")


def record_on_cluster(config: DictConfig, explorer: ActionSource, steps: int) -> None:
    """The same with actors of Ray, into stores below the folder of the data. Raises as :func:`collect_on_cluster`."""
    make_env, spec = _checked_env(config, explorer)
    settings = read(CollectSettings, dict(config.collect), "collect", steps=steps)
    collected, places = collect_on_cluster(expanded(config.data), spec, make_env, explorer, settings, config.seed)
    print(collected.describe())
    written = sorted((place for place in places if place.episodes), key=lambda place: (place.host, place.path))
    for place in written:
        print(f"now       {place.episodes:,} episodes at {place.host}:{place.path}")
    if len(written) > 1:
        paths = ",".join(place.path for place in written)
        print(
            f"merge     python -m worldmodel.collect source=stores 'source.paths=[{paths}]' data={config.data}-merged"
        )


def import_source(config: DictConfig) -> None:
    """Append what the source of the settings has and the store has not, and print a report.

    Raises :class:`DataError`, after everything else is stored, when some of it cannot be read.
    """
    source = build_source(config)
    started = time.monotonic()
    with EpisodeStore.writer(config.data, source.spec) as store:
        store.verify()
        with deferred() as stopped, progress_bars(transient=False) as progress:
            filled = fill(store, source, config.collect.workers, functools.partial(progress, "reading"), stopped)
        if len(store):
            origin = OmegaConf.create(OmegaConf.to_container(config.source, resolve=True))
            if (path := expanded(str(OmegaConf.select(origin, "path")))).exists():  # Minari takes an id, too
                origin.path = str(path.absolute())
            replace_text(store.path / SOURCE, OmegaConf.to_yaml(origin))
        print(f"new       {filled.added:,} of {len(source):,}, {filled.known:,} were there, "
              f"in {time.monotonic() - started:.1f} s")  # fmt: skip
        print(_contents(store))
        if filled.unreadable:
            raise DataError(_unreadable(filled.unreadable))


def _contents(store: EpisodeStore) -> str:
    """One line on what a store holds."""
    names, sound = store.spec.action_names, len(store.spec.frame_shape) == 2
    word = "speakers" if sound else "actions" if store.steps else "classes"
    lasting = f" ({store.frames / store.spec.rate:,.0f} s)" if sound else ""
    episodes = f"{len(store):,} episodes ({len(store.split('held_out')):,} held out)"
    actions = f"{len(names):,} {word} ({', '.join(names[:3])}{', …' * (len(names) > 3)})"
    return f"now       {store.frames:,} frames{lasting} in {episodes}, {actions}, at {store.path}"


def _unreadable(reasons: Sequence[str]) -> str:
    """One line on what could not be read; of several reasons, the first ones are logged."""
    if len(reasons) == 1:
        return f"{reasons[0]}; everything else is stored"
    for reason in reasons[:MOST_NAMED]:
        log.warning("left out: %s", reason)
    more = f", of which the first {MOST_NAMED} are" if len(reasons) > MOST_NAMED else ","
    return f"{len(reasons):,} files could not be read{more} named above; everything else is stored"


def recorded(config: DictConfig) -> int:
    """Number of recorded steps in the data folder; 0 without readable data."""
    try:
        return EpisodeStore.open(config.data).steps
    except DataError:
        return 0


def source_path(store: EpisodeStore) -> Path | None:
    """The folder that the episodes of a store were imported from; None for recorded ones."""
    if not (store.path / SOURCE).is_file():
        return None
    path = OmegaConf.select(OmegaConf.load(store.path / SOURCE), "path")
    return None if path is None else expanded(str(path))
