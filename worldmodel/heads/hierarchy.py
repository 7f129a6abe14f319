"""A head over several grids of one frame: one head for each grid, conditioned on the coarser grids."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.heads.base import CodeEmbedding, GridSpec, Head
from worldmodel.nn.convnets import CONV, ResidualBlock
from worldmodel.nn.modules import RowState, module_list
from worldmodel.util.ranges import Count

Maker = Callable[..., Head]


@dataclasses.dataclass
class HierarchyState(RowState):
    """The state of the levels while they are drawn."""

    contexts: Tensor  # (B, N, width)
    levels: list[RowState | None]  # of each level's head; None until the coarser codes were first given


class Above(nn.Module):
    """The coarser grids as a context of each position of a finer one: (B, N of the finer, width).

    Codes are embedded, read by convolutions at the resolution of their own grid, and interpolated to the finer one.
    """

    def __init__(self, grids: Sequence[Sequence[int]], codebooks: Sequence[Tensor], onto: Sequence[int], width: int):
        super().__init__()
        self.grids, self.onto = [tuple(grid) for grid in grids], tuple(onto)
        rank, conv = len(self.onto), CONV[len(self.onto)]
        self.embed = nn.ModuleList(CodeEmbedding(codebook, width) for codebook in codebooks)
        self.read = nn.ModuleList(
            nn.Sequential(conv(width, width, 3, padding=1), *(ResidualBlock(rank, width, width) for _ in range(2)))
            for _ in grids
        )
        self.fine = conv(width, width, 3, padding=1)  # tells apart the positions that share a coarse one

    def forward(self, codes: Sequence[Tensor]) -> Tensor:
        """The codes of the coarser grids, each (B, its positions)."""
        levels = zip(self.embed, self.read, codes, self.grids, strict=True)
        maps = [read(embed(part.unflatten(1, grid)).movedim(-1, 1)) for embed, read, part, grid in levels]
        x = torch.stack([F.interpolate(part, self.onto) for part in maps]).sum(0)
        return (x + self.fine(F.silu(x))).flatten(2).movedim(1, -1)


class HierarchyHead(Head):
    """p(all codes of a frame) = Π over levels p(grid of the level | coarser grids, context), as in VQ-VAE-2 (2019).

    Args:
        spec: of the grids, (N,) codes of all levels in one row. context_width: of the trunk's vectors.
        inner: constructors of the levels' heads, the coarsest first, called as every head is; one constructor is taken
            for all levels.
        width: of the context that the coarser grids give to a finer one.

    Raises :class:`ConfigError` for a single grid.
    """

    def __init__(self, spec: GridSpec, context_width: int, inner: Maker | Sequence[Maker], width: Count = 64):
        super().__init__()
        levels, codebook = spec.levels, spec.codebook
        if not levels:
            reason = "HierarchyHead is for several grids, and this tokenizer makes one; choose prior=conv"
            raise ConfigError(f"{reason}, prior=speech for sound, or prior=pixelcnn for several codes at a position")
        makers = list(inner) if isinstance(inner, Sequence) else [inner] * len(levels)
        self.width = width
        self.sizes = [math.prod(level) for level in levels]
        self.heads = module_list(
            make(GridSpec(tuple(level), book), context_width + (width if n else 0))
            for n, (make, level, book) in enumerate(zip(makers, levels, codebook, strict=True))
        )
        finer = range(1, len(levels))
        self.above = nn.ModuleList(Above(levels[:n], list(codebook[:n]), levels[n], width) for n in finer)
        self.begins = [sum(self.sizes[:n]) for n in range(len(levels))]
        orders: list[Tensor] = [head.order + begin for head, begin in zip(self.heads, self.begins, strict=True)]
        self.set_order(torch.cat(orders))
        self.groups = [size for head in self.heads for size in head.groups]
        self.vectors = nn.Buffer(torch.eye(codebook.shape[1]), persistent=False)

    def _context(self, level: int, contexts: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """The context of a level's positions, in its head's order, from the codes of the coarser levels."""
        if level == 0:
            return contexts
        coarser = zip(self.heads[:level], parts[:level], strict=True)
        seen = self.above[level - 1]([head.in_raster(part) for head, part in coarser])
        return torch.cat([contexts, self.heads[level].in_order(seen).to(contexts.dtype)], -1)

    def ordered_logits(self, codes: Tensor, contexts: Tensor) -> Tensor:
        parts = codes.split(self.sizes, 1)
        own = [self._context(level, context, parts) for level, context in enumerate(contexts.split(self.sizes, 1))]
        levels = zip(self.heads, parts, own, strict=True)
        return torch.cat([head.ordered_logits(part, context) for head, part, context in levels], 1)

    def begin(self, contexts: Tensor) -> HierarchyState:
        return HierarchyState(contexts, [None] * len(self.sizes))

    def extend(self, state: HierarchyState, codes: Tensor, start: int, stop: int) -> Tensor:
        parts = codes.split(self.sizes, 1)
        logits = []
        for level, (begin, size) in enumerate(zip(self.begins, self.sizes, strict=True)):
            first, last = max(start - begin, 0), min(stop - begin, size)
            if first >= last:
                continue
            head = self.heads[level]
            # While `start` lies before the level, the coarser codes may still have changed.
            if state.levels[level] is None or start <= begin:
                state.levels[level] = head.begin(self._context(level, state.contexts[:, begin : begin + size], parts))
            logits.append(head.extend(state.levels[level], parts[level], first, last))
        return torch.cat(logits, 1)

    def forecast(self, contexts: Tensor) -> Tensor:
        given = contexts.split(self.sizes, 1)
        # The context from the coarser grids is not known yet.
        known = [context if level == 0 else F.pad(context, (0, self.width)) for level, context in enumerate(given)]
        return torch.cat([head.forecast(context) for head, context in zip(self.heads, known, strict=True)], 1)
