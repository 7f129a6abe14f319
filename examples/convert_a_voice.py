"""Convert speech into the voice of another speaker::

    pip install -e '.[speech]'
    python examples/convert_a_voice.py [FILE [SPEAKER [RUN [OUTPUT]]]]

FILE is a sound file (WAV, FLAC), SPEAKER one that the run was trained on, and RUN the folder of a run of
experiment=vctk-spectra or vctk; docs/speech.md describes how to train one.
"""

import sys
from pathlib import Path

import torch

from worldmodel.speech.media import save_sound
from worldmodel.speech.sound import normalise, read_sound
from worldmodel.speech.voice import VoiceModel

SENTENCE = Path(__file__).parents[1] / "docs/speech/p225_003-real.flac"


def main(file=SENTENCE, speaker="p226", run="runs/vctk-spectra-1", output="converted.wav"):
    """Encode the recording, decode its codes under another speaker, and save both."""
    model = VoiceModel.load(run)
    print(f"the run has the speakers {', '.join(model.spec.action_names)}")

    wave = normalise(read_sound(file, model.rate), model.rate)  # (n,) float32, as loud as the training data
    codes = model.encode(model.frames(wave))  # one grid of codes for each window of 40 ms
    print(f"{len(wave) / model.rate:.2f} s of sound are {codes.numel()} codes of {model.tokenizer.num_codes}")

    generator = torch.Generator(model.device).manual_seed(0)
    converted = model.decode(codes, speaker, generator)[: len(wave)]  # the codes end with a whole window
    print(f"written {save_sound(output, converted, model.rate)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
