"""The tokenizer: frames per second in encoding and decoding, from and to uint8 frames on the device."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.subject import Subject
from benchmarks.timing import Contender, Figure, Plan, peak_memory, rates, reset_peak, rounds, seconds
from worldmodel.world import Precision

FRAMES = 128  # least number of frames per measurement


def measure(subject: Subject, plan: Plan) -> list[Figure]:
    """Figures for every batch size; precisions and directions are measured in turn."""
    worlds, windows = subject.worlds(plan.precisions), subject.windows(1)
    figures = []
    for batch in plan.batches:
        reset_peak(subject.device)
        calls = max(2, FRAMES // batch)
        seen = windows.fixed(batch).frames
        assert seen is not None
        frames = seen[torch.arange(batch) % len(seen), 0].to(subject.device)  # repeated if there are too few
        contenders: dict[tuple[str, Precision], Contender] = {}
        for precision, world in worlds.items():
            codes = world.tokenizer.encode(frames)
            for what, call in (
                ("encode", functools.partial(world.tokenizer.encode, frames)),
                ("decode", functools.partial(world.tokenizer.decode, codes)),
            ):
                contenders[what, precision] = _repeated(call, calls, subject.device)
        for (what, precision), spent in rounds(contenders, plan.repeat).items():
            figures.append(Figure.of(what, rates(calls * batch, spent), "frames/s", batch=batch, precision=precision))
        figures.append(peak_memory(subject.device, batch))
    return figures


def _repeated(call: Callable[[], Tensor], calls: int, device: torch.device) -> Contender:
    return lambda number: seconds(lambda: [call() for _ in range(calls)], device)
