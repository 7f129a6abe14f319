"""Attention over time with one vector a frame: as a memory of another trunk, and as a trunk of its own.

The trunk also reads the previous codes around each position.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.heads.base import GridSpec, embedding
from worldmodel.nn.attention import AttentionCache, TimeTransformer
from worldmodel.nn.convnets import CONV
from worldmodel.nn.modules import to_channels_last
from worldmodel.priors.base import Trunk
from worldmodel.types import NO_ACTION
from worldmodel.util.ranges import Count, Share

MemoryState = tuple[AttentionCache, ...]  # one cache a block, the batch first in every tensor


class TimeMemory(nn.Module):
    """Attention over time between frames, each represented by one vector of all of its codes and its action.

    ``forward`` over T steps equals T calls of ``step``. No later step attends to a step without codes: those before the
    first frame, or hidden in training, have no influence.

    Args:
        spec: of the grids and the actions.
        width: of the vectors. blocks, heads, window: of the transformer. embed: width of an embedded code.
    """

    def __init__(
        self,
        spec: GridSpec,
        width: Count = 128,
        blocks: Count = 1,
        heads: Count = 4,
        window: Count = 16,
        embed: Count = 16,
    ):
        super().__init__()
        self.width = width
        self.embed = embedding(spec, embed)
        self.act = nn.Embedding(spec.num_actions + 1, width)
        self.enter = nn.Linear(spec.positions * embed, width)
        self.time = TimeTransformer(width, blocks, heads, window)

    def forward(self, previous: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        """previous (B, T, *grid) int64 in [−1, K), actions (B, T) int64 in [−1, A) → (B, T − first, width)."""
        frames, seen = self._frames(previous, actions, 2)
        return self.time(frames, first, seen)

    def begin(self, batch: int) -> MemoryState:
        """The state before anything was seen."""
        return self.time.begin(batch)

    def step(self, state: MemoryState, previous: Tensor, actions: Tensor) -> tuple[Tensor, MemoryState]:
        """previous (B, *grid), actions (B,) → (B, width) and the state behind this frame."""
        frames, seen = self._frames(previous, actions, 1)
        return self.time.step(frames, state, seen)

    def observe(self, state: MemoryState, previous: Tensor, actions: Tensor) -> MemoryState:
        """The state that :meth:`step` would return."""
        frames, seen = self._frames(previous, actions, 1)
        return self.time.observe(frames, state, seen)

    def _frames(self, previous: Tensor, actions: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """→ a vector of every frame (…, width) and whether it has codes (…); the first ``batch`` dimensions remain."""
        seen = (previous.flatten(batch) >= 0).any(-1)
        return self.enter(self.embed(previous).flatten(batch)) + self.act(actions + 1), seen


class LevelNeighbourhoods(nn.Module):
    """A convolution of each of several grids: embedded codes in one row (M, embed, N) → (M, width, N)."""

    def __init__(self, levels: Sequence[Sequence[int]], embed: int, width: int):
        super().__init__()
        self.levels = [tuple(level) for level in levels]
        self.convs = nn.ModuleList(CONV[len(level)](embed, width, 3, padding=1) for level in self.levels)

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.convs, self.levels, x.split([math.prod(level) for level in self.levels], 2), strict=True)
        return torch.cat([conv(part.unflatten(2, level)).flatten(2) for conv, level, part in parts], 2)


class FrameTransformer(Trunk):
    """Attention over the last ``window`` frames a block; the vector of a frame gives contexts of all positions.

    Since most details are in the previous frame, every position also reads the previous codes in its 3×3 neighbourhood
    (3 in rank 1), which the vector of the frame, a function of the action, too, scales and shifts (FiLM, Perez et al.,
    2018). The slots of a site share its context.

    Args:
        spec: of the grids, of one level or of several, and the actions.
        width: of a context vector. model, blocks, heads, window: width and shape of the transformer.
        embed: width of an embedded code. spread: width of the part of the frame's vector that one site alone receives.
        reach: sites to either side that a site reads in the previous grid. Windows of sound need all of them, since the
            first site of a window continues the last site of the one before.
        drop: share of the training segments whose actions are hidden, so that the prior also serves without actions.

    Raises :class:`ConfigError` for a grid of slots alone.
    """

    def __init__(
        self,
        spec: GridSpec,
        width: Count = 128,
        blocks: Count = 4,
        heads: Count = 8,
        window: Count = 16,
        model: Count = 256,
        embed: Count = 48,
        spread: Count = 32,
        reach: Count = 1,
        drop: Share = 0.0,
    ):
        super().__init__()
        grid, levels = spec.grid, spec.levels
        self.slotted = spec.codebook.dim() == 3 and not levels
        sites, self.slots = (grid[:-1], grid[-1]) if self.slotted else (grid, 1)
        rank, positions = len(sites), math.prod(sites)
        if not rank:
            raise ConfigError("this trunk is of grids of several sites, not of slots alone; choose another prior")
        self.grid, self.width, self.positions, self.drop = grid, width, positions, drop
        self.memory = TimeMemory(spec, model, blocks, heads, window, embed)
        self.embed = embedding(spec, embed)
        self.near = (
            LevelNeighbourhoods(levels, embed, width)
            if levels
            else CONV[rank](embed, width, 2 * reach + 1, padding=reach)
        )
        self.position = nn.Parameter(torch.randn(positions, width) * 0.02)
        self.spread = nn.Linear(model, positions * spread)
        self.enter = nn.Linear(spread, width, bias=False)
        self.film = nn.Linear(model, 2 * width)
        self.out = nn.Linear(width, width)
        if rank == 2:
            to_channels_last(self)

    def forward(self, previous: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        if self.training and self.drop:
            hidden = torch.rand(len(actions), 1, device=actions.device) < self.drop
            actions = actions.masked_fill(hidden, NO_ACTION)
        frames = self.memory(previous, actions, first)
        contexts = self._contexts(frames.flatten(0, 1), previous[:, first:].flatten(0, 1))
        return contexts.unflatten(0, frames.shape[:2])

    def begin(self, batch: int) -> MemoryState:
        return self.memory.begin(batch)

    def step(self, state: MemoryState, previous: Tensor, actions: Tensor) -> tuple[Tensor, MemoryState]:
        frames, state = self.memory.step(state, previous, actions)
        return self._contexts(frames, previous), state

    def observe(self, state: MemoryState, previous: Tensor, actions: Tensor) -> MemoryState:
        return self.memory.observe(state, previous, actions)

    def _contexts(self, frames: Tensor, previous: Tensor) -> Tensor:
        """frames (M, model), previous (M, *grid) → (M, N, width)."""
        vectors = self.embed(previous).sum(-2) if self.slotted else self.embed(previous)
        near = self.near(vectors.movedim(-1, 1)).movedim(1, -1).reshape(frames.shape[0], -1, self.width)
        x = near + self.position + self.enter(self.spread(frames).unflatten(1, (self.positions, -1)))
        scale, shift = self.film(frames)[:, None].chunk(2, -1)
        x = x + self.out(F.silu(torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale + 1)))
        return F.layer_norm(x, x.shape[-1:]).repeat_interleave(self.slots, 1)
