"""Training: frames a second of both stages, through the loop, the objectives and the settings that training uses."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from lightning_fabric import Fabric

from benchmarks.subject import Subject
from benchmarks.timing import Figure, Plan, peak_memory, rates, reset_peak, rounds, synchronize
from worldmodel.data.codes import CodeStore
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import Windows
from worldmodel.rollout import Precision
from worldmodel.run import build_prior, build_tokenizer
from worldmodel.tokenizers import Tokenizer
from worldmodel.train import fit_settings, make_batches
from worldmodel.training.base import Hook, Objective
from worldmodel.training.fit import Batches, Fit, FitSettings, fit
from worldmodel.training.objectives import PriorObjective, TokenizerObjective

WARM_UP, STEPS = 3, 10  # steps of a measurement that do not count (the optimizer makes its moments), and that do


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage, ready to be trained. Frames are counted from ``first`` of a window on: those before are only seen."""

    name: str
    objective: Objective
    batches: Batches
    settings: FitSettings
    first: int

    def frames(self) -> int:
        """Valid frames of the steps that count."""
        return sum(int(self.batches(step).valid[:, self.first :].sum()) for step in range(WARM_UP, WARM_UP + STEPS))


class Stopwatch(Hook):
    """The seconds of the steps behind the warm-up."""

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
    """Figures of both stages at the batch and with the optimizer of their settings; precisions and stages take turns.

    The models start untrained, since a run that is measured must not change.
    """
    device, settings = subject.device, subject.config.training
    fabric = Fabric(accelerator=device.type, devices=[device.index] if device.type == "cuda" else 1)
    reset_peak(device)
    stages: dict[tuple[str, Precision], Stage] = {}
    for precision in plan.precisions:
        stages |= {(stage.name, precision): stage for stage in _stages(subject, precision)}
    missing = subject.folder / "no-checkpoint"  # every measurement begins anew
    spent = rounds({key: _contender(fabric, stage, missing) for key, stage in stages.items()}, plan.repeat)
    figures = []
    for (name, precision), stage in stages.items():
        what = "tokenizer, frames" if name == "tokenizer" else "prior, predicted frames"
        values = rates(stage.frames(), spent[name, precision])
        batch, length = settings[name].batch, settings[name].length
        figures.append(Figure.of(what, values, "frames/s", batch=batch, length=length, precision=precision))
    return [*figures, peak_memory(device)]


def _stages(subject: Subject, precision: Precision) -> list[Stage]:
    config = subject.config
    tokenizer = build_tokenizer(config, subject.spec)
    prior = PriorObjective(build_prior(config, subject.spec, tokenizer))

    def stage(name: str, objective: Objective, source: EpisodeStore | CodeStore, first: int) -> Stage:
        batches = make_batches(
            Windows(source, "train", config.training[name].length).sample, config.training[name].batch, 0, 0
        )
        settings = fit_settings(config, name)
        settings = dataclasses.replace(settings, steps=WARM_UP + STEPS, max_seconds=None, precision=precision)
        return Stage(name, objective, batches, settings, first)

    return [
        stage("tokenizer", TokenizerObjective(tokenizer), subject.store, 0),
        stage("prior", prior, _codes(subject, tokenizer), prior.prior.context),
    ]


def _codes(subject: Subject, tokenizer: Tokenizer) -> CodeStore:
    """A cache of random codes in the place of the run's own: what the codes are does not change the work."""
    frames = int((subject.store.lengths + 1).sum())
    codes = np.random.default_rng(0).integers(0, tokenizer.codes, (frames, *tokenizer.grid), np.uint32)
    return CodeStore(subject.store, codes, tokenizer.codes)


def _contender(fabric: Fabric, stage: Stage, checkpoint: Path) -> Callable[[int], float]:
    def contender(number: int) -> float:
        watch = Stopwatch()
        fit(fabric, stage.objective, stage.batches, stage.settings, checkpoint, [watch], stage.name)
        return watch.seconds

    return contender
