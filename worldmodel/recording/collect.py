"""Record steps of an environment with an explorer, in several processes, into a store."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from rich.console import Console

from worldmodel.config.checks import checked
from worldmodel.data.store import EpisodeStore
from worldmodel.recording.pool import RecorderPool, Report
from worldmodel.recording.recorder import ActionSource, FrameSource, Order
from worldmodel.util.interrupts import deferred
from worldmodel.util.progress import Bars
from worldmodel.util.ranges import Count, Positive, Seed


@dataclasses.dataclass(frozen=True)
class Collected:
    """Statistics of a recording."""

    steps: int
    episodes: int
    terminated: int  # episodes that ended in a terminal state
    frame_bytes: int
    seconds: float
    actions: tuple[int, ...]  # (A,) how often each was taken
    places: int  # distinct poses, or coarse frames if the environment has no pose
    warnings: tuple[str, ...]
    recording: float  # seconds from the first step to the last episode

    def describe(self, action_names: tuple[str, ...]) -> str:
        """Lines for the terminal."""
        total = max(sum(self.actions), 1)
        rate = self.steps / max(self.seconds, 1e-9)
        shares = ", ".join(
            f"{name} {count / total:.0%}" for name, count in zip(action_names, self.actions, strict=True)
        )
        return (
            f"recorded  {self.steps:,} steps, {self.episodes:,} episodes ({self.terminated:,} terminated), "
            f"{self.frame_bytes / 1e6:,.0f} MB in {self.seconds:.1f} s, {rate:,.0f} steps/s\n"
            f"coverage  {self.places:,} distinct places\n"
            f"actions   {shares}"
        )


@checked
def collect(
    store: EpisodeStore,
    make_env: Callable[[], FrameSource],
    explorer: ActionSource,
    steps: Count,
    workers: Annotated[int, Ge(1), Le(1024)] = 2,
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
    tally = _Tally(store, steps)
    shares = [steps // workers + (place < steps % workers) for place in range(workers)]
    orders = [Order((seed, store.next_number, place), longest, share) for place, share in enumerate(shares) if share]
    with (
        deferred() as stopped,
        Bars(Console(file=sys.stderr, quiet=not progress)) as bar,
        RecorderPool(make_env, explorer, orders, workers, timeout) as pool,
    ):
        task = bar.add_task("recording", total=steps)
        for report in pool.reports():
            tally.take(report, bar.console)
            rate = tally.seen / max(tally.seconds, 1e-9)
            bar.update(task, completed=tally.seen, shown=f"{rate:,.0f} steps/s  {tally.episodes:,} episodes")
            if stopped():  # not in the middle of a message or of a file
                for rest in pool.stop():
                    tally.take(rest, bar.console)
                raise KeyboardInterrupt
    return tally.collected()


class _Tally:
    """Writes the received episodes and counts them."""

    def __init__(self, store: EpisodeStore, steps: int):
        self.store = store
        self.target = steps
        self.steps = self.episodes = self.terminated = self.frame_bytes = 0
        self.under_way = 0  # reported steps of unfinished episodes
        self.actions = np.zeros(len(store.spec.action_names), np.int64)
        self.places: set[int] = set()
        self.warnings: list[str] = []
        self.start = time.monotonic()
        self.first: float | None = None  # time of the first reported step
        self.last = self.start  # time at which the last episode was written

    @property
    def seconds(self) -> float:
        return time.monotonic() - (self.first or time.monotonic())

    @property
    def seen(self) -> int:
        return min(self.steps + self.under_way, self.target)

    def take(self, report: Report, console: Console) -> None:
        if self.first is None and (report.steps or report.recording):
            self.first = time.monotonic()
        self.under_way += report.steps
        if report.warning:
            self.warnings.append(report.warning)
            console.print(report.warning, style="yellow", markup=False, highlight=False, soft_wrap=True)
        if report.recording:
            episode = report.recording.episode
            self.store.append(episode)
            self.last = time.monotonic()
            self.under_way = max(0, self.under_way - episode.steps)
            self.steps += episode.steps
            self.episodes += 1
            self.terminated += episode.terminated
            self.frame_bytes += episode.frames.nbytes
            self.actions += np.bincount(episode.actions[1:], minlength=len(self.actions))
            self.places |= report.recording.places

    def collected(self) -> Collected:
        return Collected(
            steps=self.steps,
            episodes=self.episodes,
            terminated=self.terminated,
            frame_bytes=self.frame_bytes,
            seconds=time.monotonic() - self.start,
            actions=tuple(int(count) for count in self.actions),
            places=len(self.places),
            warnings=tuple(self.warnings),
            recording=self.last - (self.first or self.last),
        )
