"""Compare evaluations of agents: interquartile mean, mean and success over all episodes of all seeds,
with 95 % intervals over seeds and episodes, and the probability that an episode of one agent is
better than one of another. Files of the same agent (its name in metrics.json) are its seeds. For
agents trained in the real environment, returns during training are shown, too. Writes
comparison.json and comparison.png.
"""

import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from worldmodel.config.cli import Parser
from worldmodel.config.entry_point import exit_code
from worldmodel.util.files import check_writable, expanded, replace_text


def main(argv: Sequence[str] | None = None) -> int:
    """The command line, which takes no settings; returns the exit code."""
    return exit_code(functools.partial(_compare, argv))


def _compare(argv: Sequence[str] | None) -> None:
    parser = Parser("python -m worldmodel.agents.compare", description=__doc__)
    parser.add_argument("files", nargs="+", type=expanded, metavar="metrics.json", help="evaluations, or their folders")
    where = "where to write (default: the current folder)"
    parser.add_argument("--to", type=expanded, default=Path("."), metavar="FOLDER", help=where)
    args = parser.parse_args(argv)

    from worldmodel.agents.comparison import compare, learning, lines, read, save_chart  # slow: torch
    from worldmodel.evaluation.report import table

    check_writable(args.to)
    agents = read(args.files)
    result = compare(agents) | {"learning": learning(agents)}
    console = Console(markup=False)  # names may have brackets
    console.print(table({"run": result["env"], "environment": result["environment"]}, lines(result)))
    replace_text(args.to / "comparison.json", json.dumps(result, indent=1))
    console.print(f"{save_chart(result, args.to / 'comparison.png')}  (comparison.json beside it)", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
