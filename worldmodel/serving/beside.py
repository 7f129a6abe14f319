"""The environment beside a dream: in step with it, and compared with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from worldmodel.errors import EnvError
from worldmodel.evaluation.metrics import psnr
from worldmodel.serving.batching import in_background
from worldmodel.serving.dreams import Beginning
from worldmodel.serving.simulator import Simulator, Truth


class Beside:
    """The simulator of one visitor, while a dream that began at its start goes on."""

    def __init__(self, simulator: Simulator):
        self.simulator = simulator
        self.active = False  # whether the present dream began at the start of the environment
        self.truth = Truth(np.zeros((1, 1, 1), np.uint8), 0.0, 0.0, False)
        self._decibels: list[float] = []  # of each dreamt frame
        self.report = ""  # a description of a failure, which is sent to the visitor

    async def begin(self, seed: int) -> Beginning:
        """Start an episode. Raises :class:`EnvError`."""
        self.active = False
        beginning = await in_background(self.simulator.begin, seed)
        self.truth = Truth(beginning.frames[-1], 0.0, 0.0, False)
        self._decibels, self.report, self.active = [], "", True
        return beginning

    async def step(self, action: int) -> None:
        """Take an action. When the environment fails twice, the dream goes on without it."""
        try:
            self.truth = await in_background(self.simulator.step, action)
            self.report = self.simulator.report
        except EnvError as error:
            self.active, self.report = False, f"the environment has failed: {error}"

    def compare(self, frame: np.ndarray) -> None:
        """Compare with the dreamt frame (C, H, W) of the same step."""
        if self.active:
            self._decibels.append(float(psnr(torch.from_numpy(frame), torch.from_numpy(self.truth.frame))))

    def undo(self, steps: int) -> None:
        self.truth = self.simulator.undo(steps)
        del self._decibels[len(self._decibels) - steps :]

    def frames(self, count: int) -> np.ndarray:
        """The last frames (count, C, H, W)."""
        return self.simulator.frames(count)

    def figures(self) -> dict[str, Any]:
        """What a frame's header has of the environment; PSNR in dB, of this frame and the mean since the start."""
        count = len(self._decibels)
        return {
            "truth_reward": self.truth.reward,
            "truth_total": self.truth.total,
            "truth_ended": self.truth.ended,
            "psnr": self._decibels[-1] if count else None,
            "psnr_mean": sum(self._decibels) / count if count else None,
        }

    def close(self) -> None:
        self.simulator.close()
