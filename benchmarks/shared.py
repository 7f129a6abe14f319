"""Measure imagination of one process alone and of two at the same time on the same cores, with the default number of
threads, which adapts to what other processes use, with a fixed one, and with one thread. Each figure is the sum of the
processes' frames per second, and all alternatives are measured in turn. Run it on an idle machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.run import add_report, heading, machine, table, write_report
from benchmarks.subject import open_subject
from benchmarks.timing import Figure
from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import add_number
from worldmodel.util.ranges import Count

SETTINGS = {"adaptive": {}, "fixed": {"WORLDMODEL_FIXED_THREADS": "1"}, "one thread": {"OMP_NUM_THREADS": "1"}}
BATCH, HORIZON = 64, 8


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--seconds", Count, "of each measurement, after a start of 3 s that is not counted (8)", 8)
    parser.add_argument("--child", type=float, metavar="TIME", help=argparse.SUPPRESS)
    add_report(parser, 3)


@entry_point("benchmarks.shared", __doc__, add_flags)
def main(args: argparse.Namespace, config: Config) -> None:
    if args.child is not None:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            print("frames", imagine(config, args.overrides, Path(folder), args.child, args.seconds))
        return
    where, console = machine(torch.device("cpu")), Console()
    console.print(heading(where), highlight=False, soft_wrap=True)
    rates: dict[tuple[str, int], list[float]] = {(name, n): [] for name in SETTINGS for n in (1, 2)}
    for _ in range(args.repeat):
        for name, processes in rates:
            rates[name, processes].append(together(args.overrides, name, processes, args.seconds))
    figures = [Figure.of(f"{name}, {n} processes", values, "frames/s") for (name, n), values in rates.items()]
    alone = rates["adaptive", 1]
    figures.append(Figure.ratio("adaptive: two / one", rates["adaptive", 2], alone))
    figures.append(Figure.ratio("one process: adaptive / fixed", alone, rates["fixed", 1]))
    console.print(table("imagination on shared cores", figures))
    write_report(args.out, {"machine": where, "figures": figures})


def together(overrides: list[str], name: str, processes: int, seconds: int) -> float:
    """Frames per second of so many processes in sum. All begin at the same time, 30 seconds from now."""
    start = time.time() + 30
    command = [sys.executable, "-m", "benchmarks.shared", *overrides, f"--seconds={seconds}", f"--child={start}"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    children = [
        subprocess.Popen(command, env={**environment, **SETTINGS[name]}, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    return sum(float(child.communicate()[0].split("frames ")[1]) for child in children)


def imagine(config: Config, overrides: list[str], scratch: Path, start: float, seconds: int) -> float:
    """Frames per second of this process, from 3 seconds after ``start`` on."""
    subject = open_subject(config, overrides, scratch)
    [world] = subject.worlds(["bf16"]).values()
    seen, known = subject.seen(max(1, world.prior.context), BATCH)
    generator = torch.Generator().manual_seed(0)
    frames, begin = 0, start + 3
    time.sleep(max(0.0, start - time.time()))
    while (now := time.time()) < begin + seconds:
        actions = torch.randint(world.prior.num_actions, (BATCH, HORIZON), generator=generator)
        dream = world.imagine(seen, actions, seen_actions=known, generator=generator)
        frames += dream.frames.shape[:2].numel() * (now >= begin)
    return frames / (time.time() - begin)


if __name__ == "__main__":
    sys.exit(main())
