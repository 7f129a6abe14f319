"""Learning in the dream: the objective of an actor and its critic, on trajectories that a world model imagines."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor
from worldmodel.agents.actor_critic import ActorCritic, Seen
from worldmodel.agents.returns import DISCOUNT, lambda_returns, reach

from worldmodel.heads import Sampler, make_sampler
from worldmodel.priors import PriorState
from worldmodel.training.base import Losses, Objective
from worldmodel.types import NO_ACTION, Segment
from worldmodel.util.ranges import Count, NonNegative, Share
from worldmodel.world import WorldModel

KEPT = 0.9
"""Share of the spread of returns that stays from dream to dream."""

FLOOR = 0.1
"""Returns that differ by less are not blown up: before a reward was ever met they are the noise of the world model."""


@dataclasses.dataclass(frozen=True)
class Imagined:
    """Trajectories of H steps from B states."""

    grids: Tensor  # (B, history + H, *grid) int64, those seen in front
    actions: Tensor  # (B, history + H) int64, what led to each
    rewards: Tensor  # (B, H) float32, on arriving
    goes_on: Tensor  # (B, H) float32, the probability that a frame is no end
    values: Tensor  # (B, H + 1) float32, what the critic expected of each state
    log_policy: Tensor  # (B, H) float32, log π of the actions taken

    def windows(self, history: int) -> Seen:
        """What was seen at each of the H + 1 states, (B · (H + 1), history, …)."""
        grids = self.grids.unfold(1, history, 1).movedim(-1, 2)
        return Seen(grids.flatten(0, 1), self.actions.unfold(1, history, 1).flatten(0, 1))


@torch.no_grad()
def imagine(
    world: WorldModel,
    actor: ActorCritic,
    state: PriorState,
    seen: Seen,
    horizon: int,
    sampler: Sampler,
    generator: torch.Generator | None = None,
) -> Imagined:
    """Let the actor act in the dream for ``horizon`` steps."""
    grids, actions = [seen.grids], [seen.actions]
    rewards, goes_on, values, taken = [], [], [], []
    for _ in range(horizon):
        judged = actor(seen)
        chosen = draw(judged.logits, generator)
        values.append(actor.expected(judged.value))
        taken.append(log_of(judged.logits, chosen))
        step, state = world.step(state, chosen, sampler, generator)
        seen = seen.then(step.codes, chosen)
        grids.append(step.codes[:, None])
        actions.append(chosen[:, None])
        rewards.append(step.rewards)
        goes_on.append(1 - step.ends)
    values.append(actor.expected(actor(seen).value))
    found = (torch.stack(part, 1) for part in (rewards, goes_on, values, taken))
    return Imagined(torch.cat(grids, 1), torch.cat(actions, 1), *found)


def log_of(logits: Tensor, actions: Tensor) -> Tensor:
    """log π of actions (...) under their logits (..., A)."""
    return logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]


def draw(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Actions (B,) from their logits (B, A)."""
    device = logits.device if generator is None else generator.device
    probabilities = logits.softmax(-1).to(device)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits.device)


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A dream, and what is to be learnt from it."""

    seen: Seen  # (B · (H + 1), history, …)
    actions: Tensor  # (B, H) int64
    log_policy: Tensor  # (B, H), of the actor who dreamt it
    returns: Tensor  # (B, H)
    advantages: Tensor  # (B, H), in units of the spread of the returns
    weights: Tensor  # (B, H), how much each state counts; they sum to 1, or to 0 where all is over
    metrics: dict[str, Tensor]


class ImaginationObjective(Objective):
    """An actor and its critic on imagined trajectories (Hafner et al., *DreamerV3*, 2023), several times on each.

    To imagine costs about twice what an update costs, so every dream is learnt from ``reuse`` times, with the clipped
    objective of Schulman et al., *PPO*, 2017, eq. 7: −Σ w · min(ρ A, clip(ρ, 1 ± ε) A), with ρ the ratio of
    the probabilities of an action now and when it was dreamt, and A = (R − v − m) / max(0.1, S). At the first time its
    gradient is that of REINFORCE. R are λ-returns and S their spread: the distance of their 5th and 95th percentile,
    averaged over dreams. So one weight of the entropy fits rewards of any size, and small rewards are not blown up.
    m is the mean of R − v over the dream: while the critic still finds out how large returns are, all of its errors
    have one sign, and would drown what an action did. w is the probability, discounted, that the dream comes to a
    state.

    A training that goes on after an interruption begins with a new dream.

    Terms: ``policy``, ``value`` (cross-entropy of the returns), ``entropy`` (that of a uniform policy less its own, in
    nats). Metrics: ``return`` of the first states, ``reward`` a step, ``spread``, ``length`` (steps expected to the
    end, up to the horizon).

    Args:
        world: imagines; it is no part of what is trained.
        agent: the actor and its critic.
        horizon: H. discount: γ a step. mix: λ. temperature: of the dream.
        reuse: updates from one dream. clip: ε.
    """

    headline = ("return", "reward", "entropy")
    keep_float32 = True  # small, and returns and their bins are float32

    def __init__(
        self,
        world: WorldModel,
        agent: ActorCritic,
        horizon: Count = 15,
        discount: Share = DISCOUNT,
        mix: Share = 0.95,
        temperature: NonNegative = 1.0,
        reuse: Count = 4,
        clip: Annotated[float, Gt(0), Lt(1)] = 0.2,
    ):
        super().__init__()
        self.agent = agent
        self.loss_weights = agent.loss_weights
        self.reuse, self.clip = reuse, clip
        self.horizon, self.discount, self.mix = horizon, discount, mix
        self._world = (world,)  # in a tuple, where PyTorch does not look for parameters
        self._sampler = make_sampler("auto", temperature, None)
        self.register_buffer("spread", torch.zeros(()))
        self.register_buffer("updates", torch.zeros(()))
        self._lesson: Lesson | None = None
        self._left = 0  # updates for which it still serves

    spread: Tensor
    updates: Tensor

    def forward(self, batch: Segment, generator: torch.Generator) -> Losses:
        lesson = self._lesson if self.training and self._left > 0 else None
        left = self._left - 1
        if lesson is None:
            lesson, left = self._learn(batch, generator), self.reuse - 1
        if self.training:
            self._lesson, self._left = lesson, left
        judged = self.agent(lesson.seen)
        logits = judged.logits.unflatten(0, (-1, self.horizon + 1))[:, :-1]
        value = judged.value.unflatten(0, (-1, self.horizon + 1))[:, :-1]
        ratio = (log_of(logits, lesson.actions) - lesson.log_policy).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        gain = torch.minimum(ratio * lesson.advantages, clipped * lesson.advantages)
        log_policy = logits.log_softmax(-1)
        entropy = -(log_policy.exp() * log_policy).sum(-1)
        terms = {
            "policy": -(lesson.weights * gain).sum(),
            "value": (lesson.weights * self.agent.value_loss(value, lesson.returns)).sum(),
            "entropy": (lesson.weights * (math.log(self.agent.actions) - entropy)).sum(),
        }
        return Losses(terms, lesson.metrics)

    @torch.no_grad()
    def _learn(self, batch: Segment, generator: torch.Generator) -> Lesson:
        """Dream from the last frames of a batch, and see what came of it."""
        state, seen = self.recall(batch)
        dream = imagine(self._world[0], self.agent, state, seen, self.horizon, self._sampler, generator)
        discounts = self.discount * dream.goes_on
        returns = lambda_returns(dream.rewards, dream.values, discounts, self.mix)
        alive = ~batch.terminated[:, -1:]  # nothing follows a terminal state
        weights = reach(discounts) * alive
        weights = weights / weights.sum().clamp(min=1e-6)
        better = returns - dream.values[:, :-1]
        advantages = (better - (weights * better).sum()) / self._scale(returns[alive[:, 0]]).clamp(min=FLOOR)
        metrics = {
            "return": returns[:, 0][alive[:, 0]].mean().nan_to_num(),
            "reward": dream.rewards.mean(),
            "spread": self.spread.clone(),
            "length": dream.goes_on.cumprod(1).sum(1).mean(),
        }
        return Lesson(
            seen=dream.windows(self.agent.history),
            actions=dream.actions[:, -self.horizon :],
            log_policy=dream.log_policy,
            returns=returns,
            advantages=advantages,
            weights=weights,
            metrics=metrics,
        )

    @torch.no_grad()
    def recall(self, batch: Segment) -> tuple[PriorState, Seen]:
        """What the world and the actor know at the last frames of segments of codes."""
        assert batch.codes is not None, "an agent learns from segments of codes"
        absent = ~batch.valid
        codes = batch.codes.masked_fill(absent.view(*absent.shape, *[1] * (batch.codes.dim() - 2)), -1)
        actions = batch.actions.masked_fill(absent, NO_ACTION)
        prior = self._world[0].prior
        state, seen = prior.begin(len(codes)), self.agent.begin(len(codes))
        for grids, action in zip(codes.unbind(1), actions.unbind(1), strict=True):
            state, seen = prior.observe(state, grids, action), seen.then(grids, action)
        return state, seen

    @torch.no_grad()
    def _scale(self, returns: Tensor) -> Tensor:
        """The spread of returns (N, H), averaged over dreams: 0.9, corrected for its beginning at 0."""
        if not len(returns):
            return self.spread
        low, high = torch.quantile(returns.flatten().float(), torch.tensor([0.05, 0.95], device=returns.device))
        if self.training:
            self.updates += 1
            self.spread.lerp_(high - low, 1 - KEPT)
        return self.spread / (1 - KEPT ** self.updates.clamp(min=1))
