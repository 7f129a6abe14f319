"""The interfaces of priors and of their trunks, and operations on the rows of their states."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Generator, Tensor, nn

from worldmodel.errors import UnknownActionError
from worldmodel.heads.base import State
from worldmodel.heads.noise import Randomness
from worldmodel.heads.sampling import Sampler
from worldmodel.tokenizers.base import Autoencoder, Bound
from worldmodel.types import Segment

Terms = dict[str, Tensor]  # named scalars
Tree = TypeVar("Tree")
Sample = Callable[[int, Generator], Segment]
"""Draws windows of codes; called with their number."""


class Trunk(nn.Module, abc.ABC):
    """Past grids and actions → the context of the next grid: one vector for each code.

    The inputs at index t are the *previous* grid (−1 everywhere where there is none) and the action that leads to frame
    t. ``forward`` over T steps equals T calls of ``step`` for any T: a full context slides.
    """

    width: int  # of a context vector
    remembers: bool = True  # whether past grids matter
    sees_actions: bool = True  # whether actions (or classes) matter
    lead: int = 0  # frames of a training window that the trunk needs before the first target

    def prepare(self, sample: Sample, generator: Generator) -> str:
        """Estimate what is not trained, before the training, from windows of codes; returns the result in words."""
        return ""

    @abc.abstractmethod
    def forward(self, previous: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        """previous (B, T, *grid) int64, actions (B, T) int64 → contexts (B, T − first, N, width) of the steps from
        ``first`` on, which depend on all steps."""

    @abc.abstractmethod
    def begin(self, batch: int) -> State:
        """The state before anything was seen."""

    @abc.abstractmethod
    def step(self, state: State, previous: Tensor, actions: Tensor) -> tuple[Tensor, State]:
        """previous (B, *grid), actions (B,) → contexts (B, N, width) of a frame to dream, and the state after it."""

    def observe(self, state: State, previous: Tensor, actions: Tensor) -> State:
        """The state after a recorded frame, whose context is not needed: by default that of :meth:`step`."""
        return self.step(state, previous, actions)[1]

    def learn(self, name: str) -> int | None:
        """The condition of a name, known or new, for a trunk that reads names; None for others."""
        return None


class Step(NamedTuple):
    """One imagined frame."""

    codes: Tensor  # (B, *grid) int64; float latents of a prior without codes
    rewards: Tensor  # (B,) float32, expected reward on arriving at the frame
    ends: Tensor  # (B,) float32, probability that the frame is terminal
    passes: Tensor  # () float32: mean passes of the head over the batch


class PriorState(NamedTuple):
    trunk: State
    previous: Tensor  # (B, *grid) int64, the last grid; −1 where nothing was seen


class LatentPrior(nn.Module, abc.ABC):
    """p(latents of a frame | latents so far, actions so far), for codes or for the latents of a VAE."""

    grid: tuple[int, ...]  # the shape of the latents of a frame
    context: int = 0  # frames that a dream sees first, unless it is given another number
    lead: int = 0  # leading frames of a training segment that are seen but not predicted
    sees_actions: bool = True  # whether actions (or classes) matter

    def __init__(self, action_names: Sequence[str], loss_weights: Mapping[str, float] | None = None):
        super().__init__()
        self.action_names, self.num_actions = tuple(action_names), len(action_names)
        self.loss_weights = dict(loss_weights or {})  # of the terms of training; 1 where none is given

    def condition_index(self, name: str) -> int:
        """The index of an action or a class. Raises :class:`UnknownActionError`, which lists the names."""
        if name not in self.action_names:
            raise UnknownActionError(name, self.action_names)
        return self.action_names.index(name)

    def prepare(self, sample: Sample, generator: Generator) -> str:
        """Estimate what is not trained, before the training, from windows of codes; returns the result in words."""
        return ""

    @abc.abstractmethod
    def losses(self, segment: Segment, generator: Generator | None = None) -> tuple[Terms, Terms]:
        """Terms to minimise and figures to report, of a segment of latents (``segment.codes``)."""

    @abc.abstractmethod
    def log_likelihood(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Exact log p of latents (B, T, *grid) given those before them, actions (B, T) → (B, T) nats."""

    @abc.abstractmethod
    def begin(self, batch: int) -> PriorState:
        """The state before anything was seen."""

    @abc.abstractmethod
    def step(
        self, state: PriorState, actions: Tensor, sampler: Sampler, generator: Randomness = None
    ) -> tuple[Step, PriorState]:
        """Imagine the frame that the actions (B,) lead to."""

    def bound(
        self, model: Autoencoder, frames: Tensor, conditions: Tensor, generator: Generator | None = None
    ) -> Bound:
        """The bound of an autoencoder on single frames (B, C, *size) uint8, with this prior of the latents."""
        codes = model.encode(frames)
        reconstruction = model.given(frames, codes)
        nats = -self.log_likelihood(codes[:, None], conditions[:, None])[:, 0]
        return Bound(reconstruction + nats, reconstruction)


def select_rows(state: Tree, rows: Tensor | slice) -> Tree:
    """The state of the rows (n,) int64 of a batch, in that order; of a slice, which copies nothing.

    A state is a tree of tuples and tensors whose first dimension is the batch. Neither this function nor the next two
    change a state in place: a state that was returned earlier stays what it was.
    """
    return map_state(lambda tensor: tensor[rows], state)


def replace_rows(state: Tree, rows: Tensor, other: Tree) -> Tree:
    """The state with its rows (n,) int64 replaced by those of a state of n rows; no row stands in ``rows`` twice."""
    return map_state(lambda tensor, new: tensor.index_copy(0, rows, new), state, other)


def join_rows(states: Sequence[Tree]) -> Tree:
    """The state of all rows of several states, one behind the other."""
    return map_state(lambda *tensors: torch.cat(tensors), *states)


def map_state(function: Callable[..., Tensor], *trees: Any) -> Any:
    """A state whose tensors are results of a function of those of other states."""
    first = trees[0]
    if isinstance(first, Tensor):
        return function(*trees)
    assert isinstance(first, tuple), f"a state is a tree of tuples and tensors, not of {type(first).__name__}"
    parts = [map_state(function, *branch) for branch in zip(*trees, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
