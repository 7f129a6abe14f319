"""The training objective of an actor and its critic on trajectories that a world model imagines."""

import dataclasses
import math
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from worldmodel.agents.actor_critic import DISCOUNT, ActorCritic, RecentFrames, lambda_returns, reach
from worldmodel.heads import Sampler, make_sampler
from worldmodel.priors import PriorState
from worldmodel.training.base import Losses, Objective
from worldmodel.types import NO_ACTION, Segment
from worldmodel.util.ranges import Count, NonNegative, Share
from worldmodel.world import WorldModel

SPREAD_DECAY = 0.9  # decay of the moving average of the spread of returns, per dream

MIN_SPREAD = 0.1  # smaller spreads are not scaled up, because without rewards they are noise of the world model


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Trajectories of H steps from B states."""

    grids: Tensor  # (B, history + H, *grid) int64, the recent frames first
    actions: Tensor  # (B, history + H) int64, the action that led to each grid
    rewards: Tensor  # (B, H) float32
    continues: Tensor  # (B, H) float32, probability that the frame is not terminal
    values: Tensor  # (B, H + 1) float32, the critic's value of each state
    log_policy: Tensor  # (B, H) float32, log π of the actions taken

    def windows(self, history: int) -> RecentFrames:
        """The recent frames at each of the H + 1 states, (B · (H + 1), history, …)."""
        grids = self.grids.unfold(1, history, 1).movedim(-1, 2)
        return RecentFrames(grids.flatten(0, 1), self.actions.unfold(1, history, 1).flatten(0, 1))


@torch.no_grad()
def imagine(
    world: WorldModel,
    actor: ActorCritic,
    state: PriorState,
    recent: RecentFrames,
    horizon: int,
    sampler: Sampler,
    generator: torch.Generator | None = None,
) -> Trajectories:
    """Let the actor act in the dream for ``horizon`` steps."""
    grids, actions = [recent.grids], [recent.actions]
    rewards, continues, values, log_policy = [], [], [], []
    for _ in range(horizon):
        output = actor(recent)
        chosen = sample_actions(output.logits, generator)
        values.append(actor.expected(output.value))
        log_policy.append(log_probability(output.logits, chosen))
        step, state = world.step(state, chosen, sampler, generator)
        recent = recent.appended(step.codes, chosen)
        grids.append(step.codes[:, None])
        actions.append(chosen[:, None])
        rewards.append(step.rewards)
        continues.append(1 - step.ends)
    values.append(actor.expected(actor(recent).value))
    stacked = (torch.stack(part, 1) for part in (rewards, continues, values, log_policy))
    return Trajectories(torch.cat(grids, 1), torch.cat(actions, 1), *stacked)


def log_probability(logits: Tensor, actions: Tensor) -> Tensor:
    """log π of actions (...) under their logits (..., A)."""
    return logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]


def sample_actions(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Sample actions (B,) from logits (B, A)."""
    device = logits.device if generator is None else generator.device
    probabilities = logits.softmax(-1).to(device)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits.device)


@dataclasses.dataclass(frozen=True)
class PolicyBatch:
    """Training data of the actor and the critic, computed from one dream."""

    recent: RecentFrames  # (B · (H + 1), history, …)
    actions: Tensor  # (B, H) int64
    log_policy: Tensor  # (B, H), of the actor that acted in the dream
    returns: Tensor  # (B, H)
    advantages: Tensor  # (B, H), in units of the spread of the returns
    weights: Tensor  # (B, H), of the states; they sum to 1, or to 0 if all start states are terminal
    metrics: dict[str, Tensor]


class ImaginationObjective(Objective):
    """Trains an actor and its critic on imagined trajectories (Hafner et al., *DreamerV3*, 2023).

    Imagining costs about twice as much as an update, so every dream serves ``reuse`` updates, with the clipped
    objective of Schulman et al., *PPO*, 2017, eq. 7: −Σ w · min(ρ A, clip(ρ, 1 ± ε) A). ρ is the ratio of an action's
    probability now to that in the dream; in the first update the gradient equals that of REINFORCE.
    A = (R − v − m) / max(0.1, S). R are λ-returns. S is their spread, the distance between their 5th and 95th
    percentile, averaged over dreams, so that one entropy weight suits rewards of any size. m is the mean of R − v over
    the dream, which removes the common error of a critic that has not learnt the scale of the returns. w is the
    discounted probability that the dream reaches a state.

    A resumed training starts with a new dream.

    Terms: ``policy``, ``value`` (cross-entropy of the returns), ``entropy`` (of a uniform policy minus that of the
    policy, in nats). Metrics: ``return`` of the first states, ``reward`` per step, ``spread``, ``length`` (expected
    steps to the end, up to the horizon).

    Args:
        world: imagines; it is not trained.
        agent: the actor and its critic.
        horizon: H. discount: γ of a step. mix: λ. temperature: of the dream.
        reuse: updates per dream. clip: ε.
    """

    headline = ("return", "reward", "entropy")
    keep_float32 = True  # the networks are small, and returns and their bins are float32

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
        self._batch: PolicyBatch | None = None
        self._updates_left = 0  # remaining updates from the same dream

    spread: Tensor
    updates: Tensor

    def forward(self, batch: Segment, generator: torch.Generator) -> Losses:
        policy_batch = self._batch if self.training and self._updates_left > 0 else None
        left = self._updates_left - 1
        if policy_batch is None:
            policy_batch, left = self._dream(batch, generator), self.reuse - 1
        if self.training:
            self._batch, self._updates_left = policy_batch, left
        output = self.agent(policy_batch.recent)
        logits = output.logits.unflatten(0, (-1, self.horizon + 1))[:, :-1]
        value = output.value.unflatten(0, (-1, self.horizon + 1))[:, :-1]
        ratio = (log_probability(logits, policy_batch.actions) - policy_batch.log_policy).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        gain = torch.minimum(ratio * policy_batch.advantages, clipped * policy_batch.advantages)
        log_policy = logits.log_softmax(-1)
        entropy = -(log_policy.exp() * log_policy).sum(-1)
        terms = {
            "policy": -(policy_batch.weights * gain).sum(),
            "value": (policy_batch.weights * self.agent.value_loss(value, policy_batch.returns)).sum(),
            "entropy": (policy_batch.weights * (math.log(self.agent.num_actions) - entropy)).sum(),
        }
        return Losses(terms, policy_batch.metrics)

    @torch.no_grad()
    def _dream(self, batch: Segment, generator: torch.Generator) -> PolicyBatch:
        """Dream from the last frames of a batch and compute the training data."""
        state, recent = self.start_states(batch)
        dream = imagine(self._world[0], self.agent, state, recent, self.horizon, self._sampler, generator)
        discounts = self.discount * dream.continues
        returns = lambda_returns(dream.rewards, dream.values, discounts, self.mix)
        alive = ~batch.terminated[:, -1:]  # nothing follows a terminal state
        weights = reach(discounts) * alive
        weights = weights / weights.sum().clamp(min=1e-6)
        errors = returns - dream.values[:, :-1]
        spread = self._return_spread(returns[alive[:, 0]]).clamp(min=MIN_SPREAD)
        advantages = (errors - (weights * errors).sum()) / spread
        metrics = {
            "return": returns[:, 0][alive[:, 0]].mean().nan_to_num(),
            "reward": dream.rewards.mean(),
            "spread": self.spread.clone(),
            "length": dream.continues.cumprod(1).sum(1).mean(),
        }
        recent, actions = dream.windows(self.agent.history), dream.actions[:, -self.horizon :]
        return PolicyBatch(recent, actions, dream.log_policy, returns, advantages, weights, metrics)

    def start_states(self, batch: Segment) -> tuple[PriorState, RecentFrames]:
        """States of the world model and the actor at the last frames of segments of codes."""
        assert batch.codes is not None, "an agent is trained on segments of codes"
        absent = ~batch.valid
        codes = batch.codes.masked_fill(absent.view(*absent.shape, *[1] * (batch.codes.dim() - 2)), -1)
        actions = batch.actions.masked_fill(absent, NO_ACTION)
        prior = self._world[0].prior
        state, recent = prior.begin(len(codes)), self.agent.begin(len(codes))
        for grids, action in zip(codes.unbind(1), actions.unbind(1), strict=True):
            state, recent = prior.observe(state, grids, action), recent.appended(grids, action)
        return state, recent

    def _return_spread(self, returns: Tensor) -> Tensor:
        """Moving average of the spread of returns (N, H), corrected for its start at 0."""
        if not len(returns):
            return self.spread
        low, high = torch.quantile(returns.flatten().float(), torch.tensor([0.05, 0.95], device=returns.device))
        if self.training:
            self.updates += 1
            self.spread.lerp_(high - low, 1 - SPREAD_DECAY)
        return self.spread / (1 - SPREAD_DECAY ** self.updates.clamp(min=1))
