"""The base class of planners: loads the model, tracks the episode, repeats actions, limits the time."""

import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldmodel.agents.actor import AGENT, load_actor
from worldmodel.agents.actor_critic import DISCOUNT, ActorCritic, RecentFrames
from worldmodel.agents.base import Agent, Plan, check_actions
from worldmodel.config.checks import checked
from worldmodel.heads import make_sampler
from worldmodel.priors import PriorState, Step
from worldmodel.types import NO_ACTION
from worldmodel.util.ranges import Count, NonNegative, Positive, Share
from worldmodel.world import Precision, WorldModel


class EpisodeState(NamedTuple):
    """State of B episodes; :func:`~worldmodel.priors.select_rows` selects rows of it."""

    prior_state: PriorState  # of the world model
    recent: RecentFrames | tuple[()]  # of the actor; () without an actor

    @property
    def grids(self) -> Tensor:
        """(B, *grid) int64, the last grids that were observed or imagined."""
        return self.prior_state.previous


class Transition(NamedTuple):
    """Imagined results of B decisions."""

    rewards: Tensor  # (B,) float32, Σ γ^k P(no end before) r over the steps for which the action is repeated
    discounts: Tensor  # (B,) float32, γ^repeat P(no end): weight of the returns that follow
    steps: tuple[Step, ...]  # one for each imagined frame


class PolicyAndValue(NamedTuple):
    """Outputs of the actor and the critic for B states."""

    policy: Tensor  # (B, A) float32, probabilities of the actions
    value: Tensor  # (B,) float32, expected return


class PlanningModel:
    """A world model and, if the run has them, the actor and the critic that were trained in its dream.

    Args:
        discount: γ of a step of the environment; None: that of the critic, or 0.985.
        repeat: number of steps for which every action is repeated.
        temperature: of the dream; 0 makes it deterministic.
    """

    def __init__(
        self,
        world: WorldModel,
        actor: ActorCritic | None = None,
        discount: float | None = None,
        repeat: int = 1,
        temperature: float = 1.0,
    ):
        self.world, self.actor = world, actor
        self.num_actions = len(world.spec.action_names)
        trained = None if actor is None else actor.discount
        self.discount = next(value for value in (discount, trained, DISCOUNT) if value is not None)
        self.repeat = repeat
        self.sampler = make_sampler("auto", temperature)

    @property
    def device(self) -> torch.device:
        return self.world.device

    @property
    def stochastic(self) -> bool:
        """Whether the same actions can lead to different imagined frames."""
        return self.sampler.temperature > 0

    def begin(self) -> EpisodeState:
        """The state before the first frame, with a batch size of one."""
        return EpisodeState(self.world.prior.begin(1), () if self.actor is None else self.actor.begin(1))

    @torch.no_grad()
    def observe(self, state: EpisodeState, frame: np.ndarray, action: int = NO_ACTION) -> EpisodeState:
        """The state after a real frame, (C, *size) uint8, and the action that led to it."""
        grids = self.world.tokenizer.encode(torch.from_numpy(frame)[None].to(self.device))
        actions = torch.tensor([action], device=self.device)
        prior_state = self.world.prior.observe(state.prior_state, grids, actions)
        return EpisodeState(prior_state, state.recent and state.recent.appended(grids, actions))

    @torch.no_grad()
    def imagine(
        self, state: EpisodeState, actions: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Transition, EpisodeState]:
        """The result of the actions (B,) int64, each repeated for ``repeat`` steps, and the states after them."""
        rewards = torch.zeros(len(actions), device=self.device)
        weights = torch.ones_like(rewards)  # discount times the probability that no earlier frame was the end
        steps = []
        for _ in range(self.repeat):
            step, prior_state = self.world.step(state.prior_state, actions, self.sampler, generator)
            state = EpisodeState(prior_state, state.recent and state.recent.appended(step.codes, actions))
            rewards = rewards + weights * step.rewards
            weights = weights * self.discount * (1 - step.ends)
            steps.append(step)
        return Transition(rewards, weights, tuple(steps)), state

    @torch.no_grad()
    def evaluate(self, state: EpisodeState) -> PolicyAndValue | None:
        """Outputs of the actor and the critic; None without an actor."""
        if self.actor is None:
            return None
        assert state.recent, "the state was made by a model without an actor"
        output = self.actor(state.recent)
        return PolicyAndValue(output.logits.softmax(-1), self.actor.expected(output.value))

    def decode(self, grids: np.ndarray) -> np.ndarray:
        """Grids (M, *grid) int64 → frames (M, C, *size) uint8."""
        return self.world.tokenizer.decode(torch.from_numpy(grids).to(self.device)).cpu().numpy()


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
        check_actions(action_names, trained, f"the run {self.run}", "choose a run of this environment")
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
