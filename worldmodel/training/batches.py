"""Batches of a fit: a pure function of the step, drawn one step ahead in a thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from worldmodel.types import Segment

DRAWS_BATCHES = 1  # parts the seeds of the batches from those of the objective's own noise

Batches = Callable[[int], Segment]
"""Batch of a step, a pure function of it (and of seed and rank), so that a resumed run sees the same data."""


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
        future = self._next[1]
        batch = future.result()
        self._next = (step + 1, self._pool.submit(self._batches, step + 1))
        return batch

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
