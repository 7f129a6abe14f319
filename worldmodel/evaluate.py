"""Measure a run on held-out episodes. A run of an environment: reconstruction, use of codes, bits of
the prior, open-loop dreams against baselines, accuracy of actions, rewards and ends, long dreams,
and loops of the environment, which are recorded once. Images: reconstruction, use of codes, bits
per dimension and their parts. Speech: bits per sample, conversions into other voices, speakers and
phonemes in the codes. Prints a table and writes metrics.json, pictures, plots and report.html to
the folder evaluation/ of the run.

In Python, evaluate(WorldModel.load(run), EpisodeStore.open(data), QUICK) of
worldmodel.evaluation.suite returns all figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge
from rich.console import Console

from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import VOICE_TEMPERATURE, add_number
from worldmodel.errors import ConfigError
from worldmodel.util.files import check_writable
from worldmodel.util.progress import progress_bars
from worldmodel.util.ranges import Count, Positive

if TYPE_CHECKING:
    from worldmodel.evaluation.suite import Settings

FLAGS_OF = {
    "quick": "WORLD",
    "windows": "WORLD",
    "context": "WORLD",
    "top_k": "WORLD",
    "skip": "WORLD",
    "timit": "SPEECH",
    "voice_temperature": "SPEECH",
}
"""Flags that only a kind of run has."""

SKIPPED = {"inverse": "budget", "long": "long_dreams", "loops": "loops", "mean": "samples"}
"""Parts that --skip omits, and the setting of each, which is then None."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick",
        action="store_true",
        help="environment: fewer windows, 15 steps, no classifier of actions, no long dreams, no loops",
    )
    # Actions are shuffled among windows.
    add_number(parser, "--windows", Annotated[int, Ge(2)], "environment: number of held-out windows to dream")
    add_number(parser, "--context", Count, "environment: number of seen frames (32 with a memory, else as in training)")
    add_number(parser, "--top-k", Count, "environment: draw each code from the K most probable ones", metavar="K")
    parser.add_argument(
        "--skip",
        action="append",
        choices=list(SKIPPED),
        help="environment: omit the classifier of actions, the long dreams, the loops, the mean of dreams; repeatable",
    )
    parser.add_argument(
        "--timit", metavar="FOLDER", help="speech: TIMIT, whose phone labels are used to score codes and conversions"
    )
    add_number(
        parser, "--voice-temperature", Positive, f"speech: temperature of a WaveNet ({VOICE_TEMPERATURE})", metavar="T"
    )
    parser.add_argument("--compare", metavar="RUN,RUN", help="compare the bits per dimension of evaluated runs")


@entry_point("evaluate", __doc__, add_flags)
def main(args: argparse.Namespace, config: Config) -> None:
    """Find the run and its data, measure, print, write."""
    from worldmodel.evaluation import images_report  # only now, since it imports torch
    from worldmodel.evaluation.report import table
    from worldmodel.runs.folder import PRIOR, TOKENIZER, find_run
    from worldmodel.runs.kind import Kind, choose_run, kind_of_run

    console = Console(markup=False)  # names may have brackets
    if args.compare is not None:
        runs = [find_run(config.runs, name.strip()) for name in args.compare.split(",")]
        found = images_report.read_bounds(runs)
        heading = {"run": ", ".join(run.name for run in runs), "environment": "compared"}
        console.print(table(heading, images_report.compared_lines(found)))
        console.print(str(images_report.save_chart(found, Path(config.runs) / "bits_per_dim.png")), soft_wrap=True)
        return
    run = choose_run(args.overrides, config, TOKENIZER)
    kind = kind_of_run(run)
    if kind is Kind.WORLD:  # the others are measured without a prior, too
        run = choose_run(args.overrides, config, PRIOR, kind)
    for name, owner in FLAGS_OF.items():
        if getattr(args, name) and Kind[owner] is not kind:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is for a run of {Kind[owner]}, and the run {run.name} is of {kind}")
    check_writable(run / "evaluation")
    figures, lines, pictures = measure(args, config, run, console)
    console.print(table(figures, lines))
    console.print(f"{run / 'evaluation/report.html'}  ({pictures}, metrics.json beside it)", soft_wrap=True)


def measure(
    args: argparse.Namespace, config: Config, run: Path, console: Console
) -> tuple[dict[str, Any], list[tuple[str, str]], str]:
    """The figures of a run, the lines of its table, and the names of the other files in its report."""
    from worldmodel.dreaming.models import load_model
    from worldmodel.evaluation import images, images_report, report, suite
    from worldmodel.runs.folder import given_data, open_data
    from worldmodel.runs.kind import Kind, kind_of_run
    from worldmodel.runs.loops import recorded_loops

    store = open_data(run, given_data(args.overrides, config))
    store.verify()
    model: Any = load_model(run, str(config.device))
    kind, seed = kind_of_run(run), int(config.seed)
    with progress_bars(console) as progress:
        if kind is Kind.WORLD:
            settings, folder = settings_of(args, seed), run / "evaluation"
            loops = recorded_loops(folder / "loops", run, config, progress) if settings.loops else {}
            about = {"folder": folder, "run": run.name, "command": args.command, "progress": progress}
            figures = suite.evaluate(model, store, settings, recorded_loops=loops, **about)
            pictures = ["report.png", "strips.png", *(["long_dreams.png"] if figures["long_dreams"] else [])]
            pictures += [f"{suite.loops.picture_name(script)}.png" for script in loops]
            return figures, report.rows(figures), ", ".join(pictures)
        if kind is Kind.IMAGES:
            figures = images.evaluate_images(run, model, store, seed, args.command, progress)
            return figures, images_report.lines(figures), "pictures.png, report.png"
        from worldmodel.speech.evaluation import voices, voices_report  # an optional extra

        timit = voices.find_timit(args.timit, store)
        figures = voices.evaluate_voices(
            run, model, store, timit, seed, args.command, progress, args.voice_temperature or VOICE_TEMPERATURE
        )
        return figures, voices_report.lines(figures), "spectrograms.png, report.png, sounds"


def settings_of(args: argparse.Namespace, seed: int) -> Settings:
    """How much is measured of a world model."""
    from worldmodel.evaluation.suite import COMPLETE, QUICK

    chosen = {name: getattr(args, name) for name in ("windows", "context") if getattr(args, name) is not None}
    settings = dataclasses.replace(QUICK if args.quick else COMPLETE, seed=seed, top_k=args.top_k, **chosen)
    omitted: dict[str, Any] = {SKIPPED[name]: None for name in args.skip or ()}
    return dataclasses.replace(settings, **omitted)


if __name__ == "__main__":
    sys.exit(main())
