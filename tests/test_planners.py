"""Planners in worlds that are known exactly: the best action, the return that is stated, warm starts, budgets."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_world import Arrival, Opinion, Rule, clock, corridor, doors, exact_world, gamble, march, picture
from tiny import tiny_prior
from torch import Tensor

from worldmodel.agents import planner as planning
from worldmodel.agents.mcts import MCTSAgent
from worldmodel.agents.mpc import MPCAgent
from worldmodel.agents.planner import Planner, PlanningModel
from worldmodel.agents.tree import Node, Widening
from worldmodel.errors import ConfigError, RunError
from worldmodel.heads import make_sampler
from worldmodel.priors import join_rows, select_rows


def ready(agent: Planner, rule: Rule, actions: int, seed: int = 0, actor: Any = None) -> PlanningModel:
    """A planner at the beginning of an episode, in an exact world."""
    model = PlanningModel(exact_world(rule, actions), actor, agent.discount, agent.repeat)
    agent.use_model(model)
    agent.begin(model.world.spec.action_names, np.random.default_rng(seed))
    return model


def play(agent: Planner, rule: Rule, start: int, steps: int) -> list[int]:
    """The actions taken in an environment that is the world itself."""
    state, taken, chance = torch.tensor([start]), [], torch.Generator().manual_seed(1)
    for _ in range(steps):
        taken.append(agent.act(picture(int(state))))
        state = rule(state, torch.tensor(taken[-1:]), chance).states
    return taken


def best_return(rule: Rule, actions: int, start: int, horizon: int, discount: float) -> float:
    """By trying all sequences."""
    sequences = torch.tensor(list(itertools.product(range(actions), repeat=horizon)))
    states, counts, returns = torch.full((len(sequences),), start), torch.ones(len(sequences)), 0
    for action in sequences.unbind(1):
        states, rewards, ends = rule(states, action, None)
        returns, counts = returns + counts * rewards, counts * discount * (1 - ends)
    return float(returns.max())  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(4))
def test_control_finds_the_best_sequence(seed: int) -> None:
    agent = MPCAgent("", horizon=5, iterations=8, discount=0.9)
    ready(agent, corridor, 3, seed)
    for start in (4, 2):
        assert agent.act(picture(start)) == 2
        assert agent.plan is not None
        # From 2 the end is reached by five steps to the right and by no other sequence.
        assert agent.plan.value == pytest.approx(best_return(corridor, 3, start, 5, 0.9), rel=1e-5)
    agent.begin(("a0", "a1", "a2"), np.random.default_rng(0))
    assert agent.act(picture(1)) == 1  # the end is out of reach, and what lies near pays


@pytest.mark.parametrize("seed", range(4))
def test_search_finds_the_best_action(seed: int) -> None:
    agent = MCTSAgent("", simulations=256, rollout=6, discount=0.9)
    ready(agent, corridor, 3, seed)
    assert play(agent, corridor, 4, 3) == [2, 2, 2]
    agent.begin(("a0", "a1", "a2"), np.random.default_rng(seed))
    assert agent.act(picture(3)) == 2
    assert agent.plan is not None and agent.plan.actions[:4].tolist() == [2] * 4
    assert agent.plan.grids[:4, 0].tolist() == [4, 5, 6, 7] and agent.plan.ends[:4].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_luck_is_no_reason(seed: int) -> None:
    """The gamble brings 0.09 on average, although one of three futures is better than what is certain."""
    for agent in (MPCAgent("", horizon=1, samples=16, iterations=2), MCTSAgent("", rollout=1, simulations=256)):
        ready(agent, gamble, 2, seed)
        assert agent.act(picture(0)) == 0
        assert agent.plan is not None and agent.plan.value == pytest.approx(0.4)


def test_small_differences_may_be_none() -> None:
    """In the corridor a step to the left brings 0.1 at once: for one to whom that is nothing, all ways are alike."""
    for indifference, distinct in ((0.0, {1}), (0.5, {0, 1, 2})):
        agent = MPCAgent("", horizon=2, warm=0.0, indifference=indifference)
        ready(agent, corridor, 3)
        assert {agent.act(picture(3)) for _ in range(30)} == distinct
        assert agent.act(picture(6)) == 2  # 5 is more than nothing

    def noise(states: Tensor, actions: Tensor, generator: torch.Generator | None) -> Arrival:
        return Arrival(states, 0.01 * (actions - 1.0), torch.zeros(states.shape))

    agent = MPCAgent("", horizon=2, warm=0.0, indifference=0.5)
    ready(agent, noise, 3)
    assert {agent.act(picture(3)) for _ in range(30)} == {0, 1, 2}  # on both sides of 0


@pytest.mark.parametrize("seed", range(4))
def test_search_decides_when_chance_has_spoken(seed: int) -> None:
    """Before a door one sees which it is: 1 is certain. A sequence fixed beforehand brings 0.5, less than 0.7."""
    agent = MCTSAgent("", simulations=400, rollout=1, discount=1.0)
    ready(agent, doors, 2, seed)
    assert agent.act(picture(0)) == 1
    agent = MPCAgent("", horizon=2, samples=32, discount=1.0)  # type: ignore[assignment]
    ready(agent, doors, 2, seed)
    assert agent.act(picture(0)) == 0


@pytest.mark.parametrize("repeat", [1, 3])
def test_the_return_of_a_sequence_is_that_of_its_steps(repeat: int) -> None:
    """Rewards name their steps: r_t = t counts γ^(t − 1) times the probability that none of the t − 1 before ended."""
    agent, steps = MPCAgent("", discount=0.9, repeat=repeat, samples=2), 4 * repeat
    model = ready(agent, clock(end=0.2), 2)
    state = model.observe(model.begin(), picture(0))
    candidates = agent.evaluate_candidates(model, state, torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]]))
    by_hand = sum((0.9 * 0.8) ** (t - 1) * t for t in range(1, steps + 1))
    assert candidates.returns.tolist() == pytest.approx([by_hand] * 2)
    critic = Opinion({steps: 7.0}, 2)
    model = ready(agent, clock(end=0.2), 2, actor=critic)
    state = model.observe(model.begin(), picture(0))
    candidates = agent.evaluate_candidates(model, state, torch.tensor([[0, 1, 1, 0]]))
    assert candidates.returns.tolist() == pytest.approx([by_hand + (0.9 * 0.8) ** steps * 7])
    last = critic.asked[-1]  # what the critic sees: the last grids, and the actions that led to them
    before = 0 if repeat > 1 else 1
    assert last.grids[0, :, 0].tolist() == [steps - 1, steps] and last.actions[0].tolist() == [before, 0]


@pytest.mark.parametrize("repeat", [1, 2])
def test_the_value_of_a_search_is_that_of_its_steps(repeat: int) -> None:
    """With one action and one outcome the k-th simulation comes k decisions far, and walks on for two."""
    agent = MCTSAgent("", simulations=5, parallel=1, exponent=0.0, rollout=2, discount=0.9, repeat=repeat)
    ready(agent, clock(end=0.2), 1)
    agent.act(picture(0))
    returns = [
        sum((0.9 * 0.8) ** (t - 1) * t for t in range(1, (k + 2) * repeat + 1)) for k in range(1, 6)
    ]  # fmt: skip
    plan = agent.plan
    assert plan is not None and plan.value == pytest.approx(np.mean(returns))
    steps = list(range(1, 5 * repeat + 1))
    assert plan.rewards.tolist() == plan.grids[:, 0].tolist() == steps and plan.ends == pytest.approx(0.2)


@pytest.mark.parametrize("make", [MPCAgent, MCTSAgent])
def test_a_plan_is_of_the_frames_that_come(make: type[Planner]) -> None:
    agent = make("", repeat=2)
    ready(agent, clock(), 2)
    held = -1
    for step in range(6):
        action = agent.act(picture(step))
        if step % 2:
            assert agent.plan is None and action == held  # held for two steps, and planned for two
            continue
        plan, held = agent.plan, action
        assert plan is not None and plan.rewards[:2].tolist() == [step + 1, step + 2]
        assert plan.actions[:2].tolist() == [action, action]
        assert plan.frames.shape == (len(plan), 1, 4, 4) and plan.frames[0].tolist() == picture(step + 1).tolist()


@pytest.mark.parametrize("make", [MPCAgent, MCTSAgent])
def test_a_critic_sees_beyond_the_horizon(make: type[Planner]) -> None:
    short = {"horizon": 1} if make is MPCAgent else {"simulations": 24}
    for actor, wanted in ((Opinion({3: 1.0, 1: -1.0}, 3), 2), (Opinion({1: 1.0, 3: -1.0}, 3), 1)):
        agent = make("", **short)
        ready(agent, corridor, 3, actor=actor)
        assert agent.act(picture(2)) == wanted


def test_the_actor_guides() -> None:
    """Ten steps in one direction are not found by chance; the actor likes that direction, and no critic helps."""
    liked = Opinion({}, 20, liked=2, liking=6.0)
    found = []
    for share, actor in ((0.25, liked), (0.0, liked)):
        agent = MPCAgent("", candidates=24, horizon=10, iterations=1, guided=share)
        ready(agent, march, 20, actor=actor)
        agent.act(picture(0))
        found.append(agent.plan.value)  # type: ignore[union-attr]
    assert found[0] > 0.8 and found[1] == 0
    search = MCTSAgent("", simulations=60)
    ready(search, march, 20, actor=liked)
    assert search.act(picture(0)) == 2


def test_a_plan_goes_on_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[torch.Tensor] = []
    look = MPCAgent.evaluate_candidates
    monkeypatch.setattr(
        MPCAgent, "evaluate_candidates", lambda self, *given: rounds.append(given[2].clone()) or look(self, *given)
    )
    agent = MPCAgent("", candidates=16, horizon=6, iterations=2)
    ready(agent, corridor, 3)
    agent.act(picture(0))
    assert agent.plan is not None
    before = agent.plan.actions
    odds = agent._last[1]  # type: ignore[index]
    rounds.clear()
    first, *_ = agent._first_round(agent._model)  # type: ignore[arg-type]
    assert torch.allclose(first[:-1], 0.5 * odds[1:] + 0.5 / 3) and torch.allclose(first[-1], torch.tensor(1 / 3))
    agent.act(picture(0))
    assert rounds[0][0, :-1].tolist() == before[1:].tolist()
    agent.begin(("a0", "a1", "a2"), np.random.default_rng(0))
    assert agent._last is None  # another episode


def test_the_tree_goes_on_where_the_world_did_as_imagined() -> None:
    agent = MCTSAgent("", simulations=64, rollout=2)
    ready(agent, corridor, 3)
    action = agent.act(picture(3))
    root, bounds = agent._tree  # type: ignore[misc]
    (child,) = (outcome.node for outcome in root.outcomes[action].values())
    kept = int(child.visits.sum())
    assert kept > 0
    agent.act(picture((3, 2, 4)[action]))
    assert agent._tree == (child, bounds) and child.visits.sum() == kept + 64
    agent.act(picture(0))  # nothing of the kind was imagined
    assert agent._tree[0].visits.sum() == 64  # type: ignore[index]


def test_simulations_under_way_spread_and_all_come_back() -> None:
    agent = MCTSAgent("", simulations=200, parallel=32)
    ready(agent, doors, 2)
    agent.act(picture(0))
    root, _ = agent._tree  # type: ignore[misc]
    nodes: list[Node] = [root]
    for node in nodes:
        assert not node.pending.any()
        for action, outcomes in enumerate(node.outcomes):
            assert node.visits[action] == sum(outcome.visits for outcome in outcomes.values())
            assert node.draws[action] == sum(outcome.draws for outcome in outcomes.values())
            assert node.draws[action] <= np.ceil(node.visits[action] ** 0.5)
            nodes += [outcome.node for outcome in outcomes.values()]
    assert root.visits.sum() == 200
    assert len(root.outcomes[1]) == 2  # both doors; equal grids are one outcome


def test_outcomes_widen_with_the_visits() -> None:
    node, widening = Node(None, np.ones(1), 0.0), Widening(2.0, 0.5)  # type: ignore[arg-type]
    drawn = []
    for visits in range(20):
        node.visits[0] = visits
        while widening.allows(node, 0):
            node.draws[0] += 1
        drawn.append(int(node.draws[0]))
    assert drawn == [int(np.ceil(2 * np.sqrt(n))) for n in range(1, 21)]


@pytest.mark.parametrize(("make", "work"), [(MPCAgent, "evaluate_candidates"), (MCTSAgent, "_finish")])
def test_a_decision_ends_with_its_seconds(make: type[Planner], work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round takes a second of a clock that is ours."""
    now, rounds, done = [0.0], [], getattr(make, work)

    def worked(self: Planner, *given: Any) -> Any:
        now[0] += 1
        rounds.append(given)
        return done(self, *given)

    monkeypatch.setattr(planning, "clock", lambda: now[0])
    monkeypatch.setattr(make, work, worked)
    for seconds, wanted in ((0.5, 1), (2.5, 3), (3.0, 3), (None, 4)):
        agent = make("", seconds=seconds, **({} if make is MPCAgent else {"simulations": 64}))
        ready(agent, clock(), 16)
        rounds.clear()
        agent.act(picture(0))
        assert len(rounds) == wanted and agent.plan is not None


@pytest.mark.parametrize("make", [MPCAgent, MCTSAgent])
def test_the_same_source_of_chance_the_same_episode(make: type[Planner]) -> None:
    def episode(seed: int) -> list[int]:
        agent = make("", **({"iterations": 1} if make is MPCAgent else {"simulations": 16}))
        ready(agent, gamble, 2, seed)
        torch.rand(seed + 1)
        return play(agent, gamble, 1, 12)  # nothing is to be won: all is chance

    assert episode(3) == episode(3)
    assert len({tuple(episode(seed)) for seed in range(4)}) == 4


@pytest.mark.parametrize("name", ["conv", "conv_memory", "transformer"])
def test_states_of_other_ages_step_together(name: str) -> None:
    prior, sampler = tiny_prior(name), make_sampler("auto", 0.0)
    state, rows = prior.begin(3), []
    with torch.no_grad():
        for age in range(3):
            _, state = prior.step(state, torch.tensor([0, 1, 2]), sampler)
            rows.append(select_rows(state, slice(age, age + 1)))
        actions = torch.tensor([2, 0, 1])
        _, together = prior.step(join_rows(rows), actions, sampler)
        for age in range(3):
            _, alone = prior.step(rows[age], actions[age : age + 1], sampler)
            assert torch.equal(together.previous[age], alone.previous[0])


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (MPCAgent, {"candidates": 0}, "candidates is 0; it must be at least 1"),
        (MPCAgent, {"elites": 65}, "agent.elites is 65; choose at most agent.candidates, which is 64"),
        (MPCAgent, {"warm": 2}, "warm is 2; it must be at most 1"),
        (MPCAgent, {"smoothing": 1}, "smoothing is 1; it must be below 1"),
        (MPCAgent, {"horizon": 1.5}, "horizon is 1.5; it must be a whole number"),
        (MPCAgent, {"value": "always"}, "value is 'always'; choose auto, none"),
        (MCTSAgent, {"simulations": 0}, "simulations is 0; it must be at least 1"),
        (MCTSAgent, {"widening": 0.5}, "widening is 0.5; it must be at least 1"),
        (MCTSAgent, {"seconds": 0}, "seconds is 0; it must be above 0"),
        (MCTSAgent, {"repeat": 0}, "repeat is 0; it must be at least 1"),
        (MCTSAgent, {"discount": 1.1}, "discount is 1.1; it must be at most 1"),
    ],
)
def test_a_bad_setting_is_one_line(make: Callable[..., Planner], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make("", **settings)
    assert str(error.value) == message


def test_what_a_planner_cannot_imagine_with(tmp_path: Path) -> None:
    names: Sequence[str] = ("a0", "a1", "a2")
    with pytest.raises(RunError, match="there is no run at 'nowhere'"):
        MPCAgent("nowhere").begin(names, np.random.default_rng(0))
    agent = MCTSAgent("square")
    ready(agent, corridor, 3)
    with pytest.raises(
        RunError,
        match="the run square was trained with the actions a0, a1, a2, and this environment has stay, go; choose",
    ):
        agent.begin(("stay", "go"), np.random.default_rng(0))
    agent.begin(names, np.random.default_rng(0))
    agent.act(picture(0))
    again = pickle.loads(pickle.dumps(agent))  # of what it played, nothing goes along
    assert again.plan is None and again._model is None and again.simulations == agent.simulations
