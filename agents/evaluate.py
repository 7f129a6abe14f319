"""``python -m worldmodel.agents.evaluate``: returns of an agent in the real environment, beside those of its dreams."""

from __future__ import annotations

import argparse
import functools
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from worldmodel.config.cli import run_entry_point
from worldmodel.config.flags import add_number
from worldmodel.errors import ConfigError
from worldmodel.util.ranges import Count, NonNegative, Whole

if TYPE_CHECKING:
    from omegaconf import DictConfig

DESCRIPTION = """\
Let an agent play in the real environment: return, length and success with 95 % intervals, plots
and a video. With a world model (run=…, or the run that the agent plays with), also its dream of
what the agent did, and how the dreamt return agrees with the obtained one.

Episode i is played under seeds that follow from seed and i alone, the same for every agent. Writes
metrics.json, report.png, episodes.mp4, dream.mp4 (a short one also as a gif) and of a planner
plan.mp4 (an episode, and what was imagined for each of its frames 1, 4 and 8 steps before) to
<run>/agents/<agent>-<env>/, or runs/agents/… where there is no run."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument(
        "--success",
        type=float,
        metavar="RETURN",
        help="least return of a success (an episode that ended by itself, its last two rewards positive together)",
    )
    add_number(parser, "--horizon", Count, "most steps of a stretch that is dreamt (50)", 50)
    add_number(parser, "--starts", Count, "stretches of every episode that are dreamt (4)", 4)
    add_number(parser, "--temperature", NonNegative, "of these dreams (1)", 1.0, "T")
    add_number(parser, "--videos", Whole, "episodes in the videos (3); 0: none", 3)
    parser.add_argument("--name", help="what the agent is called in files and tables (the choice of agent=)")


def measure(args: argparse.Namespace, config: DictConfig, command: str) -> None:
    """Play, measure, print, write."""
    if args.name is not None and not re.fullmatch(r"[\w.+@-]*\w[\w.+@-]*", args.name):
        raise ConfigError(f"--name {args.name!r}: a folder is called that; use letters, digits and - _ . + @")

    from worldmodel.agents import report  # only now, since it imports torch
    from worldmodel.agents.choice import name_of
    from worldmodel.agents.evaluation import Settings, evaluate

    from worldmodel.evaluation.report import table

    settings = Settings(args.success, args.horizon, args.starts, args.temperature, args.videos)
    agent_name = name_of(args.overrides, config)
    found = evaluate(config, settings, agent_name, args.name or agent_name, command)
    console = Console()
    shown = {"run": found["agent"], "environment": found["environment"]}
    console.print(table(shown, report.lines(found)))
    console.print(f"{Path(found['folder']) / 'metrics.json'}  (report.png and videos beside it)", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "-m", "worldmodel.agents.evaluate", *words])
    return run_entry_point(
        functools.partial(measure, command=command), "worldmodel.agents.evaluate", DESCRIPTION, add_flags, words
    )


if __name__ == "__main__":
    sys.exit(main())
