"""Several codes for a vector: each part of it has a quantiser of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldmodel.nn.modules import module_list
from worldmodel.quantizers.base import Quantized, Quantizer
from worldmodel.util.ranges import Count, NumCodes


class ProductQuantizer(Quantizer):
    """S equal parts of the last axis, each with a quantiser and so a codebook of its own (product quantisation).

    The paper's CIFAR-10 latents, 8×8×10, are an 8×8 grid of 10 codes from 10 separate codebooks.

    Args:
        slots: S.
        quantizer: constructor of the quantiser of a part, called S times, with ``num_codes`` where that is given. Its
            width is that of a part: D is S times as much.
        num_codes: K of every part; None for a quantiser that brings it, as FSQ does with its levels.

    The terms are means over the slots and keep their names: a weight means the same with one slot and with ten.
    The slots take turns, so that any quantiser will do: on a CPU one batched product and minimum over all of them
    takes as long (8,192 vectors, 10 slots of 512).
    """

    def __init__(self, slots: Count, quantizer: Callable[..., Quantizer], num_codes: NumCodes | None = None):
        super().__init__()
        parts = [quantizer() if num_codes is None else quantizer(num_codes=num_codes) for _ in range(slots)]
        self.parts = module_list(parts)
        self.num_codes, self.width = parts[0].num_codes, slots * parts[0].width
        self.shape = (slots, *parts[0].shape)
        self._axis = -len(self.shape)  # of the slots among the axes of the codes

    def _split(self, vectors: Tensor) -> list[tuple[Quantizer, Tensor]]:
        """The quantiser and the part (..., D / S) of each slot."""
        return list(zip(self.parts, vectors.chunk(self.shape[0], -1), strict=True))

    def encode(self, vectors: Tensor) -> Tensor:
        return torch.stack([part.encode(piece) for part, piece in self._split(vectors)], self._axis)

    def lookup(self, codes: Tensor) -> Tensor:
        pieces = zip(self.parts, codes.unbind(self._axis), strict=True)
        return torch.cat([part.lookup(piece) for part, piece in pieces], -1)

    def codebook(self) -> Tensor:
        return torch.stack([part.codebook() for part in self.parts])

    def forward(self, vectors: Tensor, generator: torch.Generator | None = None) -> Quantized:
        results = [part(piece, generator) for part, piece in self._split(vectors)]
        return Quantized(
            torch.cat([result.vectors for result in results], -1),
            torch.stack([result.codes for result in results], self._axis),
            {name: torch.stack([result.losses[name] for result in results]).mean() for name in results[0].losses},
        )
