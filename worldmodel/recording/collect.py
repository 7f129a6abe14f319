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
from worldmodel.util.progress import Bars, deferred
from worldmodel.util.ranges import Count, Positive, Seed


@dataclasses.dataclass
class Collected:
    """Statistics of a recording, of which :meth:`take` writes the episodes."""

    store: EpisodeStore
    target: int  # steps to record
    steps: int = 0
    episodes: int = 0
    terminated: int = 0  # episodes that ended in a terminal state
    frame_bytes: int = 0
    under_way: int = 0  # reported steps of unfinished episodes
    places: set[int] = dataclasses.field(default_factory=set)  # poses, or coarse frames if the environment has no pose
    warnings: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.actions = np.zeros(len(self.store.spec.action_names), np.int64)  # how often each was taken
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

    def take(self, report: Report, console: Console) -> None:
        """Write a received episode and count it, print a warning."""
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

    def describe(self) -> str:
        """Lines for the terminal."""
        names, seconds = self.store.spec.action_names, max(time.monotonic() - self.start, 1e-9)
        shares = self.actions / max(self.actions.sum(), 1)
        return (
            f"recorded  {self.steps:,} steps, {self.episodes:,} episodes ({self.terminated:,} terminated), "
            f"{self.frame_bytes / 1e6:,.0f} MB in {seconds:.1f} s, {self.steps / seconds:,.0f} steps/s\n"
            f"coverage  {len(self.places):,} distinct places\n"
            f"actions   {', '.join(f'{name} {share:.0%}' for name, share in zip(names, shares, strict=True))}"
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
    collected = Collected(store, steps)
    shares = [steps // workers + (place < steps % workers) for place in range(workers)]
    orders = [Order((seed, store.next_number, place), longest, share) for place, share in enumerate(shares) if share]
    with (
        deferred() as stopped,
        Bars(Console(file=sys.stderr, quiet=not progress)) as bar,
        RecorderPool(make_env, explorer, orders, workers, timeout) as pool,
    ):
        task = bar.add_task("recording", total=steps)
        for report in pool.reports():
            collected.take(report, bar.console)
            rate = collected.seen / max(time.monotonic() - (collected.first or time.monotonic()), 1e-9)
            shown = f"{rate:,.0f} steps/s  {collected.episodes:,} episodes"
            bar.update(task, completed=collected.seen, shown=shown)
            if stopped():  # not in the middle of a message or of a file
                for rest in pool.stop():
                    collected.take(rest, bar.console)
                raise KeyboardInterrupt
    return collected
