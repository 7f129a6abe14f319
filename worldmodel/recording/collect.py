"""Record steps of an environment with an explorer, in several processes, into a store."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le
from rich.console import Console
from rich.progress import TaskID

from worldmodel.config.checks import checked
from worldmodel.data.store import EpisodeStore
from worldmodel.recording.pool import RecorderPool, Report, serialized
from worldmodel.recording.recorder import ActionSource, MakeEnv, Order
from worldmodel.types import Episode
from worldmodel.util.progress import Bars, deferred
from worldmodel.util.ranges import Count, Positive, Seed

Workers = Annotated[int, Ge(1), Le(1024)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """The settings ``collect``."""

    steps: Count
    engine: Literal["local", "ray"] = "local"  # processes of this machine, or actors of Ray on several
    actors: Workers | None = None  # engine=ray: how many; None: one for each machine
    workers: Workers = 2  # recorder processes; of each actor
    longest: Count = 1000
    timeout: Positive = 60.0


@dataclasses.dataclass
class Written:
    """What was recorded: reported steps, and the episodes that are in a store."""

    reported: int = 0  # steps, some of which belong to unfinished episodes
    steps: int = 0  # of the episodes
    episodes: int = 0
    terminated: int = 0  # episodes that ended in a terminal state
    frame_bytes: int = 0
    actions: np.ndarray | int = 0  # (A,) how often each was taken; 0 without episodes
    places: set[int] = dataclasses.field(default_factory=set)  # poses, or coarse frames if the environment has no pose
    warnings: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: Written) -> None:
        """Include what ``other`` counts."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, set):
                mine |= value
            else:
                setattr(self, name, mine + value)


def count(episode: Episode, num_actions: int) -> Written:
    """An episode that is in a store."""
    return Written(
        steps=episode.steps,
        episodes=1,
        terminated=int(episode.terminated),
        frame_bytes=episode.frames.nbytes,
        actions=np.bincount(episode.actions[1:], minlength=num_actions),
    )


def write(store: EpisodeStore, report: Report) -> Written:
    """Append the episode of a report, if it has one, to a store."""
    written = Written()
    if report.recording:
        store.append(report.recording.episode)
        written = count(report.recording.episode, len(store.spec.action_names))
        written.places = set(report.recording.places)
    written.reported, written.warnings = report.steps, [report.warning] if report.warning else []
    return written


@dataclasses.dataclass(kw_only=True)
class Collected(Written):
    """Statistics of a recording."""

    action_names: tuple[str, ...]
    target: int  # steps to record
    under_way: int = 0  # reported steps of unfinished episodes

    def __post_init__(self) -> None:
        self.start = self.last = time.monotonic()  # the last episode was written
        self.first: float | None = None  # time of the first reported step

    @property
    def recording(self) -> float:
        """Seconds from the first step to the last episode."""
        return self.last - (self.first or self.last)

    @property
    def seen(self) -> int:
        """Reported steps."""
        return min(self.steps + self.under_way, self.target)

    def take(self, new: Written, bars: Bars, task: TaskID) -> None:
        """Count what was recorded, print its warnings, and move a bar."""
        if self.first is None and (new.reported or new.episodes):
            self.first = time.monotonic()
        self.add(new)
        self.under_way = max(0, self.under_way + new.reported - new.steps)
        if new.episodes:
            self.last = time.monotonic()
        for warning in new.warnings:
            bars.console.print(warning, style="yellow", markup=False, highlight=False, soft_wrap=True)
        rate = self.seen / max(time.monotonic() - (self.first or time.monotonic()), 1e-9)
        shown = f"{rate:,.0f} steps/s  {self.episodes:,} episodes"
        bars.update(task, completed=self.seen, shown=shown)

    def describe(self) -> str:
        """Lines for the terminal."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        each = np.broadcast_to(self.actions / max(self.steps, 1), len(self.action_names))
        shares = [f"{name} {share:.0%}" for name, share in zip(self.action_names, each, strict=True)]
        return (
            f"recorded  {self.steps:,} steps, {self.episodes:,} episodes ({self.terminated:,} terminated), "
            f"{self.frame_bytes / 1e6:,.0f} MB in {seconds:.1f} s, {self.steps / seconds:,.0f} steps/s\n"
            f"coverage  {len(self.places):,} distinct places\n"
            f"actions   {', '.join(shares)}"
        )


@checked
def collect(
    store: EpisodeStore,
    make_env: MakeEnv,
    explorer: ActionSource,
    steps: Count,
    workers: Workers = 2,
    seed: Seed = 0,
    progress: bool = True,
    longest: Count = 1000,
    timeout: Positive = 60.0,
) -> Collected:
    """Record exactly ``steps`` steps into a store that is open for writing.

    ``make_env`` and ``explorer`` are sent to ``workers`` processes and must be picklable. The seeds depend on
    ``seed`` and the number of episodes in the store, so another call records other episodes. Episodes are truncated
    after ``longest`` steps, and when the share of a process is recorded. A process that dies, or sends nothing for
    ``timeout`` seconds, is replaced.

    Raises :class:`ConfigError` for numbers below their minimum, :class:`EnvError` when the environment keeps failing,
    OSError when the disk is full, KeyboardInterrupt after saving unfinished episodes.
    """
    collected = Collected(action_names=store.spec.action_names, target=steps)
    orders = shared((seed, store.next_number), steps, workers, longest)
    with (
        deferred() as stopped,
        Bars(Console(file=sys.stderr, quiet=not progress)) as bar,
        RecorderPool(serialized(make_env, explorer, workers), orders, workers, timeout) as pool,
    ):
        task = bar.add_task("recording", total=steps)
        for report in pool.reports():
            collected.take(write(store, report), bar, task)
            if stopped():  # not in the middle of a message or of a file
                for rest in pool.stop():
                    collected.take(write(store, rest), bar, task)
                raise KeyboardInterrupt
    return collected


def shared(seed: tuple[int, ...], steps: int, workers: int, longest: int) -> list[Order]:
    """Orders for as many recorders, with equal shares of the steps and with seeds that begin with ``seed``."""
    shares = [steps // workers + (place < steps % workers) for place in range(workers)]
    return [Order((*seed, place), longest, share) for place, share in enumerate(shares) if share]
