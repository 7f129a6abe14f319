"""``worldmodel <command> …``, the same as ``python -m worldmodel.<command> …``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import worldmodel

COMMANDS = {
    "quickstart": "collect, train and dream on a laptop, in minutes",
    "collect": "record episodes of an environment",
    "train": "train the tokenizer, then the prior; goes on where it was stopped",
    "dream": "dream a video under actions of your choice",
    "evaluate": "measure a run on held-out episodes",
    "export": "write the episodes as a Minari data set or as npz files",
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: worldmodel COMMAND [flags] [key=value …]",
            "",
            *lines,
            "",
            "worldmodel COMMAND --help says more; python -m worldmodel.COMMAND does the same.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Hands the rest of the line to the command's own ``main`` and returns its exit code; 2 for an unknown command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"worldmodel {worldmodel.__version__}")
        return 0
    command, *rest = words
    if command not in COMMANDS:
        print(f"error: unknown command {command!r}; choose {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    # As for python -m, so that env.id=my_module:MyEnv-v0 is found here; behind the rest, so that it hides nothing.
    if not sys.flags.safe_path and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    # Imported only now: --help should not wait for torch, and collect not for what dream needs.
    return int(importlib.import_module(f"worldmodel.{command}").main(rest))


if __name__ == "__main__":
    sys.exit(main())
