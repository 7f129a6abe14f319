"""Imagination: dreamt frames per second of the samplers, with and without decoding, and their number of passes."""

import functools
import statistics
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.subject import Subject
from benchmarks.timing import Contender, Figure, Plan, peak_memory, rates, reset_peak, rounds, seconds
from worldmodel.heads import Ancestral, Head, Predictive, Randomness, Sampler
from worldmodel.priors import PriorState
from worldmodel.world import Precision, WorldModel

LONGEST = 32  # frames per dream
SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "one by one": lambda: Ancestral(together=False),  # plain ancestral sampling with the head's cache
    "ancestral": Ancestral,
    "predictive": Predictive,
}


def measure(subject: Subject, plan: Plan) -> list[Figure]:
    """Figures for every batch size; precisions, samplers and the decoder are measured in turn."""
    worlds = subject.worlds(plan.precisions)
    return [figure for batch in plan.batches for figure in _at_batch(subject, worlds, batch, plan.repeat)]


def _at_batch(subject: Subject, worlds: Mapping[Precision, WorldModel], batch: int, repeat: int) -> list[Figure]:
    horizon = max(2, min(LONGEST, 256 // batch))  # frames per dream
    reset_peak(subject.device)
    contenders: dict[tuple[Precision, str], Contender] = {}
    used: dict[Precision, dict[str, list[TimedSampler]]] = {p: {name: [] for name in SAMPLERS} for p in worlds}
    for precision, world in worlds.items():
        for name, contender in _contenders(subject, world, batch, horizon, used[precision]).items():
            contenders[precision, name] = contender
    spent = rounds(contenders, repeat)
    figures = []
    for precision in worlds:
        conditions = {"batch": batch, "precision": precision}
        whole = {name: spent[precision, name] for name in SAMPLERS}
        timed = {name: samplers[1:] for name, samplers in used[precision].items()}  # round 0 warms up
        inside = {name: [sum(one.seconds) for one in samplers] for name, samplers in timed.items()}
        for name, times in whole.items():
            both = [sum(pair) for pair in zip(times, spent[precision, "decode"], strict=True)]
            for what, total in ((f"{name}, codes alone", times), (f"{name}, with decoding", both)):
                figures.append(Figure.of(what, rates(batch * horizon, total), "frames/s", **conditions))
        for what, times_of in (("whole frames", whole), ("sampler", inside)):
            slow, fast = times_of["one by one"], times_of["predictive"]
            figures.append(Figure.ratio(f"one by one / predictive, {what}", slow, fast, **conditions))
        for name in ("ancestral", "predictive"):
            counts = [statistics.fmean(one.passes) for one in timed[name]]
            figures.append(Figure.of(f"{name}, passes a frame", counts, "", **conditions))
    return [*figures, peak_memory(subject.device, batch)]


class TimedSampler(Sampler):
    """Wraps a sampler and records its time, without the trunk, and its passes."""

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
    subject: Subject, world: WorldModel, batch: int, horizon: int, used: Mapping[str, list[TimedSampler]]
) -> dict[str, Contender]:
    """The samplers and the decoder, each for ``horizon`` frames; every sampler that ran is appended to ``used``.

    In a round the samplers have the same context frames, actions and noise, so their dreams are equal.
    """
    device = world.device

    @functools.lru_cache(1)
    def start(number: int) -> PriorState:
        frames, actions = subject.seen(max(1, world.prior.context), batch, number)
        return world.observe(frames.to(device), actions.to(device))

    def dreaming(name: str, number: int) -> float:
        sampler, state = TimedSampler(SAMPLERS[name](), device), start(number)
        used[name].append(sampler)
        generator = torch.Generator(device).manual_seed(number)
        actions = torch.randint(world.prior.num_actions, (horizon, batch), generator=generator, device=device)

        def dream() -> None:
            current = state
            for action in actions:
                _, current = world.step(current, action, sampler, generator)

        return seconds(dream, device)

    def decoding(number: int) -> float:
        codes = start(number).previous
        return seconds(lambda: [world.tokenizer.decode(codes) for _ in range(horizon)], device)

    return {**{name: functools.partial(dreaming, name) for name in SAMPLERS}, "decode": decoding}
