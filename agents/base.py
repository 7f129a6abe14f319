"""What an agent is: it sees frames and chooses actions, one episode at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np


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
