"""The gated PixelCNN as a head: codes in raster order, several codes a site if the grid has slots."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.nn.embedding import centred
from worldmodel.nn.pixelcnn import GridState
from worldmodel.nn.slots import CodePixelCNN, SlotLogits, wide
from worldmodel.priors.base import Head, grid_size


class PixelCNNHead(Head):
    """Every code sees all codes before it in raster order, slots innermost.

    Args:
        grid: (h, w) or (h, w, S); (n,) is one row. codebook: (K, D), or (S, K, D / S) where the slots differ.
        context_width: of the trunk's vectors; a site reads that of its first slot.
        width, layers, kernel, first, dropout: see :class:`~worldmodel.nn.pixelcnn.GatedPixelCNN`.
    """

    def __init__(
        self,
        grid: Sequence[int],
        codebook: Tensor,
        context_width: int,
        width: int = 128,
        layers: int = 8,
        kernel: int = 3,
        first: int = 7,
        dropout: float = 0.0,
    ):
        super().__init__()
        sizes = (1, *grid, 1) if len(grid) == 1 else (*grid, 1) if len(grid) == 2 else tuple(grid)
        if len(sizes) != 3 or (codebook.dim() == 3 and len(codebook) != sizes[-1]):
            raise ConfigError(
                f"a PixelCNN draws grids (h, w) of codes or of slots (h, w, S), each with a codebook of its own or all "
                f"with one; the grid is {tuple(grid)}, with {len(codebook) if codebook.dim() == 3 else 1} codebooks"
            )
        self.sizes = sizes
        slots = sizes[-1]
        books = codebook if codebook.dim() == 3 else codebook.expand(slots, -1, -1)
        self.groups = [1] * grid_size(grid)
        self.register_buffer("order", torch.arange(grid_size(grid)), persistent=False)
        # Codes of different codebooks have no common geometry: temperature 0 then takes the most probable one.
        vectors = torch.eye(books.shape[1]) if codebook.dim() == 3 else centred(codebook)
        self.register_buffer("vectors", vectors, persistent=False)
        self.position = nn.Parameter(torch.randn(sizes[0], sizes[1], context_width) * 0.02)
        self.model = CodePixelCNN(books, context_width, width, layers, kernel, first, dropout)
        self.guess, self.guess_logits = nn.Linear(context_width, slots * width), SlotLogits(books, width)

    order: Tensor
    vectors: Tensor

    def forward(self, codes: Tensor, contexts: Tensor) -> Tensor:
        return self.model(codes.unflatten(1, self.sizes), self._condition(contexts)).flatten(1, 3)

    def begin(self, contexts: Tensor) -> GridState:
        return self.model.begin(self._condition(contexts))

    def extend(self, state: GridState, codes: Tensor, start: int, stop: int) -> Tensor:
        return self.model.extend(state, codes, start, stop)

    def select(self, state: GridState, rows: Tensor) -> GridState:
        return self.model.select(state, rows)

    def forecast(self, contexts: Tensor) -> Tensor:
        x = F.silu(self.guess(self._condition(contexts).flatten(0, 2))).unflatten(-1, (self.sizes[-1], -1))
        return wide(self.guess_logits(x)).reshape(*contexts.shape[:2], -1)

    def _condition(self, contexts: Tensor) -> Tensor:
        """contexts (B, N, width) → (B, h, w, width), and where each site lies."""
        return contexts[:, :: self.sizes[-1]].unflatten(1, self.sizes[:2]) + self.position
