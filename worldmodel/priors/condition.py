"""The trunk of sources without a past: an image is made of its class alone, wherever one looks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.priors.base import State, Trunk, grid_size
from worldmodel.types import NO_ACTION


class ConditionTrunk(Trunk):
    """The embedded action (or class), the same at every position. It sees no grid and carries no state.

    Args:
        grid: shape of a grid. codebook: not needed. actions: A. width: of a context vector.
        drop: share of the conditions that training hides, so that the prior also knows frames of no known class; with 1
            it never looks at a class, as is right where a class has one frame: it would learn to tell frames by it.
    """

    remembers = False

    def __init__(self, grid: Sequence[int], codebook: Tensor, actions: int, width: int = 64, drop: float = 0.0):
        super().__init__()
        if not 0 <= drop <= 1:
            raise ConfigError(f"prior.trunk.drop is {drop}; it is a share from 0 to 1")
        self.drop, self.sees_actions = drop, drop < 1
        self.positions, self.width = grid_size(grid), width
        self.embed = nn.Embedding(actions + 1, width)  # the first is that of an unknown action, −1

    def forward(self, previous: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        return self._told(actions[:, first:])[:, :, None].expand(-1, -1, self.positions, -1)

    def _told(self, actions: Tensor) -> Tensor:
        """actions of any shape → their vectors (..., width), some of them hidden in training."""
        if self.training or not self.sees_actions:
            hidden = torch.rand(actions.shape, device=actions.device) < self.drop
            actions = actions.masked_fill(hidden, NO_ACTION)
        return self.embed(actions + 1)

    def begin(self, batch: int) -> State:
        return ()

    def step(self, state: State, previous: Tensor, actions: Tensor) -> tuple[Tensor, State]:
        return self._told(actions)[:, None].expand(-1, self.positions, -1), state

    def observe(self, state: State, previous: Tensor, actions: Tensor) -> State:
        return state
