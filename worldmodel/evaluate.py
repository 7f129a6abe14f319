"""``python -m worldmodel.evaluate``: how good is a run, on held-out episodes.

The same in Python: ``evaluate(WorldModel.load(run), EpisodeStore.open(data), QUICK)`` of
:mod:`worldmodel.evaluation.suite` returns all figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge
from rich.console import Console

from worldmodel.config.cli import run_entry_point
from worldmodel.config.flags import add_number
from worldmodel.errors import ConfigError
from worldmodel.util.progress import progress_bars
from worldmodel.util.ranges import Count

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from worldmodel.data.store import EpisodeStore
    from worldmodel.evaluation.suite import Settings

DESCRIPTION = """\
Measure a run on held-out episodes. An environment: reconstruction, use of codes, bits of the prior,
open-loop dreams against baselines, obeyed actions, rewards and ends. Images: reconstruction, use of
codes, bits per dimension and their parts. Speech: bits per sample, conversions into other voices,
speakers and phonemes in the codes. Prints a table; writes metrics.json, pictures, plots and
report.html to the run's folder evaluation/."""

FLAGS_OF = {"quick": "WORLD", "windows": "WORLD", "top_k": "WORLD", "skip": "WORLD", "timit": "SPEECH"}
"""Flags that only a kind of run has."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument(
        "--quick", action="store_true", help="environment: fewer windows, 15 steps, no classifier of actions"
    )
    # Actions are shuffled among windows.
    add_number(parser, "--windows", Annotated[int, Ge(2)], "environment: held-out windows of the open loop")
    add_number(parser, "--top-k", Count, "environment: draw each code from the K most likely ones", metavar="K")
    parser.add_argument("--skip", choices=["inverse"], help="environment: do not read the actions off the dreams")
    parser.add_argument(
        "--timit", metavar="FOLDER", help="speech: TIMIT, whose aligned phones say what codes and converted speech say"
    )
    parser.add_argument("--compare", metavar="RUN,RUN", help="compare the bits per dimension of evaluated runs")


def measure(args: argparse.Namespace, config: DictConfig, command: str) -> None:
    """Find the run and its data, measure what its kind has, print, write."""
    from worldmodel.data.store import EpisodeStore  # only now, since what follows imports torch
    from worldmodel.dreaming.load import load_model
    from worldmodel.runs.folder import PRIOR, TOKENIZER, find_run, given_data, load_config
    from worldmodel.runs.kind import Kind, choose_run, kind_of_run

    if args.compare is not None:
        compare_runs([find_run(config.runs, name.strip()) for name in args.compare.split(",")], Path(config.runs))
        return
    run = choose_run(args.overrides, config, TOKENIZER)
    kind = kind_of_run(run)
    if kind is Kind.WORLD:  # the others are measured without a prior, too
        run = choose_run(args.overrides, config, PRIOR, kind)
    for name, owner in FLAGS_OF.items():
        if getattr(args, name) and Kind[owner] is not kind:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is for a run of {Kind[owner]}, and the run {run.name} is of {kind}")
    store = EpisodeStore.open(given_data(args.overrides, config) or load_config(run).data)
    store.verify()
    measure_kind = {Kind.WORLD: measure_world, Kind.IMAGES: measure_images, Kind.SPEECH: measure_speech}[kind]
    measure_kind(args, run, load_model(run, str(config.device)), store, int(config.seed), command)


def measure_world(
    args: argparse.Namespace, run: Path, model: Any, store: EpisodeStore, seed: int, command: str
) -> None:
    """Open-loop dreams, bits of the prior, obeyed actions."""
    from worldmodel.evaluation.report import rows, table
    from worldmodel.evaluation.suite import evaluate

    folder, console = run / "evaluation", Console()
    with progress_bars(console) as progress:
        found = evaluate(
            model,
            store,
            settings_of(args, seed),
            folder=folder,
            run=run.name,
            command=command,
            progress=progress,
        )
    console.print(table(found, rows(found)))
    console.print(f"{folder / 'report.html'}  (report.png, strips.png, metrics.json beside it)", soft_wrap=True)


def measure_images(
    args: argparse.Namespace, run: Path, model: Any, store: EpisodeStore, seed: int, command: str
) -> None:
    """Reconstruction, use of codes, bits per dimension."""
    from worldmodel.evaluation import images_report
    from worldmodel.evaluation.images import evaluate_images
    from worldmodel.evaluation.report import table

    console = Console()
    with progress_bars(console) as progress:
        found = evaluate_images(run, model, store, seed, command, progress)
    console.print(table(found, images_report.lines(found)))
    report = run / "evaluation" / "report.html"
    console.print(f"{report}  (pictures.png, report.png, metrics.json beside it)", soft_wrap=True)


def measure_speech(
    args: argparse.Namespace, run: Path, model: Any, store: EpisodeStore, seed: int, command: str
) -> None:
    """Bits per sample, conversions, speakers and phonemes in the codes."""
    from worldmodel.evaluation.report import table
    from worldmodel.speech.evaluation import voices_report
    from worldmodel.speech.evaluation.voices import evaluate_voices, find_timit

    console = Console()
    timit = find_timit(args.timit, store)
    with progress_bars(console) as progress:
        found = evaluate_voices(run, model, store, timit, seed, command, progress)
    console.print(table(found, voices_report.lines(found)))
    report = run / "evaluation" / "report.html"
    console.print(f"{report}  (spectrograms.png, report.png, sounds, metrics.json beside it)", soft_wrap=True)


def settings_of(args: argparse.Namespace, seed: int) -> Settings:
    """How much is measured of a world model."""
    from worldmodel.evaluation.suite import QUICK, Settings

    settings = dataclasses.replace(QUICK if args.quick else Settings(), seed=seed, top_k=args.top_k)
    if args.windows is not None:
        settings = dataclasses.replace(settings, windows=args.windows)
    return dataclasses.replace(settings, budget=None) if args.skip else settings


def compare_runs(runs: Sequence[Path], folder: Path) -> None:
    """Print the table of several evaluated runs and draw it."""
    from worldmodel.evaluation import compare
    from worldmodel.evaluation.report import table

    found, console = compare.read(runs), Console()
    console.print(table({"run": ", ".join(run.name for run in runs), "environment": "compared"}, compare.lines(found)))
    console.print(str(compare.save_chart(found, folder / "bits_per_dim.png")), soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "-m", "worldmodel.evaluate", *words])
    return run_entry_point(functools.partial(measure, command=command), "evaluate", DESCRIPTION, add_flags, words)


if __name__ == "__main__":
    sys.exit(main())
