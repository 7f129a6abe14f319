"""The tree of a search: beliefs where an action is chosen, and the outcomes that a stochastic world gave to it."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from worldmodel.agents.belief import Belief

BASE, START = 19652, 1.25  # of the exploration constant (Schrittwieser et al., *MuZero*, 2020, eq. 2)
OVER = 1e-3  # of a return left behind an end: nothing there is worth a look


@dataclasses.dataclass
class Bounds:
    """The least and the greatest return of a search so far, which bring returns to [0, 1] (*MuZero*, eq. 5)."""

    low: float = math.inf
    high: float = -math.inf

    def take(self, value: float) -> None:
        self.low, self.high = min(self.low, value), max(self.high, value)

    def normal(self, values: np.ndarray) -> np.ndarray:
        """All 0 where nothing differs so far."""
        spread = self.high - self.low
        return (values - self.low) / spread if spread > 0 else np.zeros_like(values)


class Node:
    """A belief, and what is known of every action there."""

    def __init__(self, belief: Belief, priors: np.ndarray, value: float):
        self.belief, self.priors, self.value = belief, priors, value  # one row; (A,) Σ = 1; the first estimate
        self.visits = np.zeros(len(priors), np.int64)
        self.under_way = np.zeros(len(priors), np.int64)  # simulations that have not come back yet
        self.sums = np.zeros(len(priors))  # of the returns that came back
        self.draws = np.zeros(len(priors), np.int64)  # outcomes drawn, those under way included
        self.outcomes: list[dict[bytes, Outcome]] = [{} for _ in priors]

    def returns(self) -> np.ndarray:
        """(A,) mean return of every action; of one never tried, that of the node."""
        tried = self.visits > 0
        mean = self.sums.sum() / self.visits.sum() if tried.any() else self.value
        return np.where(tried, self.sums / np.maximum(self.visits, 1), mean)

    def select(self, bounds: Bounds, rng: np.random.Generator) -> int:
        """The action with the highest upper bound (PUCT; *MuZero*, eq. 2); equals by chance.

        Simulations under way count as visits whose return is not known (Liu et al., *Watch the Unobserved*, 2020): so
        those of one batch spread, and no return is made up for them.
        """
        visits = self.visits + self.under_way
        total = visits.sum()
        constant = START + math.log((total + BASE + 1) / BASE)
        scores = bounds.normal(self.returns()) + constant * self.priors * math.sqrt(max(total, 1)) / (1 + visits)
        return pick(scores, rng)

    def best(self, rng: np.random.Generator) -> int:
        """The action visited most; of equals the one of the highest return, then by chance."""
        most = self.visits == self.visits.max()
        return pick(np.where(most, self.returns(), -np.inf), rng)


@dataclasses.dataclass
class Outcome:
    """A way that the world went on, as often as it was drawn."""

    node: Node
    reward: float  # of the whole leap, discounted
    discount: float  # how much what follows counts
    grids: np.ndarray  # (repeat, *grid) int64
    rewards: np.ndarray  # (repeat,) float32
    ends: np.ndarray  # (repeat,) float32
    draws: int = 1
    visits: int = 0

    @property
    def over(self) -> bool:
        return self.discount < OVER


class Move(NamedTuple):
    """One step of a simulation."""

    node: Node
    action: int
    outcome: Outcome | None  # None: one is to be drawn


@dataclasses.dataclass(frozen=True)
class Widening:
    """How many outcomes are drawn of an action that was visited n times: constant · n^exponent (Couëtoux et al.,
    *Continuous Upper Confidence Trees*, 2011). Exponent 0 and constant 1 take the first for the only one."""

    constant: float
    exponent: float

    def allows(self, node: Node, action: int) -> bool:
        """Whether another outcome is drawn on the next visit."""
        visits = int(node.visits[action] + node.under_way[action]) + 1
        return bool(node.draws[action] < math.ceil(self.constant * visits**self.exponent - 1e-9))


def descend(root: Node, bounds: Bounds, widening: Widening, rng: np.random.Generator) -> list[Move] | None:
    """A simulation from the root to an outcome to be drawn, or to one that is over; None where it comes upon one that
    another simulation is drawing just now."""
    path: list[Move] = []
    node = root
    while True:
        action = node.select(bounds, rng)
        if widening.allows(node, action):
            return [*path, Move(node, action, None)]
        known = node.outcomes[action].values()
        if not known:
            return None
        # Every draw is as likely as any other: their visits are kept even.
        outcome = min(known, key=lambda one: one.visits / one.draws)
        path.append(Move(node, action, outcome))
        if outcome.over:
            return path
        node = outcome.node


def depart(path: list[Move]) -> None:
    """Mark a simulation as under way."""
    for node, action, outcome in path:
        node.under_way[action] += 1
        if outcome is None:
            node.draws[action] += 1


def back_up(path: list[Move], value: float, bounds: Bounds) -> None:
    """Bring the value behind the last outcome of a path home to the root."""
    for node, action, outcome in reversed(path):
        assert outcome is not None, "an outcome is drawn before its value comes back"
        value = outcome.reward + outcome.discount * value
        outcome.visits += 1
        node.under_way[action] -= 1
        node.visits[action] += 1
        node.sums[action] += value
        bounds.take(node.sums[action] / node.visits[action])


def pick(scores: np.ndarray, rng: np.random.Generator) -> int:
    """Index of the highest score; equals by chance."""
    best = np.flatnonzero(scores >= scores.max() - 1e-12)
    return int(best[0] if len(best) == 1 else best[rng.integers(len(best))])
