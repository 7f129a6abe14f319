"""The interface of every quantiser."""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantiser returns; D is the width, K the number of codes."""

    vectors: Tensor  # (..., D), the chosen code vectors, gradients straight through to the input
    codes: Tensor  # (...) int64 in [0, K)
    losses: dict[str, Tensor]  # named scalar terms, e.g. "commitment"


class Quantizer(nn.Module, abc.ABC):
    """Interface of all quantisers. They compute in float32 whatever the precision around them."""

    keep_float32 = True  # read by the training loop: parameters and buffers are never cast
    codes: int  # K
    width: int  # D

    @abc.abstractmethod
    def forward(self, vectors: Tensor, generator: torch.Generator | None = None) -> Quantized:
        """(..., D) → :class:`Quantized`; in training mode it may also update its codebook."""

    @abc.abstractmethod
    def encode(self, vectors: Tensor) -> Tensor:
        """(..., D) → codes (...) int64, no side effect."""

    @abc.abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (...) → vectors (..., D) float32."""

    def codebook(self) -> Tensor:
        """All vectors, (K, D). Beware of implicit codebooks with very many codes."""
        return self.lookup(torch.arange(self.codes, device=next(self.buffers()).device))
