"""A tiny environment; recorders import this module, so it needs nothing else."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

ID = f"{__name__}:FaultCorridor-v0"
ACTIONS = ("left", "right")
PLACES, LONGEST, SIZE = 5, 12, 16


class Corridor(gymnasium.Env[np.ndarray, Any]):
    """Steps to the left or the right from a random place; the right end pays and ends the episode."""

    metadata: dict[str, Any] = {"render_fps": 10, "render_modes": ["rgb_array"], "action_names": ACTIONS}  # noqa: RUF012
    observation_space = Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    action_space = Discrete(len(ACTIONS))

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode
        self.place = self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(PLACES - 1)), 0
        return self._image(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place, self.steps = max(0, self.place + (1 if action else -1)), self.steps + 1
        end = self.place == PLACES - 1
        return self._image(), 1.0 if end else -0.1, end, not end and self.steps == LONGEST, {}

    def render(self) -> Any:
        return self._image() if self.render_mode else None

    def _image(self) -> np.ndarray:
        image = np.full((SIZE, SIZE, 3), 40, np.uint8)
        image[:, 3 * self.place : 3 * self.place + 3] = (250, 180, 60)
        return image


gymnasium.register("FaultCorridor-v0", f"{__name__}:Corridor")
