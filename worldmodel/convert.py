"""Convert the speech in FILE (WAV, FLAC) to the voices of speakers that a run was trained on. Writes
a .wav file for each speaker and a page of spectrograms.

  python -m worldmodel.convert in.wav --speakers p226
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import VOICE_TEMPERATURE, add_output, add_seed, add_voice_temperature
from worldmodel.errors import ConfigError
from worldmodel.util.output import SOUND_SUFFIXES, options_in_name

if TYPE_CHECKING:
    import numpy as np
    import torch


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--speakers", metavar="A,B", help="speakers, separated by commas (the first of the run)")
    add_voice_temperature(parser)
    add_seed(parser)
    add_output(parser, SOUND_SUFFIXES)


@entry_point("convert", __doc__, add_flags, operands=("FILE",))
def main(args: argparse.Namespace, config: Config) -> None:
    """Load the run, encode, decode in each voice, write, report."""
    from worldmodel.runs.folder import TOKENIZER  # only now, since it imports torch
    from worldmodel.runs.kind import Kind, choose_run
    from worldmodel.speech.media import choose_speakers, write_voices
    from worldmodel.speech.sound import normalise, read_sound
    from worldmodel.speech.voice import VoiceModel

    file = Path(args.operands[0])
    run = choose_run(args.overrides, config, TOKENIZER, Kind.SPEECH)
    model = VoiceModel.load(run, config.device)
    speakers = choose_speakers(args.speakers, model)
    if not model.tokenizer.condition_width:
        reason = f"the decoder of {run.name} reads no speaker and cannot change a voice"
        remedy = "use a run of experiment=vctk-spectra or vctk, or python -m worldmodel.codec with a codec"
        raise ConfigError(f"{reason}; {remedy}")
    source = normalise(read_sound(file, model.rate), model.rate)  # as training has seen speech

    def draw(speaker: str, generator: torch.Generator) -> np.ndarray:
        return model.convert(source, speaker, generator, args.voice_temperature)

    name = f"{file.stem}-seed{config.seed}{options_in_name(('v', args.voice_temperature, VOICE_TEMPERATURE))}"
    write_voices(run, model, speakers, draw, config.seed, args.output, name, before=[(file.name, source)])


if __name__ == "__main__":
    sys.exit(main())
