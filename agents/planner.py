"""What planners share: the run that they imagine with, the episode so far, decisions that are held, a time budget."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from worldmodel.agents.base import Agent, Plan
from worldmodel.agents.belief import Belief, Mind, load_mind

from worldmodel.config.checks import checked
from worldmodel.errors import RunError
from worldmodel.types import NO_ACTION
from worldmodel.util.ranges import Count, NonNegative, Positive, Share
from worldmodel.world import Precision

clock = time.perf_counter


class Planner(Agent):
    """Chooses every action by what the world model of a run says would come of it.

    Args:
        run: folder of a trained run; it is read at the first episode, by every process that plays.
        discount: γ of a step of the environment; None: that of the run's critic, or 0.985 where it has none.
        repeat: steps that every decision is held for, imagined and taken, so that a plan reaches farther.
        temperature: of the dream; 0 imagines what is expected.
        value: ``auto`` trusts the run's actor and critic where it has them, ``none`` knows imagined rewards alone.
        seconds: a decision ends after the first round that goes beyond them; None: after all rounds.
        device, precision: as :meth:`WorldModel.load` takes them.
    """

    @checked
    def __init__(
        self,
        run: str | Path,
        discount: Share | None = None,
        repeat: Count = 1,
        temperature: NonNegative = 1.0,
        value: Literal["auto", "none"] = "auto",
        seconds: Positive | None = None,
        device: str = "cpu",
        precision: Precision = "auto",
    ):
        self.run, self.device, self.precision = str(run), device, precision
        self.discount, self.repeat, self.temperature = discount, repeat, temperature
        self.value, self.seconds = value, seconds
        self._mind: Mind | None = None
        self._plan: Plan | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**{name: value for name, value in vars(self).items() if name[0] != "_"}, "_mind": None, "_plan": None}

    def adopt(self, mind: Mind) -> None:
        """Imagine with this, instead of what the run has."""
        self._mind = mind

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        if self._mind is None:
            self._mind = load_mind(
                self.run, self.value, self.device, self.precision, self.discount, self.repeat, self.temperature
            )
        known = self._mind.world.spec.action_names
        if tuple(action_names) != tuple(known):
            raise RunError(
                f"the environment has the actions {', '.join(action_names)}, and the run {self.run} knows "
                f"{', '.join(known)}; choose a run of this environment"
            )
        self._generator = torch.Generator(self._mind.device).manual_seed(int(rng.integers(2**63)))
        self._rng, self._action, self._held, self._plan = rng, NO_ACTION, 0, None
        self._belief = self._mind.begin()
        self._came: list[bytes] = []
        self._reset()

    def act(self, frame: np.ndarray) -> int:
        assert self._mind is not None, "begin comes before act"
        self._started = clock()
        self._belief = self._mind.see(self._belief, frame, self._action)
        self._came.append(key_of(self._belief.grids[0].cpu().numpy()))
        self._plan = None
        if self._held:
            self._held -= 1
            return self._action
        self._plan = self._decide(self._mind, self._belief, b"".join(self._came))
        self._action, self._held, self._came = int(self._plan.actions[0]), self.repeat - 1, []
        return self._action

    @property
    def plan(self) -> Plan | None:
        return self._plan

    @property
    def late(self) -> bool:
        """Whether the seconds of the decision are over."""
        return self.seconds is not None and clock() - self._started >= self.seconds

    @abstractmethod
    def _reset(self) -> None:
        """Forget the episode before."""

    @abstractmethod
    def _decide(self, mind: Mind, belief: Belief, came: bytes) -> Plan:
        """What to do at a belief of one row; ``came``: the key of the grids seen since the last decision."""


def key_of(grids: np.ndarray) -> bytes:
    """What tells grids of codes apart from others of their shape."""
    return np.ascontiguousarray(grids, np.int32).tobytes()
