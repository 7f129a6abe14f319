"""Episodes that an agent plays in the real environment: what is measured of them, and the files that show it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from worldmodel.agents import report
from worldmodel.agents.choice import NOT_OF_THE_AGENT, build_agent, folder_of, run_of
from worldmodel.agents.foresight import Foresight, Window, foresee, windows
from worldmodel.agents.kept import Kept
from worldmodel.agents.playing import Match, Played, play
from worldmodel.agents.run import SETTINGS
from worldmodel.agents.statistics import interquartile_mean, stratified

from worldmodel.evaluation.metrics import mean_interval
from worldmodel.runs.data import env_maker
from worldmodel.runs.folder import PRIOR
from worldmodel.types import Episode, Spec
from worldmodel.util.files import replace_text
from worldmodel.util.interrupts import deferred
from worldmodel.util.progress import Bars
from worldmodel.world import WorldModel


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured and shown."""

    success: float | None  # return from which on an episode is a success; None: it ended with a reward
    horizon: int  # most steps of a stretch that is dreamt
    starts: int  # stretches of every episode
    temperature: float  # of these dreams
    videos: int  # episodes in the videos

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
