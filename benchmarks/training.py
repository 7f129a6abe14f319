"""Training: frames per second of both training stages, with the loop, objectives and settings of training."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from benchmarks.subject import Subject
from benchmarks.timing import Contender, Figure, Plan, peak_memory, rates, reset_peak, rounds, synchronize
from worldmodel.data.codes import CodeStore
from worldmodel.runs.build import build_tokenizer
from worldmodel.runs.stages import STAGES, Source, stage_settings
from worldmodel.runs.training import make_fabric
from worldmodel.tokenizers import require_codes
from worldmodel.training.base import make_batches
from worldmodel.training.fit import Fit, Hook, fit
from worldmodel.world import Precision

WARM_UP, STEPS = 3, 10  # unmeasured steps (the optimizer allocates its state), and measured ones
COUNTED = {"tokenizer": "tokenizer, frames", "prior": "prior, predicted frames"}


class Stopwatch(Hook):
    """Measures the seconds of the steps after the warm-up."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0

    def on_step(self, fit: Fit) -> None:
        if fit.step == WARM_UP:
            synchronize(fit.fabric.device)
            self.started = time.perf_counter()
        elif fit.step == WARM_UP + STEPS:
            synchronize(fit.fabric.device)
            self.seconds = time.perf_counter() - self.started


def measure(subject: Subject, plan: Plan) -> list[Figure]:
    """Figures of both training stages with the batch size and optimizer of their settings, measured in turn.

    The models start untrained, because a measured run must not change.
    """
    reset_peak(subject.device)
    stages = {(name, precision): _stage(subject, name, precision) for precision in plan.precisions for name in COUNTED}
    spent = rounds({key: contender for key, (contender, _) in stages.items()}, plan.repeat)
    figures = []
    for (name, precision), (_, frames) in stages.items():
        conditions = {"batch": subject.config.training[name].batch, "precision": precision}
        figures.append(Figure.of(COUNTED[name], rates(frames, spent[name, precision]), "frames/s", **conditions))
    return [*figures, peak_memory(subject.device)]


def _stage(subject: Subject, name: str, precision: Precision) -> tuple[Contender, int]:
    """A contender that trains one stage for some steps, and its number of reconstructed or predicted frames."""
    config, stage = subject.config, STAGES[name]
    tokenizer = None if name == "tokenizer" else require_codes(build_tokenizer(config, subject.spec))
    model = stage.build(config, subject.spec, tokenizer)
    source: Source = subject.store
    if tokenizer is not None:
        # Random codes instead of encoded frames; the values do not change the cost.
        rows = subject.store.frames, *tokenizer.grid
        codes = np.random.default_rng(0).integers(0, tokenizer.num_codes, rows, np.uint32)
        source = CodeStore(subject.store, codes)
    objective = stage.objective(config, model, tokenizer)
    windows = stage.windows(stage_settings(config, stage), source, model)["train"]
    batches = make_batches(windows.sample, config.training[name].batch, 0, 0)
    settings = dataclasses.replace(
        stage_settings(config, stage), steps=WARM_UP + STEPS, max_seconds=None, precision=precision
    )
    fabric = make_fabric(config)
    no_checkpoint = subject.folder / "none"  # every measurement starts without a checkpoint

    def contender(number: int) -> float:
        watch = Stopwatch()
        fit(fabric, objective, batches, settings, no_checkpoint, [watch], name)
        return watch.seconds

    return contender, sum(int(batches(step).valid[:, windows.lead :].sum()) for step in range(WARM_UP, WARM_UP + STEPS))
