"""Imagination: dreamt frames a second of both samplers, in codes alone and with decoding, and the passes they need."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.subject import Subject
from benchmarks.timing import Figure, Plan, peak_memory, rates, reset_peak, rounds, seconds
from worldmodel.data.windows import Windows
from worldmodel.priors import PriorState, make_sampler
from worldmodel.rollout import Precision, WorldModel, decode

SAMPLERS = ("ancestral", "predictive")
DECODE = "decode"

Contender = Callable[[int], float]


def measure(subject: Subject, plan: Plan) -> list[Figure]:
    """Figures at every batch: precisions, samplers and the decoder take turns."""
    worlds = {precision: subject.world(precision) for precision in plan.precisions}
    return [figure for batch in plan.batches for figure in _at_batch(subject, worlds, batch, plan.repeat)]


def _at_batch(subject: Subject, worlds: Mapping[Precision, WorldModel], batch: int, repeat: int) -> list[Figure]:
    horizon = max(2, min(16, 256 // batch))  # frames a dream: enough to average over, few enough to wait for
    reset_peak(subject.device)
    contenders: dict[tuple[Precision, str], Contender] = {}
    passes: dict[Precision, list[Tensor]] = {}
    for precision, world in worlds.items():
        mine, passes[precision] = _contenders(world, subject.windows(max(1, world.prior.context)), batch, horizon)
        contenders |= {(precision, name): contender for name, contender in mine.items()}
    spent = rounds(contenders, repeat)
    figures = []
    for precision in worlds:
        decoding = spent[precision, DECODE]
        for name in SAMPLERS:
            alone = spent[precision, name]
            both = [dreaming + decoded for dreaming, decoded in zip(alone, decoding, strict=True)]
            for what, times in ((f"{name}, codes alone", alone), (f"{name}, with decoding", both)):
                figures.append(
                    Figure.of(what, rates(batch * horizon, times), "frames/s", batch=batch, precision=precision)
                )
        values = torch.stack(passes[precision]).tolist()  # of every frame: their mean is what costs
        mean = sum(values) / len(values)
        passed = Figure("predictive, passes a frame", mean, "", min(values), max(values), batch, precision=precision)
        figures.append(passed)
    return [*figures, peak_memory(subject.device, batch)]


def _contenders(
    world: WorldModel, windows: Windows, batch: int, horizon: int
) -> tuple[dict[str, Contender], list[Tensor]]:
    """Both samplers and the decoder, each for ``horizon`` frames; and the list that collects predictive passes.

    In a round the samplers start from the same seen frames under the same actions and noise, so they dream the same.
    """
    device, passes = world.device, list[Tensor]()

    @functools.lru_cache(1)
    def start(number: int) -> PriorState:
        seen = windows.fixed(batch, seed=number)
        assert seen.frames is not None
        rows = torch.arange(batch) % len(seen.frames)  # few data repeat themselves
        state = world.prior.begin(batch)
        return world.observe(state, seen.frames[rows].to(device), seen.actions[rows, 1:].to(device))

    def dreaming(name: str) -> Contender:
        sampler = make_sampler(name)

        def contender(number: int) -> float:
            state = start(number)
            generator = torch.Generator(device).manual_seed(number)
            actions = torch.randint(world.prior.actions, (horizon, batch), generator=generator, device=device)

            def dream() -> None:
                now = state
                for action in actions:
                    step, now = world.step(now, action, sampler, generator)
                    if name == "predictive":
                        passes.append(step.passes)

            return seconds(dream, device)

        return contender

    def decoding(number: int) -> float:
        codes = start(number).previous
        return seconds(lambda: [decode(world.tokenizer, codes) for _ in range(horizon)], device)

    return {**{name: dreaming(name) for name in SAMPLERS}, DECODE: decoding}, passes
