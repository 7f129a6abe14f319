"""The model that planners imagine with: a world model, and an actor and a critic where the run has them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldmodel.agents.actor_critic import ActorCritic, RecentFrames
from worldmodel.agents.returns import DISCOUNT
from worldmodel.heads import make_sampler
from worldmodel.priors import PriorState, Step
from worldmodel.types import NO_ACTION
from worldmodel.world import WorldModel


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
