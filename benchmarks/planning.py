"""Planning: seconds of one decision, from a frame to an action, with the default settings."""

from __future__ import annotations

import functools

import numpy as np

from benchmarks.subject import Subject
from benchmarks.timing import Contender, Figure, Plan, peak_memory, reset_peak, rounds, seconds
from worldmodel.agents.mcts import MCTSAgent
from worldmodel.agents.mpc import MPCAgent
from worldmodel.agents.planner import Planner
from worldmodel.agents.planning_model import PlanningModel
from worldmodel.world import Precision, WorldModel

CANDIDATES, HORIZON = 64, 8
ITERATIONS, SIMULATIONS = 4, 128


def planners() -> dict[str, Planner]:
    """The planners, without an actor, because an untrained run has none."""
    return {
        f"cross-entropy, {ITERATIONS} rounds": MPCAgent("", CANDIDATES, HORIZON, iterations=ITERATIONS),
        f"tree search, {SIMULATIONS} simulations": MCTSAgent("", simulations=SIMULATIONS),
    }


def measure(subject: Subject, plan: Plan) -> list[Figure]:
    """Figures of every planner; precisions and planners are measured in turn."""
    reset_peak(subject.device)
    contenders: dict[tuple[str, Precision], Contender] = {}
    for precision, world in subject.worlds(plan.precisions).items():
        for name, planner in planners().items():
            contenders[name, precision] = functools.partial(_decide, subject, world, planner)
    sizes = {"batch": CANDIDATES, "length": HORIZON}
    figures = [
        Figure.of(name, spent, "s", precision=precision, **(sizes if name.startswith("cross") else {}))
        for (name, precision), spent in rounds(contenders, plan.repeat).items()
    ]
    return [*figures, peak_memory(subject.device)]


def _decide(subject: Subject, world: WorldModel, planner: Planner, number: int) -> float:
    """Time the second decision of an episode, which starts from the plan of the first."""
    seen = subject.windows(2).fixed(1, seed=number)
    assert seen.frames is not None
    first, second = seen.frames[0].numpy()
    planner.use_model(PlanningModel(world))
    planner.begin(world.spec.action_names, np.random.default_rng(number))
    planner.act(first)
    return seconds(lambda: planner.act(second), subject.device)
