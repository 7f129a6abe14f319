"""Train a model on the recorded episodes: first the tokenizer, then the prior over its codes.

The latest run is continued if it is unfinished and has the same settings; otherwise a new one is
started. Ctrl-C saves and stops, and the same command resumes the training. run=name names the run:
a new name starts a new run, and more steps for a finished run continue its training. Budgets are
settings (training.tokenizer.steps, training.prior.max_seconds, …), which --steps and --minutes set
for all stages. On two GPUs, and on several machines (docs/scale.md):

  torchrun --nproc-per-node 2 -m worldmodel.train
"""

import argparse
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from worldmodel.config.cli import Config, one_line
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import add_number
from worldmodel.errors import RunError, WorldModelError
from worldmodel.util.ranges import Count, Positive


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", default="all", help="what to train: tokenizer, second or prior (all)")
    parser.add_argument("--tokenizer-of", metavar="RUN", help="copy the tokenizer of another run")
    parser.add_argument("--weights-of", metavar="RUN", help="start from the weights of a run with the same settings")
    parser.add_argument("--multirun", action="store_true", help="one run for each value: --multirun seed=0,1,2")
    add_number(parser, "--steps", Count, "number of steps of each stage (training.<stage>.steps)")
    add_number(parser, "--minutes", Positive, "time of all stages; the prior gets 7 parts of it, any other stage 3")


@contextlib.contextmanager
def lost_processes() -> Iterator[None]:
    """Turns what gloo and NCCL raise when another process has ended into a :class:`RunError`."""
    try:
        yield
    except RuntimeError as error:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and re.search("gloo|nccl", str(error), re.IGNORECASE):
            reason = one_line(error).partition(". ")[0]
            raise RunError(f"another process of this training cannot be reached ({reason}); "
                           "a restart continues from the last checkpoint") from error  # fmt: skip
        raise


@entry_point("train", __doc__, add_flags, sweeps=True)
def main(args: argparse.Namespace, config: Config) -> None:
    """Share the budget among the stages and train them."""
    from worldmodel.runs.stages import share_seconds, stages_of  # only now, since they import torch
    from worldmodel.runs.training import train

    stages = stages_of(config, args.stage)
    for stage in stages if args.steps is not None else ():
        config.training[stage.name].steps = args.steps
    if args.minutes is not None:
        share_seconds(config, stages, 60 * args.minutes)
    try:
        with lost_processes():
            train(config, args.stage, args.tokenizer_of, args.weights_of)
    except WorldModelError as error:
        if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun ends its report with what this file holds
            Path(path).write_text(json.dumps({"message": f"error: {one_line(error)}", "timestamp": int(time.time())}))
        raise


if __name__ == "__main__":
    sys.exit(main())
