"""Monte-Carlo tree search in the dream of a stochastic world model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor
from worldmodel.agents.base import Plan
from worldmodel.agents.belief import Belief, Leap, Mind
from worldmodel.agents.planner import Planner, key_of
from worldmodel.agents.tree import Bounds, Move, Node, Outcome, Widening, back_up, depart, descend

from worldmodel.config.checks import checked
from worldmodel.priors import join_rows, select_rows
from worldmodel.util.ranges import Count, Share


class MCTSAgent(Planner):
    """Grows a tree of what may come of every action, deepest where it looks best, and takes the action visited most.

    The world is stochastic, so an action has several outcomes: grids drawn from the prior, more of them the more often
    the action is visited (double progressive widening). A simulation then costs one imagined leap, since the beliefs
    above it are kept; open loop, without them, it would cost one for every decision of its path. Simulations go in
    batches, whose leaps are one pass through the prior. Returns are normalised by the least and the greatest of the
    tree (*MuZero*), so that one constant explores rewards of any size.

    With an actor its policy is the prior of the search and its critic values the leaves; without one all actions are
    alike, and a leaf is worth what a random walk from it brings. The part of the tree below what really came is kept,
    where the codes that came are among those imagined.

    Args:
        simulations: a decision. parallel: how many of them are one batch.
        widening, exponent: an action visited n times has widening · n^exponent outcomes.
        explore: share of the search's prior that is uniform.
        rollout: decisions of the random walk from a leaf, where there is no critic.
        shared: what every :class:`worldmodel.agents.planner.Planner` takes.
    """

    @checked
    def __init__(
        self,
        run: str | Path,
        simulations: Count = 128,
        parallel: Count = 16,
        widening: Annotated[float, Ge(1)] = 1.0,
        exponent: Share = 0.5,
        explore: Share = 0.1,
        rollout: Count = 8,
        **shared: Any,
    ):
        super().__init__(run, **shared)
        self.simulations, self.parallel, self.rollout = simulations, parallel, rollout
        self.widening, self.exponent, self.explore = widening, exponent, explore

    def _reset(self) -> None:
        self._tree: tuple[Node, Bounds] | None = None

    def _decide(self, mind: Mind, belief: Belief, came: bytes) -> Plan:
        root, bounds = self._root(mind, belief, came)
        widening, done = Widening(self.widening, self.exponent), 0
        while done < self.simulations:
            paths: list[list[Move]] = []
            while len(paths) < min(self.parallel, self.simulations - done):
                path = descend(root, bounds, widening, self._rng)
                if path is None:
                    break
                depart(path)
                paths.append(path)
            self._finish(mind, paths, bounds)
            done += len(paths)
            if self.late:
                break
        self._tree = root, bounds
        return self._plan_of(mind, root)

    def _root(self, mind: Mind, belief: Belief, came: bytes) -> tuple[Node, Bounds]:
        """The node of what really came, where the last search imagined it, or a new one."""
        if self._tree is not None:
            node, bounds = self._tree
            outcome = node.outcomes[self._action].get(came)
            if outcome is not None and not outcome.over:
                outcome.node.belief = belief
                return outcome.node, bounds
        priors, values = self._estimate(mind, belief)
        return Node(belief, priors[0], float(values[0])), Bounds()

    def _finish(self, mind: Mind, paths: list[list[Move]], bounds: Bounds) -> None:
        """Draw the outcomes that a batch of simulations lacks, value what lies behind, and bring it home."""
        open_ends = [path for path in paths if path[-1].outcome is None]
        values = dict.fromkeys(map(id, paths), 0.0)  # nothing follows an outcome that is over
        if open_ends:
            before = join_rows([path[-1].node.belief for path in open_ends])
            actions = torch.tensor([path[-1].action for path in open_ends], device=mind.device)
            leap, belief = mind.imagine(before, actions, self._generator)
            priors, estimates = self._estimate(mind, belief)
            outcomes = self._outcomes(leap, belief, priors, estimates)
            for path, outcome, estimate in zip(open_ends, outcomes, estimates.tolist(), strict=True):
                node, action, _ = path[-1]
                known = node.outcomes[action].setdefault(key_of(outcome.grids), outcome)
                if known is not outcome:  # it was drawn before
                    known.draws += 1
                path[-1] = Move(node, action, known)
                values[id(path)] = estimate
        for path in paths:
            back_up(path, values[id(path)], bounds)

    def _outcomes(self, leap: Leap, belief: Belief, priors: np.ndarray, values: np.ndarray) -> list[Outcome]:
        """One for every row of a batch of leaps."""
        grids, rewards, ends = (torch.stack(part, 1).cpu().numpy() for part in list(zip(*leap.steps, strict=True))[:3])
        facts = zip(leap.rewards.tolist(), leap.discounts.tolist(), strict=True)
        return [
            Outcome(
                Node(select_rows(belief, slice(row, row + 1)), priors[row], float(values[row])),
                reward, discount, grids[row], rewards[row], ends[row],
            )
            for row, (reward, discount) in enumerate(facts)
        ]  # fmt: skip

    @torch.no_grad()
    def _estimate(self, mind: Mind, belief: Belief) -> tuple[np.ndarray, np.ndarray]:
        """Priors (B, A) and values (B,) of new nodes."""
        judged, rows = mind.judge(belief), len(belief.grids)
        uniform = np.full((rows, mind.actions), 1 / mind.actions)
        if judged is None:
            return uniform, self._walk(mind, belief).cpu().numpy().astype(np.float64)
        policy = judged.policy.cpu().numpy().astype(np.float64)
        return (1 - self.explore) * policy + self.explore * uniform, judged.value.cpu().numpy().astype(np.float64)

    def _walk(self, mind: Mind, belief: Belief) -> Tensor:
        """The returns (B,) of random walks."""
        returns = torch.zeros(len(belief.grids), device=mind.device)
        counts = torch.ones_like(returns)
        for _ in range(self.rollout):
            actions = torch.randint(mind.actions, returns.shape, generator=self._generator, device=mind.device)
            leap, belief = mind.imagine(belief, actions, self._generator)
            returns = returns + counts * leap.rewards
            counts = counts * leap.discounts
        return returns

    def _plan_of(self, mind: Mind, root: Node) -> Plan:
        """The way through the tree that was visited most."""
        action = root.best(self._rng)
        value, node = float(root.returns()[action]), root
        taken: list[int] = []
        ways: list[Outcome] = []
        while node.outcomes[action]:
            outcome = max(node.outcomes[action].values(), key=lambda one: one.visits)
            taken += [action] * mind.repeat
            ways.append(outcome)
            node = outcome.node
            if not node.visits.any():
                break
            action = node.best(self._rng)
        parts = ([getattr(way, name) for way in ways] for name in ("grids", "rewards", "ends"))
        grids, rewards, ends = (np.concatenate(part) for part in parts)
        return Plan(np.array(taken, np.int64), rewards, ends, value, grids, mind.draw)
