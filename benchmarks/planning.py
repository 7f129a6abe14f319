"""Planning: seconds of one decision, from a frame to an action, by the settings that users get."""

from __future__ import annotations

import functools

import numpy as np
from worldmodel.agents.belief import Mind
from worldmodel.agents.mcts import MCTSAgent
from worldmodel.agents.mpc import MPCAgent
from worldmodel.agents.planner import Planner

from benchmarks.subject import Subject
from benchmarks.timing import Contender, Figure, Plan, peak_memory, reset_peak, rounds, seconds
from worldmodel.world import Precision, WorldModel

CANDIDATES, HORIZON = 64, 8
ITERATIONS, SIMULATIONS = 4, 128


def planners() -> dict[str, Planner]:
    """Without an actor: an untrained run has none."""
    return {
        f"cross-entropy, {ITERATIONS} rounds": MPCAgent("", CANDIDATES, HORIZON, iterations=ITERATIONS),
        f"tree search, {SIMULATIONS} simulations": MCTSAgent("", simulations=SIMULATIONS),
    }


def measure(subject: Subject, plan: Plan) -> list[Figure]:
    """Figures of every planner; precisions and planners take turns."""
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
    """The second decision of an episode, which has a last plan to go on from."""
    seen = subject.windows(2).fixed(1, seed=number)
    assert seen.frames is not None
    first, second = seen.frames[0].numpy()
    planner.adopt(Mind(world))
    planner.begin(world.spec.action_names, np.random.default_rng(number))
    planner.act(first)
    return seconds(lambda: planner.act(second), subject.device)
