"""Finite scalar quantisation: rounding, without a codebook."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Len
from torch import Generator, Tensor, nn

from worldmodel.quantizers.base import Quantized, Quantizer
from worldmodel.util.ranges import NumCodes


class FiniteScalarQuantizer(Quantizer):
    """FSQ: each of D numbers is squashed and rounded to a few levels (Mentzer et al., ICLR 2024); no codebook to learn.

    Args:
        levels: levels of each dimension, e.g. ``(8, 8, 8)``: K is their product, D their number. The table of all codes
            is never built.
    """

    def __init__(self, levels: Annotated[Sequence[NumCodes], Len(1)]):
        super().__init__()
        self.width, self.num_codes = len(levels), math.prod(levels)
        counts = torch.tensor(levels, dtype=torch.int64)
        self.levels = nn.Buffer(counts, persistent=False)
        strides = torch.cumprod(torch.cat([torch.ones(1, dtype=torch.int64), counts[:-1]]), 0)
        self.strides = nn.Buffer(strides, persistent=False)

    def _bound(self, vectors: Tensor) -> Tensor:
        """Squash to (−½, levels − ½) so that rounding gives the integers 0 … levels − 1 (paper, section 3.1)."""
        return (torch.tanh(vectors) + 1) / 2 * (self.levels - 1e-3) - 0.5 + 0.5e-3

    def encode(self, vectors: Tensor) -> Tensor:
        return (self._bound(vectors.detach().float()).round().long() * self.strides).sum(-1)

    def lookup(self, codes: Tensor) -> Tensor:
        return self._normalise((codes[..., None] // self.strides % self.levels).float())

    def _normalise(self, digits: Tensor) -> Tensor:
        """Digits 0 … levels − 1 → [−1, 1]."""
        return digits * 2 / (self.levels - 1) - 1

    def forward(self, vectors: Tensor, generator: Generator | None = None) -> Quantized:
        bounded = self._bound(vectors.float())
        digits = bounded + (bounded.round() - bounded).detach()
        codes = (digits.detach().round().long() * self.strides).sum(-1)
        return Quantized(self._normalise(digits), codes, {})
