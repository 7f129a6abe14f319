"""A trunk of convolutions over the last few code grids, conditioned on the actions between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.nn.convnets import CONV
from worldmodel.priors.base import Trunk
from worldmodel.priors.embedding import CodeEmbedding


class ConvTrunkState(NamedTuple):
    grids: Tensor  # (B, history − 1, *grid) int64, the grids before the previous one, oldest first
    actions: Tensor  # (B, history − 1) int64


class FilmBlock(nn.Module):
    """Pre-norm residual block of two convolutions whose normalised input is scaled and shifted by the condition."""

    def __init__(self, rank: int, width: int, condition: int):
        super().__init__()
        self.film = nn.Linear(condition, 2 * width)
        self.first = CONV[rank](width, width, 3, padding=1)
        self.second = CONV[rank](width, width, 3, padding=1)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (M, width, *grid), condition (M, F) → (M, width, *grid)."""
        scale, shift = self.film(condition).view(len(x), *[1] * (x.dim() - 2), -1).chunk(2, -1)
        y = F.layer_norm(x.movedim(1, -1), x.shape[1:2])
        y = torch.addcmul(shift, y, scale + 1)
        return x + self.second(F.silu(self.first(F.silu(y).movedim(-1, 1))))


class ConvTrunk(Trunk):
    """Convolutions over the last ``history`` grids, conditioned on the actions between them (FiLM, Perez et al., 2018).

    Args:
        grid: shape of a grid of codes. codebook: (K, D). actions: A.
        width: channels, also the width of a context vector. blocks: residual blocks. history: grids seen.
        embed: width of an embedded code.
    """

    def __init__(
        self,
        grid: Sequence[int],
        codebook: Tensor,
        actions: int,
        width: int = 160,
        blocks: int = 5,
        history: int = 4,
        embed: int = 48,
    ):
        super().__init__()
        rank = len(grid)
        self.grid, self.width, self.history = tuple(grid), width, history
        self.embed = CodeEmbedding(codebook, embed)
        self.act = nn.Embedding(actions + 1, 32)
        self.condition = nn.Sequential(nn.Linear(32 * history, 128), nn.SiLU())
        self.enter = CONV[rank](history * embed, width, 3, padding=1)
        self.position = nn.Parameter(torch.zeros(width, *grid))
        self.blocks = nn.ModuleList(FilmBlock(rank, width, 128) for _ in range(blocks))
        if rank == 2:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _contexts(self, grids: Tensor, actions: Tensor) -> Tensor:
        """grids (M, history, *grid), actions (M, history), oldest first → (M, N, width)."""
        vectors = self.embed(grids).movedim(1, -2).flatten(-2)  # (M, *grid, history · E)
        condition = self.condition(self.act(actions + 1).flatten(1))
        x = self.enter(vectors.movedim(-1, 1)) + self.position
        for block in self.blocks:
            x = block(x, condition)
        x = x.movedim(1, -1)
        return F.layer_norm(x, x.shape[-1:]).reshape(len(x), -1, self.width)

    def forward(self, previous: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        batch, steps = actions.shape
        state = self.begin(batch)
        grids = torch.cat([state.grids, previous], 1)[:, first:].unfold(1, self.history, 1).movedim(-1, 2)
        acts = torch.cat([state.actions, actions], 1)[:, first:].unfold(1, self.history, 1)
        return self._contexts(grids.flatten(0, 1), acts.flatten(0, 1)).unflatten(0, (batch, steps - first))

    def begin(self, batch: int) -> ConvTrunkState:
        device = self.position.device
        before = self.history - 1
        grids = torch.full((batch, before, *self.grid), -1, dtype=torch.int64, device=device)
        return ConvTrunkState(grids, torch.full((batch, before), -1, dtype=torch.int64, device=device))

    def step(self, state: ConvTrunkState, previous: Tensor, actions: Tensor) -> tuple[Tensor, ConvTrunkState]:
        grids = torch.cat([state.grids, previous[:, None]], 1)
        acts = torch.cat([state.actions, actions[:, None]], 1)
        return self._contexts(grids, acts), ConvTrunkState(grids[:, 1:], acts[:, 1:])

    def observe(self, state: ConvTrunkState, previous: Tensor, actions: Tensor) -> ConvTrunkState:
        grids = torch.cat([state.grids[:, 1:], previous[:, None]], 1) if self.history > 1 else state.grids
        acts = torch.cat([state.actions[:, 1:], actions[:, None]], 1) if self.history > 1 else state.actions
        return ConvTrunkState(grids, acts)
