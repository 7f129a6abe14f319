"""Learning in the dream: the objective of an actor and its critic, on trajectories that a world model imagines."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from agents.actor_critic import ActorCritic, Seen
from agents.returns import lambda_returns, reach
from worldmodel.priors import PriorState, Sampler, make_sampler
from worldmodel.rollout import WorldModel
from worldmodel.training.base import Losses, Objective
from worldmodel.types import NO_ACTION, Segment


@dataclasses.dataclass(frozen=True)
class Imagined:
    """Trajectories of H steps from B states."""

    grids: Tensor  # (B, history + H, *grid) int64, those seen in front
    actions: Tensor  # (B, history + H) int64, what led to each
    rewards: Tensor  # (B, H) float32, on arriving
    goes_on: Tensor  # (B, H) float32, the probability that a frame is no end

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
    rewards, goes_on = [], []
    for _ in range(horizon):
        chosen = draw(actor(seen).logits, generator)
        step, state = world.step(state, chosen, sampler, generator)
        seen = seen.then(step.codes, chosen)
        grids.append(step.codes[:, None])
        actions.append(chosen[:, None])
        rewards.append(step.rewards)
        goes_on.append(1 - step.ends)
    return Imagined(torch.cat(grids, 1), torch.cat(actions, 1), torch.stack(rewards, 1), torch.stack(goes_on, 1))


def draw(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Actions (B,) from their logits (B, A)."""
    device = logits.device if generator is None else generator.device
    probabilities = logits.softmax(-1).to(device)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits.device)


class ImaginationObjective(Objective):
    """REINFORCE with a critic for a baseline, on imagined trajectories (Hafner et al., *DreamerV3*, 2023).

    The policy's gradient is that of Σ w · log π(a | s) · sg(R − v) / max(1, S), with λ-returns R, and S their spread:
    the distance of their 5th and 95th percentile, averaged over updates. So one weight of the entropy fits rewards of
    any size, and small rewards are not blown up. w is the probability, discounted, that the dream comes to a state.

    Terms: ``policy``, ``value`` (cross-entropy of the returns), ``entropy`` (that of a uniform policy less its own, in
    nats). Metrics: ``return`` of the first states, ``reward`` a step, ``spread``, ``length`` (steps expected to the
    end, up to the horizon).

    Args:
        world: imagines; it is no part of what is trained.
        agent: the actor and its critic.
        horizon: H. discount: γ a step. mix: λ. temperature: of the dream.
    """

    headline = ("return", "reward", "entropy")

    def __init__(
        self,
        world: WorldModel,
        agent: ActorCritic,
        horizon: int = 15,
        discount: float = 0.985,
        mix: float = 0.95,
        temperature: float = 1.0,
    ):
        super().__init__()
        self.agent = agent
        self.horizon, self.discount, self.mix = horizon, discount, mix
        self._world = (world,)  # in a tuple, where PyTorch does not look for parameters
        self._sampler = make_sampler("auto", temperature, None)
        self.register_buffer("spread", torch.zeros(()))
        self.register_buffer("updates", torch.zeros(()))

    spread: Tensor
    updates: Tensor

    def forward(self, batch: Segment, generator: torch.Generator) -> Losses:
        state, seen = self.recall(batch)
        world = self._world[0]
        dream = imagine(world, self.agent, state, seen, self.horizon, self._sampler, generator)
        judged = self.agent(dream.windows(self.agent.history))
        logits = judged.logits.unflatten(0, (-1, self.horizon + 1))[:, :-1]
        value_logits = judged.value.unflatten(0, (-1, self.horizon + 1))
        with torch.no_grad():
            values = self.agent.expected(value_logits)
            discounts = self.discount * dream.goes_on
            returns = lambda_returns(dream.rewards, values, discounts, self.mix)
            alive = ~batch.terminated[:, -1:]  # nothing follows a terminal state
            weights = reach(discounts) * alive
            weights = weights / weights.sum().clamp(min=1e-6)
            advantages = (returns - values[:, :-1]) / self._scale(returns).clamp(min=1)
        log_policy = logits.log_softmax(-1)
        chosen = dream.actions[:, -self.horizon :, None]
        taken = log_policy.gather(-1, chosen)[..., 0]
        entropy = -(log_policy.exp() * log_policy).sum(-1)
        terms = {
            "policy": -(weights * advantages * taken).sum(),
            "value": (weights * self.agent.value_loss(value_logits[:, :-1], returns)).sum(),
            "entropy": (weights * (math.log(self.agent.actions) - entropy)).sum(),
        }
        metrics = {
            "return": returns[:, 0][alive[:, 0]].mean().nan_to_num(),
            "reward": dream.rewards.mean(),
            "spread": self.spread.clone(),
            "length": dream.goes_on.cumprod(1).sum(1).mean(),
        }
        return Losses(terms, metrics)

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
        """The spread of returns, averaged over updates: 0.99, corrected for its beginning at 0."""
        low, high = torch.quantile(returns.flatten().float(), torch.tensor([0.05, 0.95], device=returns.device))
        if self.training:
            self.updates += 1
            self.spread.lerp_(high - low, 0.01)
        return self.spread / (1 - 0.99 ** self.updates.clamp(min=1))
