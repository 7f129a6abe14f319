"""Collect: play an environment with an explorer and record the episodes, or take in images and recordings."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from worldmodel.config.cli import run_entry_point
from worldmodel.config.flags import add_number
from worldmodel.errors import ConfigError, DataError
from worldmodel.util.ranges import Count

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from worldmodel.data.store import EpisodeStore

DESCRIPTION = """\
Play an environment with an explorer and record what it sees, in several processes. The same
command again appends. It can be stopped at any moment: only the episodes then being recorded
are lost, and after Ctrl-C or SIGTERM not even these.

With source=cifar10, images, imagenet, dmlab, minari, npz, vctk or timit, and source.path=…, take
in what lies in that folder instead. The same command again takes in what is missing: what is new
in the folder, what an interruption left, what was damaged since."""

MOST_NAMED = 10  # files that cannot be read, one line each
Workers = Annotated[int, Ge(1), Le(1024)]

log = logging.getLogger(__name__)


def take_in(args: argparse.Namespace, config: DictConfig) -> None:
    """The command for a source that is not played: append what is not in the store yet, and say what is there.

    Raises :class:`DataError`, after everything else is stored, when some of it cannot be read.
    """
    from omegaconf import OmegaConf

    from worldmodel.data.sources import fill
    from worldmodel.data.store import SOURCE, EpisodeStore
    from worldmodel.runs.data import build_source
    from worldmodel.util.files import replace_text
    from worldmodel.util.interrupts import deferred
    from worldmodel.util.progress import Bars

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
    (take_in if "_target_" in config.source else play)(args, config)


def play(args: argparse.Namespace, config: DictConfig) -> None:
    """The command for source=env."""
    from omegaconf import OmegaConf

    from worldmodel.config.checks import build
    from worldmodel.runs.data import record_steps

    explorer = build(OmegaConf.to_container(config.explorer, resolve=True), "explorer")
    if args.workers is not None:
        config.collect.workers = args.workers
    record_steps(config, explorer, config.collect.steps if args.steps is None else args.steps)


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--steps", Count, "environment steps to record (collect.steps)")
    add_number(parser, "--workers", Workers, "simulator processes (collect.workers)")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_entry_point(record, "collect", DESCRIPTION, add_flags, argv)


if __name__ == "__main__":
    sys.exit(main())
