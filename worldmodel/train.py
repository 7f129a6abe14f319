"""Train: the tokenizer, then the codes of the whole set, then the prior. Goes on where it was stopped.

python -m worldmodel.train
torchrun --nproc-per-node 2 -m worldmodel.train
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from worldmodel.config.checks import check_value
from worldmodel.config.cli import one_line, run_entry_point
from worldmodel.errors import WorldModelError
from worldmodel.runs.stages import STAGES, stages_of
from worldmodel.runs.training import train
from worldmodel.util.ranges import Count, Positive

DESCRIPTION = """\
Train a world model on the recorded episodes: first the tokenizer, then the prior over its codes.

The latest run is continued if it is unfinished and has the same settings; otherwise a new one is started. Ctrl-C
saves and stops, and the same command goes on. run=name names the run: another name starts another. Budgets are
settings too: training.tokenizer.steps, training.prior.max_seconds, …; --steps and --minutes are short for them."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="what to train (default: all)")
    parser.add_argument(
        "--tokenizer-of", metavar="RUN", help="take over the trained tokenizer of a run instead of training one"
    )
    parser.add_argument(
        "--weights-of",
        metavar="RUN",
        help="begin with the weights of a run of the same settings, to learn new episodes",
    )
    parser.add_argument("--steps", type=int, help="most steps of each stage trained")
    parser.add_argument(
        "--minutes", type=float, help="time for training: twice as much for the prior as for each stage before it"
    )


def run(args: argparse.Namespace, config: DictConfig) -> None:
    """The command, behind the parsing."""
    stages = stages_of(config, args.stage)
    check_value("--steps", Count | None, args.steps)
    check_value("--minutes", Positive | None, args.minutes)
    for stage in stages:
        if args.steps is not None:
            config.training[stage.name].steps = args.steps
        if args.minutes is not None:
            share = stage.share / sum(each.share for each in stages)
            config.training[stage.name].max_seconds = 60 * args.minutes * share
    with told_to_torchrun():
        train(config, args.stage, args.tokenizer_of, args.weights_of)


@contextlib.contextmanager
def told_to_torchrun() -> Iterator[None]:
    """Leaves a user's error where torchrun, if there is one, looks for what to end its report with."""
    try:
        yield
    except WorldModelError as error:
        if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            Path(path).write_text(json.dumps({"message": f"error: {one_line(error)}", "timestamp": int(time.time())}))
        raise


def main(argv: Sequence[str] | None = None) -> int:
    return run_entry_point(run, "train", DESCRIPTION, add_flags, argv)


if __name__ == "__main__":
    sys.exit(main())
