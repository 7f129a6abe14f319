"""``python -m worldmodel.evaluate``: how good is a run, on held-out episodes.

The same in Python: ``evaluate(WorldModel.load(run), EpisodeStore.open(data), QUICK)`` returns all numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from worldmodel.config.cli import run_entry_point
from worldmodel.data.store import SOURCE, EpisodeStore
from worldmodel.errors import ConfigError
from worldmodel.evaluation import compare, stills_report
from worldmodel.evaluation.openloop import Progress
from worldmodel.evaluation.report import rows, table
from worldmodel.evaluation.stills import evaluate_stills
from worldmodel.evaluation.suite import QUICK, Settings, evaluate
from worldmodel.runs.folder import PRIOR, TOKENIZER, choose_run, find_run, load_config, load_spec
from worldmodel.runs.kind import has_past
from worldmodel.speech.evaluation import voices_report
from worldmodel.speech.evaluation.voices import evaluate_voices
from worldmodel.speech.voice import is_sound
from worldmodel.util.progress import Bars
from worldmodel.world import WorldModel

__all__ = ["QUICK", "Settings", "evaluate", "main"]

DESCRIPTION = """\
Measure a run on held-out episodes. Of an environment: reconstruction, use of codes, bits of the prior, open-loop dreams
against baselines, actions obeyed, rewards and ends. Of images: reconstruction, use of codes, bits per dimension and
their parts, over all held-out images. Of speech: bits a sample, conversions into other voices, and what the codes know
of voices and phonemes. Prints a table; writes metrics.json, pictures, plots and report.html to the
run's folder evaluation/."""


@contextlib.contextmanager
def bars(console: Console) -> Iterator[Progress]:
    """A progress bar for each work that reports."""
    with Bars(console, transient=True) as display:
        tasks: dict[str, Any] = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = display.add_task(name, total=total)
            display.update(tasks[name], completed=done, total=total)

        yield report


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="fewer windows, 15 steps, no classifier of actions")
    parser.add_argument(
        "--windows", type=int, metavar="N", help=f"held-out windows of the open loop (default {Settings.windows})"
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="sample only the N likeliest codes at temperature 1")
    parser.add_argument(
        "--compare", metavar="RUN,RUN", help="put the bits per dimension of evaluated runs side by side, as a chart too"
    )
    parser.add_argument(
        "--timit",
        metavar="FOLDER",
        help="of speech: TIMIT, whose aligned phones say what codes and converted speech say",
    )
    parser.add_argument("--skip", choices=["inverse"], help="inverse: do not read the actions off the dreams")


def settings_of(args: argparse.Namespace, seed: int) -> Settings:
    """Raises :class:`ConfigError` for a count that is too small."""
    settings = dataclasses.replace(QUICK if args.quick else Settings(), seed=seed, top_k=args.top_k)
    if args.windows is not None:
        if args.windows < 2:
            raise ConfigError(f"--windows {args.windows}: actions are shuffled among windows, at least 2 are needed")
        settings = dataclasses.replace(settings, windows=args.windows)
    if args.top_k is not None and args.top_k < 1:
        raise ConfigError(f"--top-k {args.top_k}: at least one code must be left to choose from")
    return dataclasses.replace(settings, budget=None) if args.skip else settings


def compare_runs(runs: Sequence[Path], folder: Path) -> None:
    """Print the table of several evaluated runs and draw it."""
    found = compare.read(runs)
    console = Console()
    console.print(table({"run": ", ".join(run.name for run in runs), "environment": "compared"}, compare.lines(found)))
    console.print(str(compare.save_chart(found, folder / "bits_per_dim.png")), soft_wrap=True)


def refuse_flags_of_time(args: argparse.Namespace, run: Path) -> None:
    """Raises :class:`ConfigError` for a flag that says nothing of a run of images or of sound."""
    for name in ("quick", "windows", "top_k", "skip"):
        if getattr(args, name):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} goes with videos, and the run {run.name} is of none: all held out is scored")


def find_timit(args: argparse.Namespace, store: EpisodeStore) -> Path | None:
    """The folder of TIMIT: ``--timit``, or where recordings of TIMIT were taken from, if that is still there.

    Raises :class:`ConfigError` for a folder that is none.
    """
    if args.timit is not None:
        given = Path(args.timit).expanduser()
        if not given.is_dir():
            raise ConfigError(f"--timit {args.timit} is no folder; it names that of TIMIT, with .phn beside recordings")
        return given
    if store.spec.env_id != "timit" or not (store.path / SOURCE).is_file():
        return None
    path = Path(str(OmegaConf.select(OmegaConf.load(store.path / SOURCE), "path"))).expanduser()
    return path if path.is_dir() else None


def measure(args: argparse.Namespace, config: DictConfig, command: str) -> None:
    """Find the run and its data, measure, print, write."""
    if args.compare is not None:
        compare_runs([find_run(config.runs, name.strip()) for name in args.compare.split(",")], Path(config.runs))
        return
    settings = settings_of(args, int(config.seed))
    run = choose_run(args.overrides, config)
    alone = is_sound(load_spec(run)) or not has_past(load_config(run))  # measured without a prior, too
    if not alone or not (run / TOKENIZER).is_file():
        run = choose_run(args.overrides, config, holding=TOKENIZER if alone else PRIOR)
    sound = is_sound(load_spec(run))
    stills = not sound and not has_past(load_config(run))
    # The run remembers what it was trained on, whatever environment the defaults of this command line name.
    given = any(override.lstrip("+").startswith("data=") for override in args.overrides)
    data = config.data if given else load_config(run).data
    store = EpisodeStore.open(data)
    store.verify()
    console = Console()
    folder = run / "evaluation"
    if args.timit is not None and not sound:
        raise ConfigError(f"--timit goes with speech, and the run {run.name} is of pictures")
    if sound:
        refuse_flags_of_time(args, run)
        with bars(console) as progress:
            spoken = evaluate_voices(
                run, store, find_timit(args, store), config.device, int(config.seed), command, progress
            )
        console.print(table(spoken, voices_report.lines(spoken)))
        console.print(f"{folder / 'report.html'}  (spectrograms.png, report.png, sounds, metrics.json beside it)",
                      soft_wrap=True)  # fmt: skip
        return
    if stills:
        refuse_flags_of_time(args, run)
        with bars(console) as progress:
            measured = evaluate_stills(run, store, config.device, int(config.seed), command, progress)
        console.print(table(measured, stills_report.lines(measured)))
        console.print(f"{folder / 'report.html'}  (pictures.png, report.png, metrics.json beside it)", soft_wrap=True)
        return
    world = WorldModel.load(run, device=config.device)
    with bars(console) as progress:
        found = evaluate(
            world,
            store,
            settings,
            folder=folder,
            run=run.name,
            command=command,
            progress=progress,
        )
    console.print(table(found, rows(found)))
    console.print(f"{folder / 'report.html'}  (report.png, strips.png, metrics.json beside it)", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "-m", "worldmodel.evaluate", *words])
    return run_entry_point(functools.partial(measure, command=command), "evaluate", DESCRIPTION, add_flags, words)


if __name__ == "__main__":
    sys.exit(main())
