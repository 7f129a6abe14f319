"""Explorers that reach more of a world than a uniform random walk does.

A uniform walk in first person turns to and fro on the spot, or stands at a wall and pushes. :class:`StickyExplorer`
holds every action for a run of steps and turns away when it walks but the picture stands still.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from worldmodel.errors import ConfigError


class Explorer(ABC):
    """Chooses actions from frames. Every process that records has its own."""

    @abstractmethod
    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        """Start an episode; all randomness until the next call comes from ``rng``."""

    @abstractmethod
    def act(self, frame: np.ndarray) -> int:
        """Index of the action to take at a frame, (C, *size) uint8."""


class UniformExplorer(Explorer):
    """Every action with the same probability at every step."""

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        self._count = len(action_names)
        self._rng = rng

    def act(self, frame: np.ndarray) -> int:
        return int(self._rng.integers(self._count))


class StickyExplorer(Explorer):
    """Runs of weighted actions; turns away from walls where the environment has the actions for it.

    ``weights`` are relative odds of beginning a run of an action, ``runs`` the (shortest, longest) run of it in steps;
    both go by name, names that the environment lacks are ignored and actions that are not named get the defaults.
    After a step of ``walk`` that changed the frame by less than ``still`` (mean of absolute differences, in levels of
    256), it takes a run of ``turn_away`` steps of one of ``turns``, and keeps to that side until it walks freely again.
    """

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        runs: Mapping[str, Sequence[int]] | None = None,
        default_weight: float = 1.0,
        default_run: Sequence[int] = (1, 4),
        walk: str = "forward",
        turns: Sequence[str] = ("left", "right"),
        turn_away: Sequence[int] = (3, 8),
        still: float = 2.0,
    ):
        self.weights = dict(weights or {})
        self.runs = {name: _checked(name, run) for name, run in (runs or {}).items()}
        self.default_weight = default_weight
        self.default_run = _checked("default_run", default_run)
        self.walk = walk
        self.turns = tuple(turns)
        self.turn_away = _checked("turn_away", turn_away)
        self.still = still
        if default_weight < 0 or any(weight < 0 for weight in self.weights.values()):
            raise ConfigError(f"weights of actions must not be negative; got {self.weights} and {default_weight}")

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        names = [name.lower() for name in action_names]
        odds = np.array([self.weights.get(name, self.default_weight) for name in names], np.float64)
        if odds.sum() <= 0:
            raise ConfigError(f"no action of {', '.join(action_names)} has a weight above 0")
        self._odds = odds / odds.sum()
        self._run = [self.runs.get(name, self.default_run) for name in names]
        self._walk = names.index(self.walk) if self.walk in names else None
        self._turns = [names.index(name) for name in self.turns if name in names]
        self._rng = rng
        self._action = -1
        self._left = 0  # steps left of the run
        self._side: int | None = None  # the turn that leads away from the present wall
        self._before: np.ndarray | None = None

    def act(self, frame: np.ndarray) -> int:
        if self._left and self._action == self._walk and self._turns and self._before is not None:
            if self._difference(frame) < self.still:
                self._side = self._side if self._side is not None else int(self._rng.choice(self._turns))
                self._begin_run(self._side, self.turn_away)
            else:
                self._side = None
        if not self._left:
            action = int(self._rng.choice(len(self._odds), p=self._odds))
            self._begin_run(action, self._run[action])
        self._left -= 1
        self._before = frame
        return self._action

    def _begin_run(self, action: int, run: Sequence[int]) -> None:
        self._action = action
        self._left = int(self._rng.integers(run[0], run[1] + 1))

    def _difference(self, frame: np.ndarray) -> float:
        # Every other pixel is enough to tell a wall, and the explorer must be cheaper than the simulator.
        assert self._before is not None
        now, before = frame[..., ::2].astype(np.int16), self._before[..., ::2].astype(np.int16)
        return float(np.abs(now - before).mean())


def _checked(name: str, run: Sequence[int]) -> tuple[int, int]:
    """A (shortest, longest) pair. Raises :class:`ConfigError` naming the setting."""
    if len(run) != 2 or not 1 <= run[0] <= run[1]:
        raise ConfigError(
            f"the run of {name} must be [shortest, longest] with 1 <= shortest <= longest; got {list(run)}"
        )
    return int(run[0]), int(run[1])
