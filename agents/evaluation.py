"""Evaluates an agent in the real environment: plays episodes, measures them, and writes the results."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from worldmodel.agents import report
from worldmodel.agents.actor import SETTINGS
from worldmodel.agents.choice import agent_folder, arguments_of, build_agent, find_agent_run
from worldmodel.agents.comparison import interquartile_mean, stratified
from worldmodel.agents.dreamt_returns import Window, dream_returns, episode_windows
from worldmodel.agents.playing import UnfinishedEvaluation, play
from worldmodel.evaluation.metrics import mean_interval
from worldmodel.recording.recorder import ActionSource, FrameSource, Order, Recording
from worldmodel.runs.data import env_maker, spec_of
from worldmodel.runs.folder import PRIOR
from worldmodel.types import Episode, Spec
from worldmodel.util.files import check_writable, replace_text
from worldmodel.util.progress import Bars, deferred
from worldmodel.world import WorldModel


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of an evaluation."""

    success: float | None  # least return of a success; None: the episode terminated with a reward
    horizon: int  # largest number of steps of a dreamt window
    starts: int  # dreamt windows per episode
    temperature: float  # of these dreams
    videos: int  # episodes in the videos

    @property
    def success_rule(self) -> str:
        if self.success is not None:
            return f"a return of {self.success:g} or more"
        return "ended by itself, the last two rewards positive together"  # part of metrics.json, which compare reads

    def succeeded(self, episode: Episode) -> bool:
        if self.success is not None:
            return bool(episode.rewards.sum() >= self.success)
        # Two rewards, because the rewarded event can be one step before the end, as in ViZDoom's scenario basic.
        return bool(episode.terminated and episode.rewards[-2:].sum() > 0)


@dataclasses.dataclass
class EpisodeMeasurements:
    """Measurements of all episodes. Only the episodes for the videos are kept, because they need much memory."""

    settings: Settings
    seed: int
    context: int | None  # context frames of a dream; None without a world model
    facts: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    in_videos: dict[int, Recording] = dataclasses.field(default_factory=dict)
    windows: dict[int, list[Window]] = dataclasses.field(default_factory=dict)
    planned_episode: Recording | None = None  # the first episode with recorded plans
    seconds: float = 0.0

    def add(self, played: Recording) -> None:
        number, episode = played.number, played.episode
        self.seconds += played.seconds
        total, success = float(episode.rewards.sum(dtype=np.float64)), self.settings.succeeded(episode)
        facts = {"return": total, "length": episode.steps, "terminated": episode.terminated, "success": success}
        self.facts[number] = facts
        if number < self.settings.videos:
            self.in_videos[number] = played
        if self.planned_episode is None and any(played.plans):
            self.planned_episode = played
        if self.context is not None:
            size = self.settings.horizon, self.settings.starts
            self.windows[number] = episode_windows(episode, number, self.context, *size, self.seed)

    def column(self, name: str) -> np.ndarray:
        """One measurement of every episode, in order, (E,) float64."""
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


def play_episodes(
    make_env: Callable[[], FrameSource],
    agent: ActionSource,
    episodes: int,
    longest: int,
    workers: int,
    measured: EpisodeMeasurements,
    kept: UnfinishedEvaluation,
    bars: Bars,
) -> None:
    """Play the episodes that are not stored yet and show the mean return in a progress bar. Raises KeyboardInterrupt
    after an interruption; the finished episodes are stored."""
    task, unfinished_steps = bars.add_task("episodes", total=episodes), 0
    for played in kept:
        if played.number < episodes:
            measured.add(played)
    with deferred() as stopped:

        def on_steps(more: int) -> bool:
            nonlocal unfinished_steps
            unfinished_steps += more
            steps = int(measured.column("length").sum()) + unfinished_steps
            mean = f"mean return {measured.column('return').mean():.4g}  " if measured.facts else ""
            bars.update(task, completed=len(measured.facts), shown=f"{mean}{steps:,} steps")
            return not stopped()

        left = [i for i in range(episodes) if i not in measured.facts]
        planned = left[: min(measured.settings.videos, 1)]
        orders = [Order.episode(measured.seed, number, longest, plans=number in planned) for number in left]
        for played in play(make_env, agent, orders, workers, on_steps):
            kept.add(played)
            measured.add(played)
            unfinished_steps = max(0, unfinished_steps - played.episode.steps)
            on_steps(0)
        if stopped():
            raise KeyboardInterrupt
        on_steps(0)


def evaluate(config: DictConfig, settings: Settings, agent_name: str, name: str, command: str) -> dict[str, Any]:
    """Play, measure and write; returns the content of ``metrics.json``.

    Raises the errors of building the environment and the agent and of playing.
    """
    make_env = env_maker(config)
    spec = spec_of(make_env)
    run = find_agent_run(config, spec)
    folder = agent_folder(config, name, run)
    agent = build_agent(config, run, folder)
    check_writable(folder)
    world = None
    if run is not None and (run / PRIOR).is_file():
        world = WorldModel.load(run, device=str(config.device))
    context = None if world is None else max(1, world.prior.context)
    measured = EpisodeMeasurements(settings, int(config.seed), context)
    count, longest, workers = int(config.episodes), int(config.collect.longest), int(config.collect.workers)
    bars = Bars()
    with UnfinishedEvaluation(folder, spec, episode_settings(config, run, folder)) as kept:
        with bars:
            play_episodes(make_env, agent, count, longest, workers, measured, kept, bars)
            metrics = {
                "agent": name,
                "choice": agent_name,
                "env": str(config.env.name),
                "environment": spec.env_id,
                "env_kwargs": spec.env_kwargs,
                "run": None if run is None else run.name,
                "seed": measured.seed,
                "longest": longest,
                "settings": OmegaConf.to_container(config.agent, resolve=True),
                "command": command,
                **measured.to_json(),
            }
            if world is not None:
                windows = [window for number in sorted(measured.windows) for window in measured.windows[number]]
                task = bars.add_task("dreams", total=len(windows))
                seed, temperature = measured.seed, settings.temperature
                pairs = dream_returns(world, windows, temperature, seed, lambda done: bars.update(task, completed=done))
                metrics["dream"] = pairs.to_json(settings.horizon, seed)
        metrics["folder"] = str(folder)
        replace_text(folder / "metrics.json", json.dumps(metrics, indent=1))
        save_report(folder, metrics, measured, spec, world)
        kept.discard()
    return metrics


def episode_settings(config: DictConfig, run: Path | None, folder: Path) -> dict[str, Any]:
    """All settings and files that determine episode i; stored episodes with other values are not used."""
    files = [path for parent in (run, folder) if parent is not None for path in parent.glob("*.*")]
    files = [path for path in files if path.suffix in (".safetensors", ".zip") or path.name == SETTINGS]
    return {
        "env": OmegaConf.to_container(config.env, resolve=True),
        "agent": arguments_of(config),
        "run": None if run is None else run.name,
        "seed": int(config.seed),
        "longest": int(config.collect.longest),
        "files": sorted([path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files),
    }


def save_report(
    folder: Path, metrics: dict[str, Any], measured: EpisodeMeasurements, spec: Spec, world: WorldModel | None
) -> None:
    report.save_plots(folder / "report.png", metrics)
    shown = [measured.in_videos[number] for number in sorted(measured.in_videos)]
    if shown:
        report.save_episodes(folder / "episodes.mp4", shown, spec)
    if shown and world is not None:
        report.save_dreams(folder / "dream.mp4", shown, world, measured.seed, measured.settings.temperature)
        (folder / "plan.mp4").unlink(missing_ok=True)
        if measured.planned_episode is not None:
            report.save_plans(folder / "plan.mp4", measured.planned_episode, world)
