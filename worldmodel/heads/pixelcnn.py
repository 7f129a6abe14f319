"""The gated PixelCNN as a head: codes in raster order, several codes a site if the grid has slots."""

from __future__ import annotations

import abc
import math
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.heads.base import GridSpec, Head
from worldmodel.nn.embedding import centred
from worldmodel.nn.pixelcnn import GatedPixelCNN, GridState
from worldmodel.nn.slots import CodePixelCNN, SlotLogits, wide
from worldmodel.util.ranges import Count, PassedTo


class SiteHead(Head):
    """A PixelCNN on grids of one size: every code sees all codes before it in raster order, slots innermost.

    A site reads the context of its first slot.
    """

    # A position costs a few products of a vector; a pass over 32×32 sites costs as much as sixty positions do.
    stepwise = True

    def __init__(self, model: CodePixelCNN, sizes: tuple[int, int, int], vectors: Tensor):
        super().__init__()
        self.sizes, self.model = sizes, model  # (h, w, S)
        self.groups = [1] * math.prod(sizes)
        self.set_order(torch.arange(math.prod(sizes)))
        self.register_buffer("vectors", vectors, persistent=False)

    vectors: Tensor

    @abc.abstractmethod
    def condition(self, contexts: Tensor) -> Tensor:
        """contexts (B, N, width) → what the PixelCNN is conditioned on, (B, h, w, width)."""

    def sites(self, contexts: Tensor) -> Tensor:
        """contexts (B, N, width) → those of the sites, (B, h, w, width)."""
        return contexts[:, :: self.sizes[2]].unflatten(1, self.sizes[:2])

    def ordered_logits(self, codes: Tensor, contexts: Tensor) -> Tensor:
        return self.model(codes.unflatten(1, self.sizes), self.condition(contexts)).flatten(1, 3)

    def begin(self, contexts: Tensor) -> GridState:
        return self.model.begin(self.condition(contexts))

    def extend(self, state: GridState, codes: Tensor, start: int, stop: int) -> Tensor:
        return self.model.extend(state, codes, start, stop)

    def select(self, state: GridState, rows: Tensor) -> GridState:
        return self.model.select(state, rows)


class PixelCNNHead(SiteHead):
    """A prior over grids of codes.

    Args:
        spec: of grids (h, w) or (h, w, S); (n,) is one row, or one site of n slots where the codebooks differ, and
            (n, S) is then one row of sites.
        context_width: of the trunk's vectors.
        width: of the network. network: the other settings of :class:`~worldmodel.nn.pixelcnn.GatedPixelCNN`.
    """

    def __init__(
        self,
        spec: GridSpec,
        context_width: int,
        width: Count = 128,
        **network: Annotated[Any, PassedTo(GatedPixelCNN)],
    ):
        spec.require_one_grid(self)
        grid, codebook = spec.grid, spec.codebook
        sizes: tuple[int, ...]
        if len(grid) == 1:  # a row of one codebook, or one site whose slots are a row
            sizes = (1, *grid, 1) if codebook.dim() == 2 else (1, 1, *grid)
        elif len(grid) == 2:
            sizes = (*grid, 1) if codebook.dim() == 2 else (1, *grid)
        else:
            sizes = tuple(grid)
        if len(sizes) != 3 or (codebook.dim() == 3 and len(codebook) != sizes[2]):
            raise ConfigError(
                f"a PixelCNN draws grids (h, w), or (h, w, S) with one codebook or S of them; this grid is "
                f"{tuple(grid)} with {len(codebook) if codebook.dim() == 3 else 1}; choose another head or tokenizer"
            )
        books = codebook if codebook.dim() == 3 else codebook.expand(sizes[2], -1, -1)
        # Codes of different codebooks have no common geometry: temperature 0 then takes the most probable one.
        vectors = torch.eye(books.shape[1]) if codebook.dim() == 3 else centred(codebook)
        model = CodePixelCNN(books, context_width, width, **network)
        super().__init__(model, (sizes[0], sizes[1], sizes[2]), vectors)
        self.position = nn.Parameter(torch.randn(*sizes[:2], context_width) * 0.02)
        self.guess, self.guess_logits = nn.Linear(context_width, sizes[2] * width), SlotLogits(books, width)

    def condition(self, contexts: Tensor) -> Tensor:
        return self.sites(contexts) + self.position

    def forecast(self, contexts: Tensor) -> Tensor:
        x = F.silu(self.guess(self.condition(contexts).flatten(0, 2))).unflatten(-1, (self.sizes[2], -1))
        return wide(self.guess_logits(x)).reshape(*contexts.shape[:2], -1)
