"""Model-predictive control: the cross-entropy method over sequences of discrete actions."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.agents.base import Plan
from worldmodel.agents.planner import EpisodeState, Planner, PlanningModel, Transition
from worldmodel.config.checks import checked
from worldmodel.errors import ConfigError
from worldmodel.priors import select_rows
from worldmodel.util.ranges import Count, NonNegative, Share, ShareBelowOne

ELITE_INTERVAL = 4  # every fourth candidate of a round is an elite of the previous round, imagined again


class EvaluatedCandidates(NamedTuple):
    """Imagined results of N candidates of L decisions."""

    actions: Tensor  # (N, L) int64
    returns: Tensor  # (N,) float32, mean over the samples
    transitions: list[Transition]  # length L, each of N · samples rows
    samples: int


class MPCAgent(Planner):
    """Imagines candidate sequences of actions, refits a distribution to the best, and takes the first action that they
    prefer (cross-entropy method; Rubinstein, 1999; in latent space Hafner et al., *PlaNet*, 2019).

    The candidates of a round are drawn from one categorical distribution per decision. It moves towards the elites of
    the round, each weighted by exp(sharpness · (return − best) / standard deviation of all returns) (Hansen et al.,
    *TD-MPC*, 2022). The first round also contains the last plan, shifted by one decision, every action repeated
    throughout and, with an actor, sequences drawn from its policy.

    In a stochastic world the best of many returns overestimates. So every later round imagines half as many candidates,
    at least as many as the elites, with twice as many samples each, at the same cost, and some elites again.

    Args:
        candidates: sequences of the first round. horizon: decisions per sequence. iterations: rounds.
        elites: number of best candidates of a round.
        samples: imagined futures per candidate in the first round; their returns are averaged.
        smoothing: weight of the previous distribution in the new one.
        sharpness: of the weights of the elites; 0 weights them equally.
        explore: weight of the uniform distribution in every distribution.
        warm: weight of the last plan's distribution in the first one; 0 ignores the last plan.
        guided: fraction of the first round's candidates that the actor draws.
        indifference: returns are rounded to multiples of it. Without a reward within the horizon, small differences are
            errors of the world model, which would favour the same action at every decision.
        shared: arguments of :class:`worldmodel.agents.planner.Planner`.
    """

    @checked
    def __init__(
        self,
        run: str | Path,
        candidates: Count = 64,
        horizon: Count = 8,
        iterations: Count = 4,
        elites: Count = 8,
        samples: Count = 1,
        smoothing: ShareBelowOne = 0.1,
        sharpness: NonNegative = 2.0,
        explore: Share = 0.1,
        warm: Share = 0.5,
        guided: Share = 0.25,
        indifference: NonNegative = 0.0,
        **shared: Any,
    ):
        super().__init__(run, **shared)
        self.candidates, self.horizon, self.iterations = candidates, horizon, iterations
        self.elites, self.samples = elites, samples
        self.smoothing, self.sharpness, self.explore = smoothing, sharpness, explore
        self.warm, self.guided, self.indifference = warm, guided, indifference
        if elites > candidates:
            raise ConfigError(f"agent.elites is {elites}; choose at most agent.candidates, which is {candidates}")

    def _reset(self) -> None:
        self._last: tuple[Tensor, Tensor] | None = None  # the last plan (L,) and its distribution (L, A)

    def _decide(self, model: PlanningModel, state: EpisodeState, seen_key: bytes) -> Plan:
        probabilities, actions, guided = self._first_round(model)
        for number in range(self.iterations):
            evaluated = self.evaluate_candidates(model, state, actions, guided)
            elites, weights = self._choose(evaluated.returns)
            chosen = F.one_hot(evaluated.actions[elites], model.num_actions).float()  # (E, L, A)
            elite_probabilities = torch.einsum("e,ela->la", weights, chosen)
            probabilities = self.smoothing * probabilities + (1 - self.smoothing) * elite_probabilities
            probabilities = (1 - self.explore) * probabilities + self.explore / model.num_actions
            if self.out_of_time:
                break
            count = max(self.elites, self.candidates >> number + 1) if model.stochastic else self.candidates
            repeated = evaluated.actions[elites[: -(-count // ELITE_INTERVAL)]]
            actions, guided = torch.cat([repeated, self._draw(probabilities, count - len(repeated))]), 0
        likely = (elite_probabilities[0] >= elite_probabilities[0].max() - 1e-6).nonzero().flatten().tolist()
        first = likely[int(self._rng.integers(len(likely)))]
        best = int(elites[evaluated.actions[elites, 0] == first][0])
        self._last = evaluated.actions[best], probabilities
        return self._plan_of(model, evaluated, best)

    def _first_round(self, model: PlanningModel) -> tuple[Tensor, Tensor, int]:
        """The initial distribution (L, A), candidates (N, L), and how many of the last ones the actor draws."""
        probabilities = torch.full((self.horizon, model.num_actions), 1 / model.num_actions, device=model.device)
        extra = []
        if self._last is not None and self.warm:
            plan, last = self._last
            extra.append(torch.cat([plan[1:], self._draw(probabilities[:1], 1)[0]])[None])
            probabilities = (1 - self.warm) * probabilities + self.warm * torch.cat([last[1:], probabilities[:1]])
        held = torch.arange(model.num_actions, device=model.device)[:, None].expand(-1, self.horizon)
        if len(held) <= self.candidates // 2:
            extra.append(held)
        actions = torch.cat([*extra, self._draw(probabilities, self.candidates)])[: self.candidates]
        guided = int(self.guided * self.candidates) if model.actor is not None else 0
        return probabilities, actions, guided

    def evaluate_candidates(
        self, model: PlanningModel, state: EpisodeState, actions: Tensor, guided: int = 0
    ) -> EvaluatedCandidates:
        """Imagine N candidates (N, L) at once from a state of one row; the actor chooses the actions of the last
        ``guided``. All rounds imagine as many rows as the first, so fewer candidates have more samples each.

        The return of a candidate is Σ_t γ^(t − 1) P(no end before t) r_t over its steps t = 1, 2, …, plus the critic's
        value after the last step, discounted in the same way.
        """
        samples = max(1, self.candidates * self.samples // len(actions)) if model.stochastic else 1
        actions, rows = actions.clone(), len(actions) * samples
        state = select_rows(state, torch.zeros(rows, dtype=torch.int64, device=model.device))
        returns = torch.zeros(rows, device=model.device)
        weights, transitions = torch.ones_like(returns), []
        for decision in range(actions.shape[1]):
            if guided:
                estimate = model.evaluate(select_rows(state, slice(rows - guided * samples, None, samples)))
                assert estimate is not None, "guided candidates need an actor"
                actions[-guided:, decision] = torch.multinomial(estimate.policy, 1, generator=self._generator)[:, 0]
            transition, state = model.imagine(state, actions[:, decision].repeat_interleave(samples), self._generator)
            returns = returns + weights * transition.rewards
            weights = weights * transition.discounts
            transitions.append(transition)
        estimate = model.evaluate(state)
        if estimate is not None:
            returns = returns + weights * estimate.value
        return EvaluatedCandidates(actions, returns.view(-1, samples).mean(1), transitions, samples)

    def _choose(self, returns: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (N,) → indices of the elites (E,), best first, ties in random order; their weights (E,), Σ = 1."""
        if self.indifference:
            returns = (returns / self.indifference).round() * self.indifference
        order = torch.randperm(len(returns), generator=self._generator, device=returns.device)
        elites = order[returns[order].argsort(descending=True, stable=True)[: self.elites]]
        spread = returns.std(unbiased=False).clamp(min=1e-6)
        scores = self.sharpness * (returns[elites] - returns[elites[0]]) / spread
        return elites, scores.softmax(0)

    def _draw(self, probabilities: Tensor, count: int) -> Tensor:
        """Draw sequences (count, L) from distributions (L, A)."""
        if not count:
            return torch.empty(0, len(probabilities), dtype=torch.int64, device=probabilities.device)
        return torch.multinomial(probabilities, count, replacement=True, generator=self._generator).T

    def _plan_of(self, model: PlanningModel, evaluated: EvaluatedCandidates, best: int) -> Plan:
        """One candidate with its first sampled future."""
        row = best * evaluated.samples
        steps = [step for transition in evaluated.transitions for step in transition.steps]
        columns = list(zip(*steps, strict=True))[:3]
        codes, rewards, ends = (np.stack([part[row].cpu().numpy() for part in column]) for column in columns)
        actions = evaluated.actions[best].repeat_interleave(model.repeat).cpu().numpy()
        return Plan(actions, rewards, ends, float(evaluated.returns[best]), codes, model.decode)
