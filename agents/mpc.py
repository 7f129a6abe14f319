"""Model-predictive control: the cross-entropy method over sequences of discrete actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from worldmodel.agents.base import Plan
from worldmodel.agents.belief import Belief, Leap, Mind
from worldmodel.agents.planner import Planner

from worldmodel.config.checks import checked
from worldmodel.errors import ConfigError
from worldmodel.priors import select_rows
from worldmodel.util.ranges import Count, NonNegative, Share, ShareBelowOne

KEPT = 4  # every fourth candidate of a round is an elite of the round before, imagined anew


class Outlook(NamedTuple):
    """What N candidates of L decisions come to."""

    actions: Tensor  # (N, L) int64
    returns: Tensor  # (N,) float32, mean over the samples
    leaps: list[Leap]  # L of them, of N · samples rows
    samples: int


class MPCAgent(Planner):
    """Imagines many sequences of decisions at once, draws others like the best of them, and begins with what the best
    ones begin with (the cross-entropy method; Rubinstein, 1999; in latent space Hafner et al., *PlaNet*, 2019).

    A round of candidates is drawn from one categorical distribution a decision, which moves towards the elites of the
    round, each weighted by exp(sharpness · (return − best) / standard deviation of all returns), as Hansen et al. do
    (*TD-MPC*, 2022). The first round also has the last plan, shifted; every action held throughout; and, where there is
    an actor, sequences of its own.

    The best of many returns of a stochastic world is mostly luck. So every round after the first imagines half as many
    candidates, never fewer than the elites, in twice as many futures each, at the same cost; and some elites again.

    Args:
        candidates: sequences of the first round. horizon: decisions of each. iterations: rounds.
        elites: best ones of a round.
        samples: imagined futures of every candidate of the first round, whose returns are averaged.
        smoothing: share of the distribution that stays from round to round.
        sharpness: of the weights of the elites; 0 weighs them alike.
        explore: share of every distribution that is uniform.
        warm: share of the last plan's distribution in the first; 0 begins every decision anew.
        guided: share of the first round's candidates that the actor draws.
        indifference: returns are rounded to multiples of it, so that small differences count as none. Where no reward
            is in sight they are errors of the world model, and always the same action would seem the best.
        shared: what every :class:`worldmodel.agents.planner.Planner` takes.
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
        self._last: tuple[Tensor, Tensor] | None = None  # the last plan (L,), and the distribution (L, A) behind it

    def _decide(self, mind: Mind, belief: Belief, came: bytes) -> Plan:
        odds, actions, guided = self._first_round(mind)
        for number in range(self.iterations):
            outlook = self.look_ahead(mind, belief, actions, guided)
            elites, weights = self._choose(outlook.returns)
            wanted = torch.nn.functional.one_hot(outlook.actions[elites], mind.actions).float()  # (E, L, A)
            wanted = torch.einsum("e,ela->la", weights, wanted)
            odds = self._floor(self.smoothing * odds + (1 - self.smoothing) * wanted)
            if self.late:
                break
            count = max(self.elites, self.candidates >> number + 1) if mind.stochastic else self.candidates
            again = outlook.actions[elites[: -(-count // KEPT)]]
            actions, guided = torch.cat([again, self._draw(odds, count - len(again))]), 0
        first = self._pick(wanted[0])
        best = int(elites[outlook.actions[elites, 0] == first][0])
        self._last = outlook.actions[best], odds
        return self._plan_of(mind, outlook, best)

    def _first_round(self, mind: Mind) -> tuple[Tensor, Tensor, int]:
        """The distribution (L, A) to begin with, candidates (N, L), and how many of the last ones the actor draws."""
        odds = torch.full((self.horizon, mind.actions), 1 / mind.actions, device=mind.device)
        special = []
        if self._last is not None and self.warm:
            plan, behind = self._last
            special.append(torch.cat([plan[1:], self._draw(odds[:1], 1)[0]])[None])
            odds = (1 - self.warm) * odds + self.warm * torch.cat([behind[1:], odds[:1]])
        held = torch.arange(mind.actions, device=mind.device)[:, None].expand(-1, self.horizon)
        if len(held) <= self.candidates // 2:
            special.append(held)
        actions = torch.cat([*special, self._draw(odds, self.candidates)])[: self.candidates]
        guided = int(self.guided * self.candidates) if mind.actor is not None else 0
        return odds, actions, guided

    @torch.no_grad()
    def look_ahead(self, mind: Mind, belief: Belief, actions: Tensor, guided: int = 0) -> Outlook:
        """Imagine N candidates (N, L) at once from a belief of one row; the actor decides for the last ``guided``.

        Of fewer candidates than those of a first round every one has more futures, so that all rounds are of one size.

        The return of a candidate is Σ_t γ^(t − 1) P(no end before t) r_t over its steps t = 1, 2, …, and the critic's
        value behind the last, discounted likewise.
        """
        samples = max(1, self.candidates * self.samples // len(actions)) if mind.stochastic else 1
        actions, rows = actions.clone(), len(actions) * samples
        belief = select_rows(belief, torch.zeros(rows, dtype=torch.int64, device=mind.device))
        returns = torch.zeros(rows, device=mind.device)
        counts, leaps = torch.ones_like(returns), []
        for decision in range(actions.shape[1]):
            if guided:
                judged = mind.judge(select_rows(belief, slice(rows - guided * samples, None, samples)))
                assert judged is not None, "only an actor can guide"
                actions[-guided:, decision] = self._draw_each(judged.policy)
            leap, belief = mind.imagine(belief, actions[:, decision].repeat_interleave(samples), self._generator)
            returns = returns + counts * leap.rewards
            counts = counts * leap.discounts
            leaps.append(leap)
        judged = mind.judge(belief)
        if judged is not None:
            returns = returns + counts * judged.value
        return Outlook(actions, returns.view(-1, samples).mean(1), leaps, samples)

    def _choose(self, returns: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (N,) → the elites (E,), the best first and equals in random order, and their weights (E,), Σ = 1."""
        if self.indifference:
            returns = (returns / self.indifference).round() * self.indifference
        order = torch.randperm(len(returns), generator=self._generator, device=returns.device)
        elites = order[returns[order].argsort(descending=True, stable=True)[: self.elites]]
        spread = returns.std(unbiased=False).clamp(min=1e-6)
        scores = self.sharpness * (returns[elites] - returns[elites[0]]) / spread
        return elites, scores.softmax(0)

    def _pick(self, votes: Tensor) -> int:
        """The action with the most of the votes (A,); equals by chance."""
        best = (votes >= votes.max() - 1e-6).nonzero().flatten().tolist()
        return int(best[int(self._rng.integers(len(best)))])

    def _floor(self, odds: Tensor) -> Tensor:
        return (1 - self.explore) * odds + self.explore / odds.shape[-1]

    def _draw(self, odds: Tensor, count: int) -> Tensor:
        """Distributions (L, A) → sequences (count, L)."""
        if not count:
            return torch.empty(0, len(odds), dtype=torch.int64, device=odds.device)
        return torch.multinomial(odds, count, replacement=True, generator=self._generator).T

    def _draw_each(self, odds: Tensor) -> Tensor:
        """Distributions (N, A) → one draw of each, (N,)."""
        return torch.multinomial(odds, 1, generator=self._generator)[:, 0]

    def _plan_of(self, mind: Mind, outlook: Outlook, best: int) -> Plan:
        """One candidate with the first of its imagined futures."""
        row = best * outlook.samples
        steps = [step for leap in outlook.leaps for step in leap.steps]
        codes, rewards, ends = (
            np.stack([part[row].cpu().numpy() for part in parts]) for parts in list(zip(*steps, strict=True))[:3]
        )
        actions = outlook.actions[best].repeat_interleave(mind.repeat).cpu().numpy()
        return Plan(actions, rewards, ends, float(outlook.returns[best]), codes, mind.draw)
