"""Collect: play an environment with an explorer and record the episodes, or take in pictures and recordings."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from worldmodel.config.checks import build, check, check_value, construct
from worldmodel.config.cli import run_entry_point
from worldmodel.config.settings import RULES, SEED
from worldmodel.data.fill import fill
from worldmodel.data.sources import Source
from worldmodel.data.store import SOURCE, EpisodeStore
from worldmodel.errors import ConfigError, DataError
from worldmodel.recording.pool import RecorderPool, Report
from worldmodel.recording.recorder import ActionSource, FrameSource, Order
from worldmodel.util.files import replace_text
from worldmodel.util.interrupts import deferred
from worldmodel.util.progress import Bars
from worldmodel.util.ranges import Text

DESCRIPTION = """\
Play an environment with an explorer and record what it sees, in several processes.

Run it again to append. It can be stopped at any moment: only the episodes then being recorded are lost, and after
Ctrl-C or SIGTERM not even these.

With source=cifar10, images, imagenet, dmlab, minari, npz, vctk or timit, and source.path=…, take in what lies in that
folder instead. Run it again to take in what is missing: what is new in the folder, what an interruption left, what was
damaged since."""

MOST_NAMED = 10  # files that cannot be read, one line each

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Collected:
    """What one call recorded."""

    steps: int
    episodes: int
    terminated: int  # episodes that ended in a terminal state
    frame_bytes: int
    seconds: float
    actions: tuple[int, ...]  # (A,) how often each was taken
    places: int  # distinct poses, or coarse pictures where the environment tells no pose
    warnings: tuple[str, ...]
    recording: float  # of the seconds, those from the first step to the last episode: without starting and ending

    def describe(self, action_names: tuple[str, ...]) -> str:
        """Some lines for the user."""
        total = max(sum(self.actions), 1)
        rate = self.steps / max(self.seconds, 1e-9)
        shares = ", ".join(
            f"{name} {count / total:.0%}" for name, count in zip(action_names, self.actions, strict=True)
        )
        return (
            f"recorded  {self.steps:,} steps, {self.episodes:,} episodes ({self.terminated:,} ended by themselves), "
            f"{self.frame_bytes / 1e6:,.0f} MB in {self.seconds:.1f} s, {rate:,.0f} steps/s\n"
            f"coverage  {self.places:,} distinct places\n"
            f"actions   {shares}"
        )


def collect(
    store: EpisodeStore,
    make_env: Callable[[], FrameSource],
    explorer: ActionSource,
    steps: int,
    workers: int = 2,
    seed: int = 0,
    progress: bool = True,
    longest: int = 1000,
    timeout: float = 60.0,
) -> Collected:
    """Record exactly ``steps`` steps into a store that is open for writing.

    ``make_env`` and ``explorer`` are sent to ``workers`` processes and must be picklable. The seeds follow from
    ``seed`` and the number of episodes already in the store, so a second call continues with others. The last episode
    of every process is cut when its share of the steps is done, and flagged as truncated; so is one after ``longest``
    steps. A process that dies, or says nothing for ``timeout`` seconds, is replaced.

    Raises :class:`ConfigError` for numbers below their minimum, :class:`EnvError` when the environment keeps failing,
    OSError when the disk is full, KeyboardInterrupt after keeping what was half recorded.
    """
    SEED.check("seed", seed)
    for name, value in {"steps": steps, "workers": workers, "longest": longest, "timeout": timeout}.items():
        RULES[f"collect.{name}"].check(name, value)
    tally = _Tally(store, steps)
    order = Order(make_env, explorer, steps, longest, (seed, store.next_number))
    with (
        deferred() as stopped,
        Bars(Console(file=sys.stderr, quiet=not progress)) as bar,
        RecorderPool(order, workers, timeout) as pool,
    ):
        task = bar.add_task("recording", total=steps)
        for report in pool.reports():
            tally.take(report, bar.console)
            rate = tally.seen / max(tally.seconds, 1e-9)
            bar.update(task, completed=tally.seen, shown=f"{rate:,.0f} steps/s  {tally.episodes:,} episodes")
            if stopped():  # here, and not in the middle of a message or of a file
                for rest in pool.stop():
                    tally.take(rest, bar.console)
                raise KeyboardInterrupt
    return tally.collected()


class _Tally:
    """Writes the episodes that come in and counts them."""

    def __init__(self, store: EpisodeStore, steps: int):
        self.store = store
        self.target = steps
        self.steps = self.episodes = self.terminated = self.frame_bytes = 0
        self.under_way = 0  # steps reported of episodes that are not finished
        self.actions = np.zeros(len(store.spec.action_names), np.int64)
        self.places: set[int] = set()
        self.warnings: list[str] = []
        self.start = time.monotonic()
        self.first: float | None = None  # when the first step was heard of: starting processes is not recording
        self.last = self.start  # when the last episode was written: nor is ending them

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


def env_maker(config: DictConfig) -> Callable[[], FrameSource]:
    """What builds the environment of the settings, here or in another process.

    Raises :class:`ConfigError` for a setting that has to be given and was not.
    """
    missing = sorted(OmegaConf.missing_keys(config.env))
    if missing := [key for key in missing if key != "env.name"] or missing:  # it mostly follows from the others
        raise ConfigError(f"the environment needs {', '.join(f'{key}=…' for key in missing)}")
    settings = OmegaConf.to_container(config.env, resolve=True)
    assert isinstance(settings, dict)
    check_value("env.name", Text, settings.pop("name", None))
    return functools.partial(construct, check(settings, "env"))


def build_source(config: DictConfig) -> Source:
    """The source that the settings name. Raises :class:`ConfigError` for a setting that has to be given and was not."""
    if missing := sorted(OmegaConf.missing_keys(config.source)):
        given = ", ".join(f"{key}=…" for key in missing)
        raise ConfigError(f"the source {config.source.name} needs {given}, the folder to take it from")
    source = build(OmegaConf.to_container(config.source, resolve=True), "source")
    if not isinstance(source, Source):
        raise ConfigError(f"{config.source._target_} is no source; choose one of configs/source")
    return source


def take_in(args: argparse.Namespace, config: DictConfig) -> None:
    """The command for a source that is not played: append what is not in the store yet, and say what is there.

    Raises :class:`DataError`, after everything else is stored, when some of it cannot be read.
    """
    if args.steps is not None:
        raise ConfigError(f"--steps is for source=env; of {config.source.name} everything is taken in")
    source = build_source(config)
    workers = config.collect.workers if args.workers is None else args.workers
    started = time.monotonic()
    with EpisodeStore.writer(Path(str(config.data)), source.spec) as store:
        store.verify()
        with deferred() as stopped, Bars() as bar:
            task = bar.add_task("reading", total=None)
            filled = fill(
                store, source, workers, lambda done, total: bar.update(task, completed=done, total=total), stopped
            )
        replace_text(store.path / SOURCE, OmegaConf.to_yaml(config.source, resolve=True))  # where it came from
        print(f"new       {filled.added:,} of {len(source):,}, {filled.known:,} were there, "
              f"in {time.monotonic() - started:.1f} s")  # fmt: skip
        print(_contents(store))
        if filled.unreadable:
            raise DataError(_unreadable(filled.unreadable))


def _contents(store: EpisodeStore) -> str:
    """One line on what a store holds."""
    names, sound = store.spec.action_names, len(store.spec.frame_shape) == 2
    word = "speakers" if sound else "actions" if store.steps else "classes"
    held_out = len(store.split("held_out"))
    lasting = f" ({store.frames / store.spec.rate:,.0f} s)" if sound else ""
    return (
        f"now       {store.frames:,} frames{lasting} in {len(store):,} episodes ({held_out:,} held out), "
        f"{len(names):,} {word} ({', '.join(names[:3])}{', …' * (len(names) > 3)}), at {store.path}"
    )


def _unreadable(reasons: Sequence[str]) -> str:
    """One line on what could not be read; where it is several things, one more for each of the first on stderr."""
    if len(reasons) == 1:
        return f"{reasons[0]}; everything else is stored"
    for reason in reasons[:MOST_NAMED]:
        log.warning("left out: %s", reason)
    more = f", of which the first {MOST_NAMED} are" if len(reasons) > MOST_NAMED else ","
    return f"{len(reasons):,} files could not be read{more} named above; everything else is stored"


def record(args: argparse.Namespace, config: DictConfig) -> None:
    """What the command does; see :data:`DESCRIPTION`."""
    for flag, value in (("steps", args.steps), ("workers", args.workers)):
        if value is not None:
            RULES[f"collect.{flag}"].check(f"--{flag}", value)
    (take_in if "_target_" in config.source else play)(args, config)


def play(args: argparse.Namespace, config: DictConfig) -> None:
    """The command for source=env."""
    explorer = build(OmegaConf.to_container(config.explorer, resolve=True), "explorer")
    if args.workers is not None:
        config.collect.workers = args.workers
    record_steps(config, explorer, config.collect.steps if args.steps is None else args.steps)


def record_steps(config: DictConfig, explorer: ActionSource, steps: int) -> None:
    """Let ``explorer`` play so many steps more in the environment of the settings, into their store, and say so.

    Raises what :func:`collect` raises.
    """
    settings = config.collect
    make_env = env_maker(config)
    env = make_env()
    spec = env.data_spec
    env.close()
    with EpisodeStore.writer(Path(str(config.data)), spec) as store:
        store.verify()
        result = collect(
            store,
            make_env,
            explorer,
            steps=steps,
            workers=settings.workers,
            seed=config.seed,
            longest=settings.longest,
            timeout=settings.timeout,
        )
        print(result.describe(spec.action_names))
        held_out = len(store.split("held_out"))
        print(f"now       {store.steps:,} steps in {len(store):,} episodes ({held_out:,} held out) at {store.path}")


def recorded(config: DictConfig) -> int:
    """Steps that the data folder holds already."""
    if not (Path(config.data) / "spec.json").is_file():
        return 0
    try:
        return EpisodeStore.open(config.data).steps
    except DataError:
        return 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, metavar="N", help="environment steps to record (default: collect.steps)")
    parser.add_argument("--workers", type=int, metavar="N", help="simulator processes (default: collect.workers)")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_entry_point(record, "collect", DESCRIPTION, add_flags, argv)


if __name__ == "__main__":
    sys.exit(main())
