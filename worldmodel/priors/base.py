"""The prior: p(next grid | grids so far, actions) as a trunk over history times a head within the grid."""

from __future__ import annotations

import abc
from typing import NamedTuple

from torch import Tensor, nn

from worldmodel.heads.base import State


class Trunk(nn.Module, abc.ABC):
    """Reads past grids and actions, one pass a frame, and returns the context of the next grid: one vector a code.

    At index t it is given the *previous* grid (−1 everywhere where there is none) and the action that leads to the
    frame t; ``forward`` over T steps equals T calls of ``step``, whatever the length: a full context slides.
    """

    width: int  # of a context vector
    remembers: bool = True  # whether past grids matter; the frames of a trunk without a past stand on their own
    sees_actions: bool = True  # whether actions (or classes) matter

    @abc.abstractmethod
    def forward(self, previous: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        """previous (B, T, *grid) int64, actions (B, T) int64 → contexts (B, T − first, N, width) of the steps from
        ``first`` on; the others are seen, but what is theirs alone is not computed."""

    @abc.abstractmethod
    def begin(self, batch: int) -> State:
        """The state before anything was seen."""

    @abc.abstractmethod
    def step(self, state: State, previous: Tensor, actions: Tensor) -> tuple[Tensor, State]:
        """previous (B, *grid), actions (B,) → contexts (B, N, width) and the state behind this frame."""

    @abc.abstractmethod
    def observe(self, state: State, previous: Tensor, actions: Tensor) -> State:
        """The state that :meth:`step` would return, where the context is not needed (it may cost less)."""


class PriorOutput(NamedTuple):
    logits: Tensor  # (B, T, N, K)
    forecast: Tensor  # (B, T, N, K), every code on its own
    rewards: Tensor | None  # (B, T, bins): logits of the two-hot reward; None for a prior without outcomes
    ends: Tensor | None  # (B, T): logit of the episode's termination at the frame; None for a prior without outcomes


class Step(NamedTuple):
    """One imagined frame."""

    codes: Tensor  # (B, *grid) int64
    rewards: Tensor  # (B,) float32, expected reward on arriving at the frame
    ends: Tensor  # (B,) float32, probability that the frame is terminal
    passes: Tensor  # () float32: mean passes of the head over the batch


class PriorState(NamedTuple):
    trunk: State
    previous: Tensor  # (B, *grid) int64, the last grid; −1 where nothing was seen
