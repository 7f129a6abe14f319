"""Evaluate an agent in the real environment: return, length and success with 95 % intervals, plots
and a video. With a world model (run=…, or the run of the agent), also dreams under the actions of
the agent, and the correlation of dreamt and obtained returns.

The seeds of episode i depend only on seed and i, so they are the same for every agent. Writes
metrics.json, report.png, episodes.mp4, dream.mp4 (a short one also as a GIF) and for a planner
plan.mp4 (an episode, and the frames that were imagined 1, 4 and 8 steps before). The folder is
<run>/agents/<agent>-<env>/, or runs/agents/… without a run.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import add_number
from worldmodel.errors import ConfigError
from worldmodel.util.ranges import Count, NonNegative, Whole


def add_flags(parser: argparse.ArgumentParser) -> None:
    success = "return of a success (default: the episode ended by itself, the sum of its last two rewards is > 0)"
    add_number(parser, "--success", float, success, metavar="RETURN")
    add_number(parser, "--horizon", Count, "largest number of steps of a dreamt segment (50)", 50)
    add_number(parser, "--starts", Count, "dreamt segments per episode (4)", 4)
    add_number(parser, "--temperature", NonNegative, "temperature of these dreams (1)", 1.0, "T")
    add_number(parser, "--videos", Whole, "number of episodes in the videos; 0: no videos (3)", 3)
    parser.add_argument("--name", help="name of the agent in files and tables (default: the value of agent=)")


@entry_point("worldmodel.agents.evaluate", __doc__, add_flags)
def main(args: argparse.Namespace, config: Config) -> None:
    from worldmodel.agents import report  # slow: imports torch
    from worldmodel.agents.choice import agent_name_of
    from worldmodel.agents.evaluation import Settings, evaluate
    from worldmodel.evaluation.report import table
    from worldmodel.runs.folder import is_folder_name

    if args.name is not None and not is_folder_name(args.name):
        raise ConfigError(f"--name {args.name!r}: the name becomes that of a folder; it cannot begin with . or hold /")
    settings = Settings(args.success, args.horizon, args.starts, args.temperature, args.videos)
    agent_name = agent_name_of(args.overrides, config)
    metrics = evaluate(config, settings, agent_name, args.name or agent_name, args.command)
    console = Console(markup=False)  # names may have brackets
    shown = {"run": metrics["agent"], "environment": metrics["environment"]}
    console.print(table(shown, report.lines(metrics)))
    console.print(f"{Path(metrics['folder']) / 'metrics.json'}  (report.png and videos beside it)", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
