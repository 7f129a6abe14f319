"""The base class of planners: loads the model, tracks the episode, repeats actions, limits the time."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from worldmodel.agents.base import Agent, Plan
from worldmodel.agents.planning_model import EpisodeState, PlanningModel
from worldmodel.agents.run import AGENT, load_actor
from worldmodel.config.checks import checked
from worldmodel.errors import RunError
from worldmodel.types import NO_ACTION
from worldmodel.util.ranges import Count, NonNegative, Positive, Share
from worldmodel.world import Precision, WorldModel

clock = time.perf_counter


class Planner(Agent):
    """Chooses actions by imagining their results with the world model of a run.

    Args:
        run: folder of a trained run; every process loads it at its first episode.
        discount: γ of a step of the environment; None: that of the run's critic, or 0.985 without one.
        repeat: number of steps for which every action is repeated, so that a plan covers more steps.
        temperature: of the dream; 0 makes it deterministic.
        value: ``auto`` uses the run's actor and critic if it has them, ``none`` only imagined rewards.
        seconds: time limit of a decision, checked after every round; None: no limit.
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
        self._model: PlanningModel | None = None
        self._plan: Plan | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**{name: value for name, value in vars(self).items() if name[0] != "_"}, "_model": None, "_plan": None}

    def use_model(self, model: PlanningModel) -> None:
        """Use this model instead of loading that of the run."""
        self._model = model

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        if self._model is None:
            folder = Path(self.run)
            world = WorldModel.load(folder, self.device, self.precision)
            trained_actor = self.value == "auto" and (folder / AGENT).is_file()
            actor = load_actor(folder, world.device)[1] if trained_actor else None
            self._model = PlanningModel(world, actor, self.discount, self.repeat, self.temperature)
        trained = self._model.world.spec.action_names
        if tuple(action_names) != tuple(trained):
            raise RunError(
                f"the environment has the actions {', '.join(action_names)}, and the run {self.run} was trained with "
                f"{', '.join(trained)}; choose a run of this environment"
            )
        self._generator = torch.Generator(self._model.device).manual_seed(int(rng.integers(2**63)))
        self._rng, self._action, self._repeats_left, self._plan = rng, NO_ACTION, 0, None
        self._state = self._model.begin()
        self._seen_keys: list[bytes] = []
        self._reset()

    def act(self, frame: np.ndarray) -> int:
        assert self._model is not None, "call begin before act"
        self._started = clock()
        self._state = self._model.observe(self._state, frame, self._action)
        self._seen_keys.append(grid_key(self._state.grids[0].cpu().numpy()))
        self._plan = None
        if self._repeats_left:
            self._repeats_left -= 1
            return self._action
        self._plan = self._decide(self._model, self._state, b"".join(self._seen_keys))
        self._action, self._repeats_left, self._seen_keys = int(self._plan.actions[0]), self.repeat - 1, []
        return self._action

    @property
    def plan(self) -> Plan | None:
        return self._plan

    @property
    def out_of_time(self) -> bool:
        """Whether the decision has exceeded ``seconds``."""
        return self.seconds is not None and clock() - self._started >= self.seconds

    @abstractmethod
    def _reset(self) -> None:
        """Clear the state of the previous episode."""

    @abstractmethod
    def _decide(self, model: PlanningModel, state: EpisodeState, seen_key: bytes) -> Plan:
        """Plan at a state of one row; ``seen_key``: the key of the grids observed since the last decision."""


def grid_key(grids: np.ndarray) -> bytes:
    """Bytes that identify grids among those of the same shape."""
    return np.ascontiguousarray(grids, np.int32).tobytes()
