"""Draw speech from the prior of a run of speech. Writes a .wav file for each speaker and a page of
spectrograms. The prior has learnt no words: its samples sound like speech without meaning in the
voice of a speaker.

  python -m worldmodel.speak --speakers p225 --seconds 3
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Le

from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import (
    SPEECH_TEMPERATURE,
    VOICE_TEMPERATURE,
    add_number,
    add_output,
    add_sampling,
    add_seed,
    add_voice_temperature,
)
from worldmodel.util.output import SOUND_SUFFIXES, options_in_name

if TYPE_CHECKING:
    import numpy as np
    import torch

SECONDS = 3.0
Seconds = Annotated[float, Gt(0), Le(600)]  # more is taken for a typing error


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--speakers", metavar="A,B", help="speakers, separated by commas (the first of the run)")
    add_number(parser, "--seconds", Seconds, f"seconds of speech ({SECONDS:g})", metavar="S")
    add_sampling(parser, SPEECH_TEMPERATURE)
    add_voice_temperature(parser)
    add_seed(parser)
    add_output(parser, SOUND_SUFFIXES)


@entry_point("speak", __doc__, add_flags)
def main(args: argparse.Namespace, config: Config) -> None:
    """Load the run, draw codes, decode, write, report."""
    from worldmodel.heads import make_sampler  # only now, since it imports torch
    from worldmodel.runs.folder import PRIOR
    from worldmodel.runs.kind import Kind, choose_run
    from worldmodel.speech.media import choose_speakers, write_voices
    from worldmodel.speech.voice import VoiceModel

    length = SECONDS if args.seconds is None else args.seconds
    run = choose_run(args.overrides, config, PRIOR, Kind.SPEECH)
    model = VoiceModel.load(run, config.device)
    sampler = make_sampler(args.sampler, args.temperature, args.top_k)

    def draw(speaker: str, generator: torch.Generator) -> np.ndarray:
        codes = model.speak(speaker, math.ceil(length * model.spec.rate), sampler, generator)
        wave = model.decode(codes, speaker, generator, args.voice_temperature)
        return wave[: round(length * model.rate)]

    drawn = ("t", args.temperature, SPEECH_TEMPERATURE), ("v", args.voice_temperature, VOICE_TEMPERATURE)
    options = options_in_name(*drawn, ("k", args.top_k, None), ("s", args.seconds, None))
    name = f"speech-seed{config.seed}{options}"
    write_voices(run, model, choose_speakers(args.speakers, model), draw, config.seed, args.output, name)


if __name__ == "__main__":
    sys.exit(main())
