"""Codes as vectors, started from the tokenizer's codebook so that neighbours in pixels start as neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.nn.embedding import centred, project

__all__ = ["CodeEmbedding", "centred", "classifier", "project"]


class CodeEmbedding(nn.Module):
    """Codes (...) int64 in [-1, K) → vectors (..., width); -1 is "no code" and has a learnt vector of its own.

    ``codebook`` (K, D): the tokenizer's vectors, which :func:`project` turns into the first table. Of several
    codebooks, (S, K, D), each has a table of its own, and codes are (..., S).
    """

    def __init__(self, codebook: Tensor, width: int):
        super().__init__()
        books = codebook if codebook.dim() == 3 else codebook[None]
        rows = [row for book in books for row in (torch.zeros(1, width), project(book, width))]
        self.table = nn.Parameter(torch.cat(rows))
        first = torch.arange(len(books)) * (codebook.shape[-2] + 1)
        self.register_buffer("first", first if codebook.dim() == 3 else None, persistent=False)

    first: Tensor | None  # (S,) int64: where the table of each codebook begins

    def forward(self, codes: Tensor) -> Tensor:
        rows = codes + 1 if self.first is None else codes + 1 + self.first
        return nn.functional.embedding(rows, self.table)


def classifier(codebook: Tensor, width: int) -> nn.Linear:
    """width → K logits that start with the geometry of the codebook: what is near in pixels starts out as likely."""
    layer = nn.Linear(width, len(codebook))
    layer.weight.data.copy_(0.04 * project(codebook, width))
    nn.init.zeros_(layer.bias)
    layer.keep_adam = True  # type: ignore[assignment]
    return layer
