"""The prior: p(next grid | grids so far, actions) as a trunk over history times a head within the grid."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

State = Any  # what a trunk carries from frame to frame; a tree of tensors, passed and returned, never hidden


class Trunk(nn.Module, abc.ABC):
    """Reads past grids and actions, one pass a frame, and returns the context of the next grid: one vector a code.

    At index t it is given the *previous* grid (−1 everywhere where there is none) and the action that leads to the
    frame t; ``forward`` over T steps equals T calls of ``step``, whatever the length: a full context slides.
    """

    width: int  # of a context vector
    remembers: bool = True  # whether past grids matter; the frames of a trunk without a past stand on their own
    sees_actions: bool = True  # whether actions (or classes) matter
    takes_levels: bool = False  # it reads several grids, and is constructed with their shapes as ``levels``
    reads_names: bool = False  # it reads what actions are called, and is constructed with their ``names``

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


class Head(nn.Module, abc.ABC):
    """Autoregressive over the N positions of one grid in an order of its own: p(code i | codes < i, context).

    ``order`` (N,) int64 is the raster index of the position that comes i-th. Everything else here stands in that order:
    whoever calls permutes contexts and codes, so that samplers need not know.

    The sampler sees nothing but these calls. ``extend`` is what makes both samplers fast: it computes the positions
    ``start … stop − 1`` behind a verified prefix, of which the state holds what the head makes of it.
    """

    takes_levels: bool = False  # it draws several grids, and is constructed with their shapes as ``levels``
    order: Tensor
    groups: list[int]  # sizes, Σ = N: runs of positions that do not look at each other, so that one pass may draw a run
    vectors: Tensor  # (K, D) float, where the codes lie: centred, mean squared length 1
    stepwise: bool = False  # whether one position alone costs so little beside all that, on a CPU, no guess pays off

    @abc.abstractmethod
    def forward(self, codes: Tensor, contexts: Tensor) -> Tensor:
        """codes (B, N) int64, contexts (B, N, width) → logits (B, N, K); logits[:, i] sees codes[:, :i] alone."""

    @abc.abstractmethod
    def begin(self, contexts: Tensor) -> State:
        """A state for the grids of ``contexts`` (B, N, width), with nothing computed yet."""

    @abc.abstractmethod
    def extend(self, state: State, codes: Tensor, start: int, stop: int) -> Tensor:
        """Logits (B, stop − start, K) of the positions start … stop − 1.

        ``codes`` (B, N): the entries before ``stop − 1`` are read. Those before ``start`` are final: what the head
        makes of them is kept in the state, in place, and is not computed again.
        """

    @abc.abstractmethod
    def select(self, state: State, rows: Tensor) -> State:
        """The state of some rows of the batch."""

    @abc.abstractmethod
    def forecast(self, contexts: Tensor) -> Tensor:
        """contexts (B, N, width) → logits (B, N, K) of every code on its own: a first guess for predictive sampling."""


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


def grid_size(grid: Sequence[int]) -> int:
    """N, the number of positions."""
    return math.prod(grid)


def count_actions(actions: int | Sequence[str]) -> int:
    """A, of the number or the names of the actions."""
    return actions if isinstance(actions, int) else len(actions)
