"""A corridor whose right end pays, for tests of agents. Processes that play import it: it knows nothing of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from worldmodel.types import Spec

ID = "corridor:Corridor-v0"
PLACES, LONGEST = 5, 12
SPEC = Spec(ID, (3, 16, 16), ("left", "right"), 10.0)
CHOOSE = ("env=gym", f"env.id={ID}", "env.size=16", "device=cpu", "collect.workers=1")


class Corridor(gymnasium.Env[np.ndarray, int]):
    """Steps to the left or the right from a random place; +1 and the end at the right end, else −0.1."""

    metadata: dict[str, Any] = {"render_fps": 10, "action_names": ("left", "right")}  # noqa: RUF012
    observation_space = Box(0, 255, (16, 16, 3), np.uint8)
    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(PLACES - 1)), 0
        return self._picture(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place = max(0, self.place + (1 if action else -1))
        self.steps += 1
        there = self.place == PLACES - 1
        return self._picture(), 1.0 if there else -0.1, there, not there and self.steps == LONGEST, {}

    def _picture(self) -> np.ndarray:
        picture = np.full((16, 16, 3), 40, np.uint8)
        picture[:, 3 * self.place : 3 * self.place + 3] = (250, 180, 60)
        return picture


gymnasium.register("Corridor-v0", Corridor)


class Right:
    """Goes to the right, always; or fails."""

    def __init__(self, fails: bool = False):
        self.fails = fails

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        assert action_names == ("left", "right")

    def act(self, frame: np.ndarray) -> int:
        if self.fails:
            raise ZeroDivisionError("nothing to do")
        return 1
