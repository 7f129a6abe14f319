"""``python -m worldmodel.agents.evaluate``: returns of an agent in the real environment, beside those of its dreams."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from worldmodel.agents import report
from worldmodel.agents.choice import NOT_OF_THE_AGENT, build_agent, folder_of, name_of, run_of
from worldmodel.agents.foresight import Foresight, Window, foresee, windows
from worldmodel.agents.kept import Kept
from worldmodel.agents.playing import Match, Played, play
from worldmodel.agents.run import SETTINGS
from worldmodel.agents.statistics import interquartile_mean, stratified

from worldmodel.collect import env_maker
from worldmodel.config.cli import run_entry_point
from worldmodel.errors import ConfigError
from worldmodel.evaluation.metrics import mean_interval
from worldmodel.evaluation.report import table
from worldmodel.runs.folder import PRIOR
from worldmodel.types import Episode, Spec
from worldmodel.util.files import replace_text
from worldmodel.util.interrupts import deferred
from worldmodel.util.progress import Bars
from worldmodel.world import WorldModel

DESCRIPTION = """\
Let an agent play in the real environment: return, length and success with 95 % intervals, plots and a video. With a
world model (run=…, or the run that the agent plays with), also its dream of what the agent did, and how the return
dreamt agrees with the return obtained.

Episode i is played under seeds that follow from seed and i alone, the same for every agent. Writes metrics.json,
report.png, episodes.mp4, dream.mp4 (a short one also as a gif) and of a planner plan.mp4 (an episode, and what was
imagined for each of its frames 1, 4 and 8 steps before) to <run>/agents/<agent>-<env>/, or runs/agents/…
where there is no run; python -m worldmodel.agents.compare puts several of them side by side."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the flags say."""

    success: float | None = None  # return from which on an episode is a success; None: it ended with a reward
    horizon: int = 50
    starts: int = 4
    temperature: float = 1.0
    videos: int = report.SHOWN

    @property
    def success_rule(self) -> str:
        if self.success is not None:
            return f"a return of {self.success:g} or more"
        return "ended by itself, the last two rewards positive together"

    def succeeded(self, episode: Episode) -> bool:
        """Whether an episode is a success."""
        if self.success is not None:
            return bool(episode.rewards.sum() >= self.success)
        # Of two, since what earned it may show a step before the end, as a shot does in ViZDoom's basic.
        return bool(episode.terminated and episode.rewards[-2:].sum() > 0)


def add_flags(parser: argparse.ArgumentParser) -> None:
    plain = Settings()
    parser.add_argument(
        "--success",
        type=float,
        metavar="RETURN",
        help="an episode is a success from this return on (default: where it ended by itself, the last two rewards "
        "positive together)",
    )
    parser.add_argument("--horizon", type=int, default=plain.horizon, help="most steps of a stretch that is dreamt")
    parser.add_argument("--starts", type=int, default=plain.starts, help="stretches of every episode that are dreamt")
    parser.add_argument("--temperature", type=float, default=plain.temperature, help="of these dreams")
    parser.add_argument("--videos", type=int, default=plain.videos, help="episodes in the videos; 0: none")
    parser.add_argument("--name", help="what the agent is called in files and tables (default: the choice of agent=)")


def settings_of(args: argparse.Namespace) -> Settings:
    """Raises :class:`ConfigError` for a number that is too small."""
    for name, least in (("horizon", 1), ("starts", 1), ("videos", 0), ("temperature", 0)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name} {getattr(args, name)}: it must be at least {least}")
    if args.name is not None and not re.fullmatch(r"[\w.+@-]*\w[\w.+@-]*", args.name):
        raise ConfigError(f"--name {args.name!r}: a folder is called that; use letters, digits and - _ . + @")
    return Settings(args.success, args.horizon, args.starts, args.temperature, args.videos)


@dataclasses.dataclass
class Gathered:
    """Of episodes that are too large to be kept: what is measured of them. The first few are kept."""

    settings: Settings
    seed: int
    context: int | None  # frames that the world model sees before a dream; None: there is no world model
    facts: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    shown: dict[int, Played] = dataclasses.field(default_factory=dict)
    stretches: dict[int, list[Window]] = dataclasses.field(default_factory=dict)
    planned: Played | None = None  # the first of which it is known what was imagined
    seconds: float = 0.0

    def take(self, played: Played) -> None:
        number, episode = played.number, played.episode
        self.seconds += played.seconds
        self.facts[number] = {
            "return": float(episode.rewards.sum(dtype=np.float64)),
            "length": episode.steps,
            "terminated": episode.terminated,
            "success": self.settings.succeeded(episode),
        }
        if number < self.settings.videos:
            self.shown[number] = played
        if self.planned is None and any(played.plans):
            self.planned = played
        if self.context is not None:
            settings = self.settings
            self.stretches[number] = windows(
                episode, number, self.context, settings.horizon, settings.starts, self.seed
            )

    def column(self, name: str) -> np.ndarray:
        """One fact of every episode, in their order, (E,) float64."""
        return np.array([self.facts[number][name] for number in sorted(self.facts)], np.float64)

    def to_json(self) -> dict[str, Any]:
        returns, lengths = self.column("return"), self.column("length")
        steps = int(lengths.sum())
        return {
            "return": mean_interval(returns).to_json(),
            "return_iqm": stratified(interquartile_mean, [returns]).to_json(),
            "length": mean_interval(lengths).to_json(),
            "success": mean_interval(self.column("success")).to_json(),
            "success_rule": self.settings.success_rule,
            "steps": steps,
            "seconds_a_decision": self.seconds / max(steps, 1),
            "episodes": [self.facts[number] for number in sorted(self.facts)],
        }


def gather(match: Match, episodes: int, workers: int, gathered: Gathered, kept: Kept, bars: Bars) -> None:
    """Play what is not kept yet, under a bar that shows the mean return so far. Raises KeyboardInterrupt, with the
    finished episodes kept, when asked to stop."""
    task, under_way = bars.add_task("episodes", total=episodes), 0
    for played in kept:
        if played.number < episodes:
            gathered.take(played)
    with deferred() as stopped:

        def watch(more: int) -> bool:
            nonlocal under_way
            under_way += more
            steps = int(gathered.column("length").sum()) + under_way
            mean = f"mean return {gathered.column('return').mean():.4g}  " if gathered.facts else ""
            bars.update(task, completed=len(gathered.facts), shown=f"{mean}{steps:,} steps")
            return not stopped()

        left = [i for i in range(episodes) if i not in gathered.facts]
        match = dataclasses.replace(match, planned=tuple(left[: min(gathered.settings.videos, 1)]))
        for played in play(match, left, workers, watch):
            kept.keep(played)
            gathered.take(played)
            under_way = max(0, under_way - played.episode.steps)
            watch(0)
        if stopped():
            raise KeyboardInterrupt
        watch(0)


def dream(world: WorldModel, gathered: Gathered, bars: Bars) -> Foresight:
    """What the world model expects of the stretches that were played."""
    given = [window for number in sorted(gathered.stretches) for window in gathered.stretches[number]]
    task = bars.add_task("dreams", total=len(given))
    return foresee(
        world, given, gathered.settings.temperature, gathered.seed, lambda done: bars.update(task, completed=done)
    )


def evaluate(config: DictConfig, settings: Settings, agent_name: str, name: str, command: str) -> dict[str, Any]:
    """Play, measure, write; returns what ``metrics.json`` holds.

    Raises what building the environment and the agent and what playing raises.
    """
    make_env = env_maker(config)
    spec = spec_of(make_env)
    run = run_of(config, spec)
    folder = folder_of(config, name, run)
    agent = build_agent(config, run, folder)
    world = None
    if run is not None and (run / PRIOR).is_file():
        world = WorldModel.load(run, device=str(config.device))
    gathered = Gathered(settings, int(config.seed), None if world is None else max(1, world.prior.context))
    match = Match(make_env, agent, int(config.seed), int(config.collect.longest))
    bars = Bars()
    with Kept(folder, spec, terms(config, run, folder)) as kept:
        with bars:
            gather(match, int(config.episodes), int(config.collect.workers), gathered, kept, bars)
            found = facts(config, spec, run, name, agent_name, command) | gathered.to_json()
            if world is not None:
                found["dream"] = dream(world, gathered, bars).to_json(settings.horizon, int(config.seed))
        found["folder"] = str(folder)
        replace_text(folder / "metrics.json", json.dumps(found, indent=1))
        save_pictures(folder, found, gathered, spec, world)
        kept.discard()
    return found


def spec_of(make_env: Any) -> Spec:
    """What an environment shows and takes."""
    env = make_env()
    spec: Spec = env.data_spec
    env.close()
    return spec


def terms(config: DictConfig, run: Path | None, folder: Path) -> dict[str, Any]:
    """All that decides how episode i is played, but for the code: one that was kept under others is of no use."""
    files = [path for place in (run, folder) if place is not None for path in place.glob("*.*")]
    files = [path for path in files if path.suffix in (".safetensors", ".zip") or path.name == SETTINGS]
    agent = OmegaConf.to_container(config.agent, resolve=True)
    assert isinstance(agent, dict)
    return {
        "env": OmegaConf.to_container(config.env, resolve=True),
        "agent": {name: value for name, value in agent.items() if name not in NOT_OF_THE_AGENT},
        "run": None if run is None else run.name,
        "seed": int(config.seed),
        "longest": int(config.collect.longest),
        "files": sorted([path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files),
    }


def facts(config: DictConfig, spec: Spec, run: Path | None, name: str, agent_name: str, command: str) -> dict[str, Any]:
    """What was evaluated."""
    return {
        "agent": name,
        "choice": agent_name,
        "env": str(config.env.name),
        "environment": spec.env_id,
        "env_kwargs": spec.env_kwargs,
        "run": None if run is None else run.name,
        "seed": int(config.seed),
        "longest": int(config.collect.longest),
        "settings": OmegaConf.to_container(config.agent, resolve=True),
        "command": command,
    }


def save_pictures(
    folder: Path, found: dict[str, Any], gathered: Gathered, spec: Spec, world: WorldModel | None
) -> None:
    """The plots and the videos."""
    report.save_plots(folder / "report.png", found)
    shown: list[Played] = [gathered.shown[number] for number in sorted(gathered.shown)]
    if shown:
        report.save_episodes(folder / "episodes.mp4", shown, spec)
    if shown and world is not None:
        report.save_dreams(folder / "dream.mp4", shown, world, gathered.seed, gathered.settings.temperature)
        (folder / "plan.mp4").unlink(missing_ok=True)
        if gathered.planned is not None:
            report.save_plans(folder / "plan.mp4", gathered.planned, world)


def measure(args: argparse.Namespace, config: DictConfig, command: str) -> None:
    """The command, behind the parsing."""
    settings = settings_of(args)
    agent_name = name_of(args.overrides, config)
    found = evaluate(config, settings, agent_name, args.name or agent_name, command)
    console = Console()
    shown = {"run": found["agent"], "environment": found["environment"]}
    console.print(table(shown, report.lines(found)))
    console.print(f"{Path(found['folder']) / 'metrics.json'}  (report.png and videos beside it)", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "-m", "worldmodel.agents.evaluate", *words])
    return run_entry_point(
        functools.partial(measure, command=command), "worldmodel.agents.evaluate", DESCRIPTION, add_flags, words
    )


if __name__ == "__main__":
    sys.exit(main())
