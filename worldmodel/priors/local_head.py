"""The local head: every position reads its context and the codes of its known neighbours; no attention, no cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.priors.base import Head, grid_size
from worldmodel.priors.embedding import CodeEmbedding, centred, classifier
from worldmodel.priors.order import make_order


class LocalHeadState(NamedTuple):
    inputs: Tensor  # (B, N, width): the part of every position's input that is known beforehand


class LocalHead(Head):
    """p(code i | codes < i, context) depends on the earlier codes around position i alone.

    The context knows the whole past and the action; what is left for the codes of one grid to tell each other is local.

    Args:
        grid: shape of a grid. codebook: (K, D). context_width: of the trunk's vectors.
        width, blocks: of the residual MLP. embed: width of an embedded code. order: see :mod:`worldmodel.priors.order`.
    """

    def __init__(
        self,
        grid: Sequence[int],
        codebook: Tensor,
        context_width: int,
        width: int = 128,
        blocks: int = 1,
        embed: int = 32,
        order: str = "quincunx",
    ):
        super().__init__()
        self.positions = grid_size(grid)
        self.embed = CodeEmbedding(codebook, embed)
        walk = make_order(order, grid)
        self.stages, self.groups, neighbours = walk.stages, walk.groups, walk.neighbours
        self.register_buffer("order", walk.positions, persistent=False)
        self.register_buffer("neighbours", neighbours, persistent=False)
        stage = torch.arange(len(self.stages)).repeat_interleave(torch.tensor(self.stages))
        self.register_buffer("stage", stage, persistent=False)  # (N,) of each position
        self.register_buffer("vectors", centred(codebook), persistent=False)
        size = neighbours.shape[1] * embed
        self.enter_codes = nn.ModuleList(nn.Linear(size, width, bias=False) for _ in self.stages)
        self.enter_context = nn.Linear(context_width, width)
        self.position = nn.Parameter(torch.randn(self.positions, width) * 0.02)
        self.blocks = nn.ModuleList(MLPBlock(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.logits = classifier(codebook, width)
        self.guess = nn.Sequential(nn.Linear(context_width, width), nn.SiLU(), classifier(codebook, width))

    order: Tensor
    neighbours: Tensor
    stage: Tensor

    def forward(self, codes: Tensor, contexts: Tensor) -> Tensor:
        return self.extend(self.begin(contexts), codes, 0, self.positions)

    def begin(self, contexts: Tensor) -> LocalHeadState:
        return LocalHeadState(self.enter_context(contexts) + self.position)

    def extend(self, state: LocalHeadState, codes: Tensor, start: int, stop: int) -> Tensor:
        near = self.embed(F.pad(codes, (0, 1), value=-1)[:, self.neighbours[start:stop]]).flatten(2)
        parts, first = [], 0
        for size, enter in zip(self.stages, self.enter_codes, strict=True):
            a, b = max(first, start), min(first + size, stop)
            if a < b:
                parts.append(enter(near[:, a - start : b - start]))
            first += size
        return self._finish(state.inputs[:, start:stop] + torch.cat(parts, 1))

    def at(self, state: LocalHeadState, codes: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        near = self.embed(F.pad(codes, (0, 1), value=-1)[rows[:, None], self.neighbours[places]]).flatten(1)
        sizes = self.stage[places].bincount(minlength=len(self.stages)).tolist()
        parts = [enter(part) for enter, part in zip(self.enter_codes, near.split(sizes), strict=True) if len(part)]
        return self._finish(state.inputs[rows, places] + torch.cat(parts))

    def _finish(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.logits(self.norm(x)).float()

    def select(self, state: LocalHeadState, rows: Tensor) -> LocalHeadState:
        return LocalHeadState(state.inputs[rows])

    def forecast(self, contexts: Tensor) -> Tensor:
        return self.guess(contexts).float()


class MLPBlock(nn.Module):
    """Pre-norm residual MLP."""

    def __init__(self, width: int, factor: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, factor * width), nn.Linear(factor * width, width)
        nn.init.normal_(self.down.weight, std=0.02 / math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x)), approximate="tanh"))
