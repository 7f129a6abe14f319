"""The tree of a search: nodes at which an action is chosen, and sampled outcomes of the actions."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from worldmodel.agents.planner import EpisodeState

PUCT_BASE, PUCT_INIT = 19652, 1.25  # c2 and c1 of the exploration term (Schrittwieser et al., *MuZero*, 2020, eq. 2)
MIN_DISCOUNT = 1e-3  # an outcome with a smaller discount counts as terminal


@dataclasses.dataclass
class Bounds:
    """The lowest and highest mean return in the tree, used to scale returns to [0, 1] (*MuZero*, eq. 5)."""

    low: float = math.inf
    high: float = -math.inf

    def update(self, value: float) -> None:
        self.low, self.high = min(self.low, value), max(self.high, value)

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """Scaled values; all 0 while the bounds are equal."""
        spread = self.high - self.low
        return (values - self.low) / spread if spread > 0 else np.zeros_like(values)


class Node:
    """A state, and the statistics of every action in it."""

    def __init__(self, state: EpisodeState, priors: np.ndarray, value: float):
        self.state, self.priors, self.value = state, priors, value  # one row; (A,) Σ = 1; initial estimate
        self.visits = np.zeros(len(priors), np.int64)
        self.pending = np.zeros(len(priors), np.int64)  # unfinished simulations through each action
        self.sums = np.zeros(len(priors))  # of the returns backed up
        self.draws = np.zeros(len(priors), np.int64)  # outcomes drawn, including pending ones
        self.outcomes: list[dict[bytes, Outcome]] = [{} for _ in priors]

    def returns(self) -> np.ndarray:
        """(A,) mean return of every action; for one that was never visited, the mean of the node."""
        tried = self.visits > 0
        mean = self.sums.sum() / self.visits.sum() if tried.any() else self.value
        return np.where(tried, self.sums / np.maximum(self.visits, 1), mean)

    def select(self, bounds: Bounds, rng: np.random.Generator) -> int:
        """The action with the highest upper bound (PUCT; *MuZero*, eq. 2); ties are broken at random.

        Pending simulations count as visits without a return (Liu et al., *Watch the Unobserved*, 2020), so that the
        simulations of a batch take different paths.
        """
        visits = self.visits + self.pending
        total = visits.sum()
        constant = PUCT_INIT + math.log((total + PUCT_BASE + 1) / PUCT_BASE)
        scores = bounds.normalize(self.returns()) + constant * self.priors * math.sqrt(max(total, 1)) / (1 + visits)
        return random_argmax(scores, rng)

    def best(self, rng: np.random.Generator) -> int:
        """The most visited action; ties are broken by the mean return, then at random."""
        most = self.visits == self.visits.max()
        return random_argmax(np.where(most, self.returns(), -np.inf), rng)


@dataclasses.dataclass
class Outcome:
    """A sampled result of an action."""

    node: Node
    reward: float  # of the transition, discounted
    discount: float  # weight of the returns that follow
    grids: np.ndarray  # (repeat, *grid) int64
    rewards: np.ndarray  # (repeat,) float32
    ends: np.ndarray  # (repeat,) float32
    draws: int = 1  # how often it was sampled
    visits: int = 0

    @property
    def terminal(self) -> bool:
        return self.discount < MIN_DISCOUNT


class PathStep(NamedTuple):
    """One step of a simulation."""

    node: Node
    action: int
    outcome: Outcome | None  # None: not drawn yet


@dataclasses.dataclass(frozen=True)
class Widening:
    """An action visited n times has up to constant · n^exponent outcomes (Couëtoux et al., *Continuous Upper
    Confidence Trees*, 2011). Exponent 0 and constant 1 treat the world as deterministic."""

    constant: float
    exponent: float

    def allows(self, node: Node, action: int) -> bool:
        """Whether the next visit draws a new outcome."""
        visits = int(node.visits[action] + node.pending[action]) + 1
        return bool(node.draws[action] < math.ceil(self.constant * visits**self.exponent - 1e-9))


def select_path(root: Node, bounds: Bounds, widening: Widening, rng: np.random.Generator) -> list[PathStep] | None:
    """The path of a simulation from the root to an outcome that must be drawn or is terminal; None if the path reaches
    an outcome that a pending simulation draws."""
    path: list[PathStep] = []
    node = root
    while True:
        action = node.select(bounds, rng)
        if widening.allows(node, action):
            return [*path, PathStep(node, action, None)]
        drawn = node.outcomes[action].values()
        if not drawn:
            return None
        # All draws are equally probable, so they get equally many visits.
        outcome = min(drawn, key=lambda one: one.visits / one.draws)
        path.append(PathStep(node, action, outcome))
        if outcome.terminal:
            return path
        node = outcome.node


def mark_pending(path: list[PathStep]) -> None:
    for node, action, outcome in path:
        node.pending[action] += 1
        if outcome is None:
            node.draws[action] += 1


def back_up(path: list[PathStep], value: float, bounds: Bounds) -> None:
    """Add the value after the last outcome of a path to the statistics of all its nodes."""
    for node, action, outcome in reversed(path):
        assert outcome is not None, "the outcome must be drawn before its value is backed up"
        value = outcome.reward + outcome.discount * value
        outcome.visits += 1
        node.pending[action] -= 1
        node.visits[action] += 1
        node.sums[action] += value
        bounds.update(node.sums[action] / node.visits[action])


def random_argmax(scores: np.ndarray, rng: np.random.Generator) -> int:
    """Index of the highest score; ties are broken at random."""
    best = np.flatnonzero(scores >= scores.max() - 1e-12)
    return int(best[0] if len(best) == 1 else best[rng.integers(len(best))])
