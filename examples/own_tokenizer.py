"""Train a tokenizer with a quantizer of your own, on episodes that have been collected before::

    python examples/own_tokenizer.py [key=value …]

Other commands need its folder on Python's path: PYTHONPATH=examples python -m worldmodel.dream run=binary …
"""

import sys

import torch

from worldmodel import train
from worldmodel.errors import ConfigError
from worldmodel.quantizers import Quantized, Quantizer


class BinaryQuantizer(Quantizer):
    """Lookup-free quantization (Yu et al., ICLR 2024): the signs of the D numbers of a vector are the bits of its code.

    ``num_codes`` is ``tokenizer.num_codes``, a power of two; the constructor chooses the width D of the vectors.
    """

    def __init__(self, num_codes):
        super().__init__()
        self.num_codes, self.width = num_codes, num_codes.bit_length() - 1
        if num_codes != 2**self.width:
            raise ConfigError(f"tokenizer.num_codes is {num_codes}; choose a power of two")
        self.register_buffer("powers", 2 ** torch.arange(self.width), persistent=False)
        self.register_buffer("mean", torch.zeros(self.width))  # of the vectors; at 0 the bits would become constant

    def encode(self, vectors):
        return ((vectors > self.mean) * self.powers).sum(-1)

    def lookup(self, codes):
        return (codes[..., None] // self.powers % 2) * 2.0 - 1.0

    def forward(self, vectors, generator=None):
        if self.training:
            self.mean.lerp_(vectors.detach().flatten(0, -2).mean(0), 0.1)
        codes = self.encode(vectors)
        signs, centred = self.lookup(codes), vectors - self.mean
        commitment = (centred - signs).square().mean()  # tokenizer.loss_weights.commitment is its weight
        straight_through = centred + (signs - centred).detach()  # the gradient passes unchanged to the encoder
        return Quantized(straight_through, codes, {"commitment": commitment})


SETTINGS = ["run=binary", "tokenizer.quantizer._target_=own_tokenizer.BinaryQuantizer"]
SETTINGS += ["~tokenizer.quantizer.width", "~tokenizer.quantizer.update"]  # settings that this quantizer lacks


def main(*settings):
    """Train tokenizer and prior for six minutes; the result is the run runs/binary."""
    return train.main([*SETTINGS, "--minutes", "6", *settings])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
