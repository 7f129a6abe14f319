"""``worldmodel <command> …``, the same as ``python -m worldmodel.<command> …``."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence

import worldmodel

COMMANDS = {
    "quickstart": "collect, train, dream and evaluate in less than ten minutes",
    "collect": "record episodes of an environment, or import images and recordings",
    "train": "train the tokenizer, then the prior; continues an interrupted training",
    "dream": "dream a video under actions of your choice",
    "play": "play in a dream, in the browser",
    "sample": "draw images of classes or captions",
    "speak": "draw speech in the voice of a speaker",
    "convert": "convert recorded speech to another voice",
    "codec": "encode speech as a bitstream, or decode a bitstream",
    "evaluate": "evaluate a run on held-out episodes",
    "export": "write episodes (Minari, npz), or a model (ONNX, a static page that plays the dream)",
    "agent": "train, evaluate and compare agents",
}
AGENT_COMMANDS = {
    "train": "train an agent in the environment, or in the dream of a run",
    "evaluate": "evaluate an agent in the environment",
    "compare": "compare evaluations of agents",
}


def usage(name: str, commands: Mapping[str, str]) -> str:
    """The help of a name that commands follow."""
    width = max(map(len, commands))
    lines = [f"  {command:<{width}}  {text}" for command, text in commands.items()]
    module = "worldmodel.agents" if commands is AGENT_COMMANDS else "worldmodel"
    end = f"{name} COMMAND --help lists its flags; python -m {module}.COMMAND does the same."
    return "\n".join([f"usage: {name} COMMAND [flags] [key=value …]", "", *lines, "", end])


def main(argv: Sequence[str] | None = None) -> int:
    """Hands the rest of the line to the command's own ``main`` and returns its exit code; 2 for an unknown command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--version"]:
        print(f"worldmodel {worldmodel.__version__}")
        return 0
    name, commands, module = "worldmodel", COMMANDS, "worldmodel"
    if words[:1] == ["agent"]:
        name, commands, module, words = "worldmodel agent", AGENT_COMMANDS, "worldmodel.agents", words[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(name, commands))
        return 0 if words else 2
    command, *rest = words
    if command not in commands:
        print(f"error: unknown command {command!r}; choose {', '.join(commands)}", file=sys.stderr)
        return 2
    # As for python -m, so that env.id=my_module:MyEnv-v0 is found here; behind the rest, so that it hides nothing.
    if not sys.flags.safe_path and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    # Imported only now: --help should not wait for torch, and collect not for what dream needs.
    return int(importlib.import_module(f"{module}.{command}").main(rest))


if __name__ == "__main__":
    sys.exit(main())
