"""The tokenizer at work: frames a second that are encoded and decoded, uint8 frames on the device on either side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.subject import Subject
from benchmarks.timing import Figure, Plan, peak_memory, rates, reset_peak, rounds, seconds
from worldmodel.rollout import decode, encode
from worldmodel.tokenizers import Tokenizer


def measure(subject: Subject, plan: Plan) -> list[Figure]:
    """Figures at every batch: precisions and both directions take turns."""
    worlds = {precision: subject.world(precision) for precision in plan.precisions}
    device, windows = subject.device, subject.windows(1)
    figures = []
    for batch in plan.batches:
        reset_peak(device)
        calls = max(2, 128 // batch)
        seen = windows.fixed(batch).frames
        assert seen is not None
        frames = seen[torch.arange(batch) % len(seen), 0].to(device)  # (B, C, *size); few data repeat themselves
        contenders = {}
        for precision, world in worlds.items():
            codes = encode(world.tokenizer, frames)
            contenders["encode", precision] = _contender(encode, world.tokenizer, frames, calls)
            contenders["decode", precision] = _contender(decode, world.tokenizer, codes, calls)
        for (name, precision), spent in rounds(contenders, plan.repeat).items():
            figures.append(Figure.of(name, rates(calls * batch, spent), "frames/s", batch=batch, precision=precision))
        figures.append(peak_memory(device, batch))
    return figures


def _contender(
    way: Callable[[Tokenizer, Tensor], Tensor], tokenizer: Tokenizer, given: Tensor, calls: int
) -> Callable[[int], float]:
    return lambda number: seconds(lambda: [way(tokenizer, given) for _ in range(calls)], given.device)
