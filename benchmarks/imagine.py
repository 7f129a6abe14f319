"""Imagination: dreamt frames a second of both samplers, in codes alone and with decoding, and the passes they need."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch

from benchmarks.subject import Subject
from benchmarks.timing import Contender, Figure, Plan, peak_memory, rates, reset_peak, rounds, seconds
from worldmodel.data.windows import Windows
from worldmodel.priors import PriorState, make_sampler
from worldmodel.rollout import Precision, WorldModel, decode

SAMPLERS = ("ancestral", "predictive")


def measure(subject: Subject, plan: Plan) -> list[Figure]:
    """Figures at every batch: precisions, samplers and the decoder take turns."""
    worlds = subject.worlds(plan.precisions)
    return [figure for batch in plan.batches for figure in _at_batch(subject, worlds, batch, plan.repeat)]


def _at_batch(subject: Subject, worlds: Mapping[Precision, WorldModel], batch: int, repeat: int) -> list[Figure]:
    horizon = max(2, min(32, 256 // batch))  # frames a dream: enough to average over, few enough to wait for
    reset_peak(subject.device)
    contenders: dict[tuple[Precision, str], Contender] = {}
    passes: dict[Precision, list[float]] = {precision: [] for precision in worlds}
    for precision, world in worlds.items():
        windows = subject.windows(max(1, world.prior.context))
        for name, contender in _contenders(world, windows, batch, horizon, passes[precision]).items():
            contenders[precision, name] = contender
    spent = rounds(contenders, repeat)
    figures = []
    for precision in worlds:
        conditions = {"batch": batch, "precision": precision}
        alone = {name: spent[precision, name] for name in SAMPLERS}
        for name, times in alone.items():
            both = [sum(pair) for pair in zip(times, spent[precision, "decode"], strict=True)]
            for what, total in ((f"{name}, codes alone", times), (f"{name}, with decoding", both)):
                figures.append(Figure.of(what, rates(batch * horizon, total), "frames/s", **conditions))
        ratios = [slow / fast for slow, fast in zip(alone["ancestral"], alone["predictive"], strict=True)]
        figures.append(Figure.of("predictive / ancestral", ratios, "×", **conditions))
        figures.append(Figure.of("predictive, passes a frame", passes[precision][1:], "", **conditions))
    return [*figures, peak_memory(subject.device, batch)]


def _contenders(
    world: WorldModel, windows: Windows, batch: int, horizon: int, passes: list[float]
) -> dict[str, Contender]:
    """Both samplers and the decoder, each for ``horizon`` frames; ``passes`` gets the mean of every predictive dream.

    In a round the samplers start from the same seen frames under the same actions and noise, so they dream the same.
    """
    device = world.device

    @functools.lru_cache(1)
    def start(number: int) -> PriorState:
        seen = windows.fixed(batch, seed=number)
        assert seen.frames is not None
        rows = torch.arange(batch) % len(seen.frames)  # few data repeat themselves
        state = world.prior.begin(batch)
        return world.observe(state, seen.frames[rows].to(device), seen.actions[rows, 1:].to(device))

    def dreaming(name: str, number: int) -> float:
        sampler, state = make_sampler(name), start(number)
        generator = torch.Generator(device).manual_seed(number)
        actions = torch.randint(world.prior.actions, (horizon, batch), generator=generator, device=device)
        counted = []

        def dream() -> None:
            now = state
            for action in actions:
                step, now = world.step(now, action, sampler, generator)
                counted.append(step.passes)

        time = seconds(dream, device)
        if name == "predictive":
            passes.append(float(torch.stack(counted).mean()))
        return time

    def decoding(number: int) -> float:
        codes = start(number).previous
        return seconds(lambda: [decode(world.tokenizer, codes) for _ in range(horizon)], device)

    return {**{name: functools.partial(dreaming, name) for name in SAMPLERS}, "decode": decoding}
