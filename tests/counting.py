"""An environment whose frames hold the number of the step and the seed of the episode, for tests of recorders."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldmodel.types import Spec

SPEC = Spec("counting", (1, 4, 4), ("stay", "go"), 10.0)


class Counting:
    """Episodes end by themselves after ``length`` steps. The reward is the action."""

    def __init__(self, length: int = 10):
        self.data_spec = SPEC
        self.length = length

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.seed, self.steps = seed or 0, 0
        return self.frame(), {}

    def frame(self) -> np.ndarray:
        frame = np.full(SPEC.frame_shape, self.steps, np.uint8)
        frame[0, 0] = np.frombuffer(np.uint32(self.seed).tobytes(), np.uint8)
        return frame

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.frame(), float(action), self.steps == self.length, False, {}

    def close(self) -> None:
        pass
