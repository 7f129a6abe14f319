"""The corridor of the fault injection under an id of its own, for tests of agents. Recorders import this module, so it
needs no torch."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from benchmarks.faults.corridor import ACTIONS, LONGEST, PLACES, SIZE, Corridor
from worldmodel.types import Spec

__all__ = ["CHOOSE", "ENDLESS", "ID", "LONGEST", "PLACES", "SPEC", "Endless", "Killed", "Right"]

ID = "corridor:Corridor-v0"
SPEC = Spec(ID, (3, SIZE, SIZE), ACTIONS, 10.0)
CHOOSE = ("env=gym", f"env.id={ID}", f"env.size={SIZE}", "device=cpu", "collect.workers=1")

ENDLESS = "corridor:EndlessCorridor-v0"


class Endless(Corridor):
    """The right end is a wall, too, and an episode goes on for ever."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place = min(self.place, PLACES - 2 if action else PLACES - 1)
        _, reward, _, _, info = super().step(action)
        return self._image(), reward, False, False, info


gymnasium.register("Corridor-v0", Corridor)
gymnasium.register("EndlessCorridor-v0", Endless)


class Right:
    """Goes to the right, always; or fails."""

    def __init__(self, fails: bool = False):
        self.fails = fails

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        assert action_names == ACTIONS

    def act(self, frame: np.ndarray) -> int:
        if self.fails:
            raise ZeroDivisionError("nothing to do")
        return 1


class Killed(Right):
    """Its process is killed at the second action, once for a file."""

    def __init__(self, flag: Path):
        super().__init__()
        self.flag, self.actions = flag, 0

    def act(self, frame: np.ndarray) -> int:
        self.actions += 1
        if self.actions == 2:
            with contextlib.suppress(FileNotFoundError):
                self.flag.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().act(frame)
