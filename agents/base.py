"""The interface of agents: they receive frames and choose actions, one episode at a time."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from worldmodel.errors import RunError


@dataclasses.dataclass(frozen=True)
class Plan:
    """The next H actions that an agent planned, and the frames and rewards that it imagined for them."""

    actions: np.ndarray  # (H,) int64
    rewards: np.ndarray  # (H,) float32, expected at each frame
    ends: np.ndarray  # (H,) float32, probability that the frame is terminal
    value: float  # expected discounted return, including the value after the H steps
    grids: np.ndarray  # (H, *grid) int64, codes of the frames
    decode: Callable[[np.ndarray], np.ndarray] = dataclasses.field(repr=False)  # (M, *grid) → (M, C, *size) uint8

    def __len__(self) -> int:
        return len(self.actions)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, without ``decode``, which holds a world model."""
        return {**vars(self), "decode": None}

    @property
    def frames(self) -> np.ndarray:
        """(H, C, *size) uint8, decoded at every access."""
        return self.decode(self.grids)


def check_actions(action_names: Sequence[str], trained: Sequence[str], what: str, remedy: str) -> None:
    """Raise :class:`RunError` unless the environment has the actions with which ``what`` was trained."""
    if tuple(action_names) != tuple(trained):
        known = f"{what} was trained with the actions {', '.join(trained)}"
        raise RunError(f"{known}, and this environment has {', '.join(action_names)}; {remedy}")


def choose(probabilities: np.ndarray, greedy: bool, rng: np.random.Generator) -> int:
    """The most probable action or a sampled one; ``probabilities``: (A,) float64."""
    if greedy:
        return int(probabilities.argmax())
    return int(rng.choice(len(probabilities), p=probabilities / probabilities.sum()))


class Agent(ABC):
    """Chooses actions from frames. An explorer is an agent that collects data.

    An agent can be pickled before its first episode, so that every process can have a copy.
    """

    def check(self, action_names: Sequence[str]) -> None:  # noqa: B027 (most agents accept all actions)
        """Raise :class:`ConfigError` for settings that these actions rule out; called before anything is recorded."""

    @abstractmethod
    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        """Start an episode; all randomness until the next call comes from ``rng``."""

    @abstractmethod
    def act(self, frame: np.ndarray) -> int:
        """Index of the action to take at a frame, (C, *size) uint8."""

    @property
    def plan(self) -> Plan | None:
        """The plan made at the last action; None if none was made, for example when an action is repeated."""
        return None

    @property
    def finished(self) -> bool:
        """Whether the episode should end at the current frame; a recorder then flags it as truncated."""
        return False
