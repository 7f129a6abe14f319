"""Flags that several commands share. Numbers are checked while the command line is parsed."""

import argparse
import contextlib
import os
from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Ge, Le

from worldmodel.config.checks import check_value
from worldmodel.util.output import check_output
from worldmodel.util.ranges import Count, NonNegative, Positive, Seed

Few = Annotated[int, Ge(1), Le(1000)]  # more is taken for a typing error


def add_number(
    parser: argparse.ArgumentParser, flag: str, kind: Any, help: str, default: float | None = None, metavar: str = "N"
) -> None:
    """A flag that takes a number; ``kind``: its type and range, as in :mod:`worldmodel.util.ranges`, which the error
    for another number names."""

    def read(text: str) -> Any:
        value: Any = text
        for plain in (float, int):
            with contextlib.suppress(ValueError):
                value = plain(text)
        return check_value(flag, kind, value)

    parser.add_argument(flag, type=read, default=default, metavar=metavar, help=help)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """``--seed``, another way to write the setting ``seed=…``."""
    add_number(parser, "--seed", Seed, "the same seed writes the same files (default: seed=…)")


def add_sampling(parser: argparse.ArgumentParser, temperature: float = 1.0) -> None:
    """How codes are drawn from the prior."""
    scale = f"below 1: more probable codes; 0: the expected codes ({temperature:g})"
    add_number(parser, "--temperature", NonNegative, scale, temperature, "T")
    add_number(parser, "--top-k", Count, "draw each code from the K most probable ones", metavar="K")
    samplers = ("auto", "ancestral", "predictive")
    how = "how the same codes are drawn; auto: the faster sampler (auto)"
    parser.add_argument("--sampler", default="auto", choices=samplers, help=how)


def add_output(parser: argparse.ArgumentParser, suffixes: Sequence[str]) -> None:
    """``--output``; ``suffixes``: of the files that it may name, which are checked before anything slow is done."""

    def read(text: str) -> str:
        path = os.path.expanduser(text)
        check_output(path, suffixes)
        return path

    help = f"one file ({' '.join(suffixes)}), a folder, or a name without suffix"
    parser.add_argument("--output", type=read, metavar="PATH", help=help)


SPEECH_TEMPERATURE = 0.85
"""The default of priors of speech. The order of phones in their samples is nearer to that of real speech than at 1."""

VOICE_TEMPERATURE = 0.5
"""Of decoders of sound that draw samples. At 1, a WaveNet that was trained for two hours loses most of the pitch."""


def add_voice_temperature(parser: argparse.ArgumentParser) -> None:
    """How samples of sound are drawn from the decoder."""
    help = f"temperature of a WaveNet; below 1: less noise, but a duller sound ({VOICE_TEMPERATURE})"
    add_number(parser, "--voice-temperature", Positive, help, VOICE_TEMPERATURE, "T")
