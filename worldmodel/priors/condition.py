"""The trunk of sources without a past: an image is made of its class alone, wherever one looks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from worldmodel.priors.base import State, Trunk, grid_size


class ConditionTrunk(Trunk):
    """The embedded action (or class), the same at every position. It sees no grid and carries no state.

    Args:
        grid: shape of a grid. codebook: not needed. actions: A. width: of a context vector.
    """

    def __init__(self, grid: Sequence[int], codebook: Tensor, actions: int, width: int = 64):
        super().__init__()
        self.positions, self.width = grid_size(grid), width
        self.embed = nn.Embedding(actions + 1, width)  # the first is that of an unknown action, −1

    def forward(self, previous: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        return self.embed(actions[:, first:] + 1)[:, :, None].expand(-1, -1, self.positions, -1)

    def begin(self, batch: int) -> State:
        return ()

    def step(self, state: State, previous: Tensor, actions: Tensor) -> tuple[Tensor, State]:
        return self.embed(actions + 1)[:, None].expand(-1, self.positions, -1), state

    def observe(self, state: State, previous: Tensor, actions: Tensor) -> State:
        return state
