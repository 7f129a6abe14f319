"""Imagination: dreamt frames a second of the samplers, in codes alone and with decoding, and the passes they need."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.subject import Subject
from benchmarks.timing import Contender, Figure, Plan, peak_memory, rates, reset_peak, rounds, seconds
from worldmodel.data.windows import Windows
from worldmodel.heads import Ancestral, Head, Predictive, Randomness, Sampler
from worldmodel.priors import PriorState
from worldmodel.world import Precision, WorldModel

LONGEST = 32  # frames a dream
SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "one by one": lambda: Ancestral(together=False),  # the ancestral sampler of the textbooks, with what the head keeps
    "ancestral": Ancestral,
    "predictive": Predictive,
}


def measure(subject: Subject, plan: Plan) -> list[Figure]:
    """Figures at every batch: precisions, samplers and the decoder take turns."""
    worlds = subject.worlds(plan.precisions)
    return [figure for batch in plan.batches for figure in _at_batch(subject, worlds, batch, plan.repeat)]


def _at_batch(subject: Subject, worlds: Mapping[Precision, WorldModel], batch: int, repeat: int) -> list[Figure]:
    horizon = max(2, min(LONGEST, 256 // batch))  # frames a dream: enough to average over, few enough to wait for
    reset_peak(subject.device)
    contenders: dict[tuple[Precision, str], Contender] = {}
    kept: dict[Precision, dict[str, list[Watched]]] = {p: {name: [] for name in SAMPLERS} for p in worlds}
    for precision, world in worlds.items():
        windows = subject.windows(max(1, world.prior.context))
        for name, contender in _contenders(world, windows, batch, horizon, kept[precision]).items():
            contenders[precision, name] = contender
    spent = rounds(contenders, repeat)
    figures = []
    for precision in worlds:
        conditions = {"batch": batch, "precision": precision}
        whole = {name: spent[precision, name] for name in SAMPLERS}
        watched = {name: rounds_of[1:] for name, rounds_of in kept[precision].items()}  # round 0 warms up
        inside = {name: [sum(one.seconds) for one in found] for name, found in watched.items()}
        for name, times in whole.items():
            both = [sum(pair) for pair in zip(times, spent[precision, "decode"], strict=True)]
            for what, total in ((f"{name}, codes alone", times), (f"{name}, with decoding", both)):
                figures.append(Figure.of(what, rates(batch * horizon, total), "frames/s", **conditions))
        for what, times_of in (("whole frames", whole), ("sampler", inside)):
            pairs = zip(times_of["one by one"], times_of["predictive"], strict=True)
            figures.append(
                Figure.of(f"one by one / predictive, {what}", [slow / fast for slow, fast in pairs], "×", **conditions)
            )
        for name in ("ancestral", "predictive"):
            counts = [statistics.fmean(one.passes) for one in watched[name]]
            figures.append(Figure.of(f"{name}, passes a frame", counts, "", **conditions))
    return [*figures, peak_memory(subject.device, batch)]


class Watched(Sampler):
    """Another sampler; what it takes itself, without the trunk, and its passes are kept."""

    def __init__(self, sampler: Sampler, device: torch.device):
        super().__init__(sampler.temperature, sampler.top_k)
        self.sampler, self.device = sampler, device
        self.seconds: list[float] = []
        self.passes: list[float] = []

    def sample(self, head: Head, contexts: Tensor, generator: Randomness = None) -> tuple[Tensor, Tensor]:
        drawn: list[tuple[Tensor, Tensor]] = []
        self.seconds.append(seconds(lambda: drawn.append(self.sampler.sample(head, contexts, generator)), self.device))
        self.passes.append(float(drawn[0][1]))
        return drawn[0]

    def run(self, head: Head, contexts: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return self.sampler.run(head, contexts, noise)


def _contenders(
    world: WorldModel, windows: Windows, batch: int, horizon: int, kept: Mapping[str, list[Watched]]
) -> dict[str, Contender]:
    """The samplers and the decoder, each for ``horizon`` frames; ``kept`` gets every sampler that ran.

    In a round the samplers start from the same seen frames under the same actions and noise, so they dream the same.
    """
    device = world.device

    @functools.lru_cache(1)
    def start(number: int) -> PriorState:
        seen = windows.fixed(batch, seed=number)
        assert seen.frames is not None
        rows = torch.arange(batch) % len(seen.frames)  # few data repeat themselves
        return world.observe(seen.frames[rows].to(device), seen.actions[rows].to(device))

    def dreaming(name: str, number: int) -> float:
        sampler, state = Watched(SAMPLERS[name](), device), start(number)
        kept[name].append(sampler)
        generator = torch.Generator(device).manual_seed(number)
        actions = torch.randint(world.prior.num_actions, (horizon, batch), generator=generator, device=device)

        def dream() -> None:
            now = state
            for action in actions:
                _, now = world.step(now, action, sampler, generator)

        return seconds(dream, device)

    def decoding(number: int) -> float:
        codes = start(number).previous
        return seconds(lambda: [world.tokenizer.decode(codes) for _ in range(horizon)], device)

    return {**{name: functools.partial(dreaming, name) for name in SAMPLERS}, "decode": decoding}
