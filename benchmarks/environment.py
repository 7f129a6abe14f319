"""The dream environment: steps per second of all rows together, including observations and resets."""

from __future__ import annotations

import gymnasium
import numpy as np

from benchmarks.subject import Subject
from benchmarks.timing import Contender, Figure, Plan, peak_memory, rates, reset_peak, rounds, seconds
from worldmodel.world import Precision

KINDS = ("codes", "pixels")
HORIZON = 25  # steps per dream and per measurement, so that every row is reset once


def measure(subject: Subject, plan: Plan) -> list[Figure]:
    """Figures for every batch size; precisions and kinds of observations are measured in turn."""
    figures = []
    for batch in plan.batches:
        reset_peak(subject.device)
        contenders = {
            (kind, precision): _stepping(subject, kind, precision, batch)
            for precision in plan.precisions
            for kind in KINDS
        }
        for (kind, precision), spent in rounds(contenders, plan.repeat).items():
            done = rates(batch * HORIZON, spent)
            figures.append(Figure.of(f"steps, {kind}", done, "steps/s", batch=batch, precision=precision))
        figures.append(peak_memory(subject.device, batch))
    return figures


def _stepping(subject: Subject, kind: str, precision: Precision, batch: int) -> Contender:
    env = gymnasium.make_vec(
        "worldmodel/Dream-v0",
        num_envs=batch,
        run=subject.folder,
        data=subject.store.path,
        split="all",
        observations=kind,
        horizon=HORIZON,
        end_threshold=1.0,  # untrained weights would end half of the dreams at once
        device=str(subject.device),
        precision=precision,
        autoreset_mode="SameStep",
    )
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(len(subject.spec.action_names), size=(HORIZON, batch))

    def walk(number: int) -> float:
        return seconds(lambda: [env.step(action) for action in actions], subject.device)

    return walk
