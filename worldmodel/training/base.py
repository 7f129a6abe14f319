"""What the optimisation loop works with: objectives, augmentations, batches, and means of what is logged."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.types import Segment

if TYPE_CHECKING:  # it takes a second to import, and who only loads a model does not need it
    from lightning_fabric import Fabric

DRAWS_BATCHES = 1  # parts the seeds of the batches from those of the objective's own noise

Batches = Callable[[int], Segment]
"""Batch of a step, a pure function of it (and of seed and rank), so that a resumed run sees the same data."""


class Losses(NamedTuple):
    """What an objective returns for a batch (a tuple, since Fabric looks into what a module returns)."""

    terms: dict[str, Tensor]  # scalars (); their weighted sum is minimised
    metrics: dict[str, Tensor]  # detached scalars (); logged as means


class Objective(nn.Module, abc.ABC):
    """What a fit minimises. A module, so that its model is wrapped with it when several devices train together."""

    loss_weights: Mapping[str, float] = MappingProxyType({})  # of the terms; 1 where none is given
    headline: tuple[str, ...] = ()  # metrics worth a place in the progress bar
    counters: tuple[str, ...] = ()  # buffers that only metrics need; a resumed fit starts them anew if they do not fit

    @abc.abstractmethod
    def forward(self, batch: Segment, generator: torch.Generator) -> Losses:
        """Losses of one batch. All randomness comes from ``generator``; names are the same at every call."""


class Augmentation(nn.Module, abc.ABC):
    """Examples of a batch → what is shown in their place. It has no parameters."""

    @abc.abstractmethod
    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, C, *size) uint8 → the same shape, uint8."""


def step_seed(*key: int) -> int:
    """A 63-bit seed from integers such as (seed, step, rank); near keys give unrelated seeds."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def make_batches(sample: Callable[[int, torch.Generator], Segment], size: int, seed: int, rank: int) -> Batches:
    """Batch of a step: drawn by a generator that is seeded from (seed, step, rank) and nothing else."""
    return lambda step: sample(size, torch.Generator().manual_seed(step_seed(seed, step, rank, DRAWS_BATCHES)))


class Ahead:
    """Reads the batch of the next step in a thread while this one computes."""

    def __init__(self, batches: Batches):
        self._batches = batches
        self._pool = ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[Segment]] | None = None

    def __call__(self, step: int) -> Segment:
        if self._next is None or self._next[0] != step:
            self._next = (step, self._pool.submit(self._batches, step))
        batch = self._next[1].result()
        self._next = (step + 1, self._pool.submit(self._batches, step + 1))
        return batch

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class RunningMeans:
    """Running means of named scalars, summed on the device in float64 so that a step costs no synchronisation."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.sums: Tensor | None = None
        self.count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        names = tuple(values)
        row = torch.stack([value.detach() for value in values.values()])
        if self.sums is None:
            self.names, self.sums = names, torch.zeros_like(row, dtype=torch.float64)
        elif names != self.names:
            raise ValueError(f"an objective must name the same values at every step: {names} after {self.names}")
        self.sums = self.sums + row
        self.count += 1

    def means(self, fabric: Fabric) -> dict[str, float]:
        """Means over the window and over all processes, which must all call this."""
        if self.sums is None:
            return {}
        if fabric.world_size > 1:
            self.sums = torch.as_tensor(fabric.all_reduce(self.sums, reduce_op="mean"))
        return dict(zip(self.names, (self.sums / self.count).tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """As plain JSON; float64 survives it bit for bit."""
        return {"names": self.names, "sums": [] if self.sums is None else self.sums.tolist(), "count": self.count}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.names, self.count = tuple(state["names"]), int(state["count"])
        self.sums = torch.tensor(state["sums"], dtype=torch.float64, device=device) if self.names else None
