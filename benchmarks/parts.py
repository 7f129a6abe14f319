"""Speeds of the parts of a run: store, tokenizer, dream environment, planners and training stages."""

import dataclasses
import functools
import os
import time
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch

from benchmarks.subject import Subject
from benchmarks.timing import Contender, Figure, Plan, peak_memory, rates, reset_peak, rounds, seconds, synchronize
from worldmodel.agents.mcts import MCTSAgent
from worldmodel.agents.mpc import MPCAgent
from worldmodel.agents.planner import Planner, PlanningModel
from worldmodel.data.codes import CodeStore
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import Windows
from worldmodel.runs.models import build_tokenizer
from worldmodel.runs.stages import STAGES, Source, stage_settings
from worldmodel.runs.training import make_fabric
from worldmodel.tokenizers import require_codes
from worldmodel.training.base import make_batches
from worldmodel.training.fit import Fit, Hook, fit
from worldmodel.world import Precision, WorldModel

WINDOW, WINDOWS, CALLS = 16, 32, 4  # store: frames per window, windows per call, calls per measurement
FRAMES = 128  # tokenizer: least number of frames per measurement
STEPS = 25  # environment: steps per dream and per measurement, so that every row is reset once
CANDIDATES, HORIZON, ITERATIONS, SIMULATIONS = 64, 8, 4, 128  # planners
WARM_UP, MEASURED = 3, 10  # training: unmeasured steps (the optimizer allocates its state), and measured ones
COUNTED = {"tokenizer": "tokenizer, frames", "prior": "prior, predicted frames"}

Contenders = Mapping[tuple[str, Precision], Contender]


def measure_store(subject: Subject, plan: Plan) -> list[Figure]:
    """Random windows per second, read by one thread as in training. Cold: after the files were dropped from the
    system's cache. Warm: the same windows again."""
    device = torch.device("cpu")
    reset_peak(device)
    opened: list[Windows] = []

    def warm(number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        return seconds(lambda: [opened[0].sample(WINDOWS, generator) for _ in range(CALLS)], device)

    def cold(number: int) -> float:
        opened.clear()  # mapped pages would stay in the cache
        drop_cache(subject.store)
        opened.append(Windows(EpisodeStore.open(subject.store.path), "train", WINDOW))
        return warm(number)

    spent = rounds({"random windows, cold": cold, "random windows, warm": warm}, plan.repeat)
    work, size = WINDOWS * CALLS, {"batch": WINDOWS, "length": WINDOW}
    figures = [Figure.of(name, rates(work, times), "windows/s", **size) for name, times in spent.items()]
    return [*figures, peak_memory(device)]


def drop_cache(store: EpisodeStore) -> None:
    """Ask the system to drop the frames of a store from its cache; if it cannot, cold reads are warm."""
    for file in store.path.glob("shard-*.frames"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_tokenizer(subject: Subject, plan: Plan) -> list[Figure]:
    """Frames per second of encoding and decoding, from and to uint8 frames on the device, for every batch size."""
    worlds = subject.worlds(plan.precisions)
    figures = []
    for batch in plan.batches:
        reset_peak(subject.device)
        calls = max(2, FRAMES // batch)
        frames = subject.seen(1, batch)[0][:, 0].to(subject.device)
        contenders: dict[tuple[str, Precision], Contender] = {}
        for precision, world in worlds.items():
            encode = functools.partial(world.tokenizer.encode, frames)
            decode = functools.partial(world.tokenizer.decode, encode())
            for name, call in (("encode", encode), ("decode", decode)):
                contenders[name, precision] = functools.partial(_repeat, call, calls, subject.device)
        figures += _compare(contenders, subject, plan, batch, calls * batch, "frames/s")
    return figures


def _repeat(call: functools.partial, calls: int, device: torch.device, number: int) -> float:
    return seconds(lambda: [call() for _ in range(calls)], device)


def _compare(contenders: Contenders, subject: Subject, plan: Plan, batch: int, work: float, unit: str) -> list[Figure]:
    """Work per second of the contenders, and their peak memory."""
    figures = [
        Figure.of(name, rates(work, spent), unit, batch=batch, precision=precision)
        for (name, precision), spent in rounds(contenders, plan.repeat).items()
    ]
    return [*figures, peak_memory(subject.device, batch)]


def measure_environment(subject: Subject, plan: Plan) -> list[Figure]:
    """Steps per second of all rows of the dream environment together, including observations and resets."""
    figures = []
    for batch in plan.batches:
        reset_peak(subject.device)
        contenders = {
            (f"steps, {kind}", precision): _stepping(subject, kind, precision, batch)
            for precision in plan.precisions
            for kind in ("codes", "pixels")
        }
        figures += _compare(contenders, subject, plan, batch, batch * STEPS, "steps/s")
    return figures


def _stepping(subject: Subject, kind: str, precision: Precision, batch: int) -> Contender:
    dreams: dict[str, Any] = {"run": subject.folder, "data": subject.store.path, "split": "all", "horizon": STEPS}
    dreams |= {"observations": kind, "device": str(subject.device), "precision": precision}
    dreams["end_threshold"] = 1.0  # untrained weights would end half of the dreams at once
    env = gymnasium.make_vec("worldmodel/Dream-v0", num_envs=batch, autoreset_mode="SameStep", **dreams)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(len(subject.spec.action_names), size=(STEPS, batch))
    return lambda number: seconds(lambda: [env.step(action) for action in actions], subject.device)


def measure_planning(subject: Subject, plan: Plan) -> list[Figure]:
    """Seconds of one decision of every planner, from a frame to an action."""
    reset_peak(subject.device)
    contenders = {
        (name, precision): functools.partial(_decide, subject, world, planner)
        for precision, world in subject.worlds(plan.precisions).items()
        for name, planner in planners().items()
    }
    sizes = {"batch": CANDIDATES, "length": HORIZON}
    figures = [
        Figure.of(name, spent, "s", precision=precision, **(sizes if name.startswith("cross") else {}))
        for (name, precision), spent in rounds(contenders, plan.repeat).items()
    ]
    return [*figures, peak_memory(subject.device)]


def planners() -> dict[str, Planner]:
    """The planners, without an actor, because an untrained run has none."""
    return {
        f"cross-entropy, {ITERATIONS} rounds": MPCAgent("", CANDIDATES, HORIZON, iterations=ITERATIONS),
        f"tree search, {SIMULATIONS} simulations": MCTSAgent("", simulations=SIMULATIONS),
    }


def _decide(subject: Subject, world: WorldModel, planner: Planner, number: int) -> float:
    """Time the second decision of an episode, which starts from the plan of the first."""
    first, second = subject.seen(2, 1, number)[0][0].numpy()
    planner.use_model(PlanningModel(world))
    planner.begin(world.spec.action_names, np.random.default_rng(number))
    planner.act(first)
    return seconds(lambda: planner.act(second), subject.device)


class Stopwatch(Hook):
    """Measures the seconds of the steps after the warm-up."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0

    def on_step(self, fit: Fit) -> None:
        if fit.step == WARM_UP:
            synchronize(fit.fabric.device)
            self.started = time.perf_counter()
        elif fit.step == WARM_UP + MEASURED:
            synchronize(fit.fabric.device)
            self.seconds = time.perf_counter() - self.started


def measure_training(subject: Subject, plan: Plan) -> list[Figure]:
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
    settings = stage_settings(config, stage)
    windows = stage.windows(settings, source, model)["train"]
    batches = make_batches(windows.sample, settings.batch, 0, 0)
    settings = dataclasses.replace(settings, steps=WARM_UP + MEASURED, max_seconds=None, precision=precision)
    frames = sum(int(batches(step).valid[:, windows.lead :].sum()) for step in range(WARM_UP, settings.steps))
    fabric = make_fabric(config)
    no_checkpoint = subject.folder / "none"  # every measurement starts without a checkpoint

    def contender(number: int) -> float:
        watch = Stopwatch()
        fit(fabric, objective, batches, settings, no_checkpoint, [watch], name)
        return watch.seconds

    return contender, frames
