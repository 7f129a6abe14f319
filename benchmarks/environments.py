"""Play every installed environment, or those of --only, with uniform actions in one process.

Prints a row of Markdown for each: its name, frame shape, actions, and frames per second with all
wrappers (median and highest of the parts), or the reason why it cannot be made.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from rich.console import Console

from benchmarks.run import listed
from worldmodel.config.cli import Config, choices, compose_config
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import add_number
from worldmodel.errors import WorldModelError
from worldmodel.media import gallery, save_png
from worldmodel.runs.data import env_maker

SHEET_FRAMES = 8  # per environment


def add_flags(parser: argparse.ArgumentParser) -> None:
    which = "names in configs/env (default: all)"
    parser.add_argument("--only", type=listed(choices()["env"]), metavar="A,B", help=which)
    add_number(parser, "--steps", Annotated[int, Ge(SHEET_FRAMES)], "steps per environment (400)", 400)
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write some frames of each as one PNG")


@entry_point("benchmarks.environments", __doc__, add_flags)
def main(args: argparse.Namespace, config: Config) -> None:
    """Run the benchmark. Overrides such as ``env.size=48`` apply to every environment."""
    console, rows = Console(), []
    for name in args.only or choices()["env"]:
        try:
            line, frames = measure([f"env={name}", *args.overrides], args.steps)
        except WorldModelError as error:
            line = f"| `{name}` | – | {error} | – |"
        else:
            rows.append((name, torch.from_numpy(frames)))
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if args.sheet is not None and rows:
        save_png(args.sheet, gallery(rows))


def measure(overrides: Sequence[str], steps: int) -> tuple[str, np.ndarray]:
    """The row of an environment, and frames spread over its steps, (SHEET_FRAMES, C, H, W) uint8."""
    env = env_maker(compose_config(overrides))()
    spec = env.data_spec
    actions = np.random.default_rng(0).integers(len(spec.action_names), size=steps)
    env.reset(seed=0)
    frames, rates = [], []
    for part in np.array_split(actions, SHEET_FRAMES):
        started = time.perf_counter()
        for action in part.tolist():
            frame, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        rates.append(len(part) / (time.perf_counter() - started))
        frames.append(frame)
    env.close()
    rate = f"{np.median(rates):,.0f} ({max(rates):,.0f})"
    shape = "×".join(map(str, spec.frame_shape))
    line = f"| `{overrides[0].removeprefix('env=')}` | {shape} | {', '.join(spec.action_names)} | {rate} |"
    return line, np.stack(frames)


if __name__ == "__main__":
    sys.exit(main())
