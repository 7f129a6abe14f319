"""Monte-Carlo tree search in the dream of a stochastic world model."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from worldmodel.agents.base import Plan
from worldmodel.agents.planner import EpisodeState, Planner, PlanningModel, Transition, grid_key
from worldmodel.agents.tree import Bounds, Node, Outcome, PathStep, Widening, back_up, mark_pending, select_path
from worldmodel.config.checks import checked
from worldmodel.priors import join_rows, select_rows
from worldmodel.util.ranges import Count, Share


class MCTSAgent(Planner):
    """Searches a tree of actions and sampled outcomes, and takes the most visited action at the root.

    The world is stochastic, so an action has several outcomes: grids drawn from the prior, the more of them the more
    often the action is visited (double progressive widening). Nodes keep their states, so a simulation costs one
    imagined transition; the transitions of a batch of simulations are one pass through the prior. Returns are scaled
    by the lowest and highest return of the tree (*MuZero*), so that one exploration constant suits all rewards.

    With an actor, its policy is the prior of the search and its critic evaluates the leaves. Without one, the prior is
    uniform and a leaf is evaluated by a random rollout. If the observed codes are among the imagined outcomes, the next
    search continues with their subtree.

    Args:
        simulations: per decision. parallel: size of a batch of simulations.
        widening, exponent: an action visited n times has widening · n^exponent outcomes.
        explore: weight of the uniform distribution in the prior of the search.
        rollout: number of decisions of a random rollout, used without a critic.
        shared: arguments of :class:`worldmodel.agents.planner.Planner`.
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

    def _decide(self, model: PlanningModel, state: EpisodeState, seen_key: bytes) -> Plan:
        root, bounds = self._root(model, state, seen_key)
        widening, done = Widening(self.widening, self.exponent), 0  # done: finished simulations
        while done < self.simulations:
            paths: list[list[PathStep]] = []
            while len(paths) < min(self.parallel, self.simulations - done):
                path = select_path(root, bounds, widening, self._rng)
                if path is None:
                    break
                mark_pending(path)
                paths.append(path)
            self._finish(model, paths, bounds)
            done += len(paths)
            if self.out_of_time:
                break
        self._tree = root, bounds
        return self._plan_of(model, root)

    def _root(self, model: PlanningModel, state: EpisodeState, seen_key: bytes) -> tuple[Node, Bounds]:
        """The node of the last search that matches the observed codes, or a new one."""
        if self._tree is not None:
            node, bounds = self._tree
            outcome = node.outcomes[self._action].get(seen_key)
            if outcome is not None and not outcome.terminal:
                outcome.node.state = state
                return outcome.node, bounds
        priors, values = self._estimate(model, state)
        return Node(state, priors[0], float(values[0])), Bounds()

    def _finish(self, model: PlanningModel, paths: list[list[PathStep]], bounds: Bounds) -> None:
        """Draw the missing outcomes of a batch of simulations, estimate their values, and back them up."""
        unfinished = [path for path in paths if path[-1].outcome is None]
        values = dict.fromkeys(map(id, paths), 0.0)  # the value after a terminal outcome is 0
        if unfinished:
            before = join_rows([path[-1].node.state for path in unfinished])
            actions = torch.tensor([path[-1].action for path in unfinished], device=model.device)
            transition, state = model.imagine(before, actions, self._generator)
            priors, estimates = self._estimate(model, state)
            outcomes = self._outcomes(transition, state, priors, estimates)
            for path, outcome, estimate in zip(unfinished, outcomes, estimates.tolist(), strict=True):
                node, action, _ = path[-1]
                stored = node.outcomes[action].setdefault(grid_key(outcome.grids), outcome)
                if stored is not outcome:  # it was drawn before
                    stored.draws += 1
                path[-1] = PathStep(node, action, stored)
                values[id(path)] = estimate
        for path in paths:
            back_up(path, values[id(path)], bounds)

    def _outcomes(
        self, transition: Transition, state: EpisodeState, priors: np.ndarray, values: np.ndarray
    ) -> list[Outcome]:
        """One outcome for every row of a batch of transitions."""
        columns = list(zip(*transition.steps, strict=True))[:3]
        grids, rewards, ends = (torch.stack(column, 1).cpu().numpy() for column in columns)
        pairs, outcomes = zip(transition.rewards.tolist(), transition.discounts.tolist(), strict=True), []
        for row, (reward, discount) in enumerate(pairs):
            node = Node(select_rows(state, slice(row, row + 1)), priors[row], float(values[row]))
            outcomes.append(Outcome(node, reward, discount, grids[row], rewards[row], ends[row]))
        return outcomes

    def _estimate(self, model: PlanningModel, state: EpisodeState) -> tuple[np.ndarray, np.ndarray]:
        """Action priors (B, A) and values (B,) of new nodes."""
        estimate, rows = model.evaluate(state), len(state.grids)
        uniform = np.full((rows, model.num_actions), 1 / model.num_actions)
        if estimate is None:
            return uniform, self._rollout_returns(model, state).cpu().numpy().astype(np.float64)
        policy = estimate.policy.cpu().numpy().astype(np.float64)
        return (1 - self.explore) * policy + self.explore * uniform, estimate.value.cpu().numpy().astype(np.float64)

    def _rollout_returns(self, model: PlanningModel, state: EpisodeState) -> Tensor:
        """The returns (B,) of random rollouts."""
        returns = torch.zeros(len(state.grids), device=model.device)
        weights = torch.ones_like(returns)
        for _ in range(self.rollout):
            actions = torch.randint(model.num_actions, returns.shape, generator=self._generator, device=model.device)
            transition, state = model.imagine(state, actions, self._generator)
            returns = returns + weights * transition.rewards
            weights = weights * transition.discounts
        return returns

    def _plan_of(self, model: PlanningModel, root: Node) -> Plan:
        """The most visited path through the tree."""
        action = root.best(self._rng)
        value, node = float(root.returns()[action]), root
        actions: list[int] = []
        outcomes: list[Outcome] = []
        while node.outcomes[action]:
            outcome = max(node.outcomes[action].values(), key=lambda one: one.visits)
            actions += [action] * model.repeat
            outcomes.append(outcome)
            node = outcome.node
            if not node.visits.any():
                break
            action = node.best(self._rng)
        parts = ([getattr(outcome, name) for outcome in outcomes] for name in ("grids", "rewards", "ends"))
        grids, rewards, ends = (np.concatenate(part) for part in parts)
        return Plan(np.array(actions, np.int64), rewards, ends, value, grids, model.decode)
