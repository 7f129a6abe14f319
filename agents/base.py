"""What an agent is: it sees frames and chooses actions, one episode at a time."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an agent imagined would come of its next H actions when it chose the first of them."""

    actions: np.ndarray  # (H,) int64
    rewards: np.ndarray  # (H,) float32, expected on arriving at each frame
    ends: np.ndarray  # (H,) float32, probability that the frame is terminal
    value: float  # the return that the agent expects, discounted, with what lies behind the H steps
    grids: np.ndarray  # (H, *grid) int64, codes of the frames
    draw: Callable[[np.ndarray], np.ndarray] = dataclasses.field(repr=False)  # grids (M, *grid) → (M, C, *size) uint8

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def frames(self) -> np.ndarray:
        """(H, C, *size) uint8, decoded at every use."""
        return self.draw(self.grids)


class Agent(ABC):
    """Chooses actions from frames. An explorer is an agent that plays while data is collected.

    It can be pickled before its first episode, so that every process that plays has its own.
    """

    @abstractmethod
    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        """Start an episode; all randomness until the next call comes from ``rng``."""

    @abstractmethod
    def act(self, frame: np.ndarray) -> int:
        """Index of the action to take at a frame, (C, *size) uint8."""

    @property
    def plan(self) -> Plan | None:
        """What was imagined for the last action; None where nothing was, as for an action that is held."""
        return None
