"""Codes as vectors, started from the tokenizer's codebook so that neighbours in pixels start as neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worldmodel.heads.base import GridSpec
from worldmodel.nn.embedding import centred, project
from worldmodel.nn.modules import Logits

__all__ = ["CodeEmbedding", "LevelEmbedding", "centred", "classifier", "embedding", "project"]


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


class LevelEmbedding(nn.Module):
    """Codes of several grids in one row, (..., N) int64 in [-1, K) → (..., N, width), by a table for each grid.

    ``codebook`` (levels, K, D); ``levels``: shapes of the grids, as they stand in the row.
    """

    def __init__(self, codebook: Tensor, width: int, levels: Sequence[Sequence[int]]):
        super().__init__()
        self.sizes = [math.prod(level) for level in levels]
        self.embed = nn.ModuleList(CodeEmbedding(book, width) for book in codebook)

    def forward(self, codes: Tensor) -> Tensor:
        parts = codes.split(self.sizes, -1)
        return torch.cat([embed(part) for embed, part in zip(self.embed, parts, strict=True)], -2)


def embedding(spec: GridSpec, width: int) -> nn.Module:
    """Of the codes of one grid, or of those of several levels."""
    if spec.levels:
        return LevelEmbedding(spec.codebook, width, spec.levels)
    return CodeEmbedding(spec.codebook, width)


def classifier(codebook: Tensor, width: int) -> nn.Linear:
    """width → K logits that start with the geometry of the codebook: what is near in pixels starts out as likely."""
    layer = Logits(width, len(codebook))
    layer.weight.data.copy_(0.04 * project(codebook, width))
    nn.init.zeros_(layer.bias)
    return layer
