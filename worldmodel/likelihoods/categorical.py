"""A softmax over the 256 values of each sub-pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from worldmodel.likelihoods.base import NUM_VALUES, Likelihood, frames_of, uniform, values_of

ROWS = 4096  # sub-pixels whose 256 scores are worked on at a time on a CPU: 4 MB, which stays in its cache


class Categorical(Likelihood):
    """A softmax over the 256 values of each sub-pixel; output channel c · 256 + l is the score of value l of channel c.

    The scores lie with the values innermost (channels-last), and are worked on some thousand rows at a time.
    """

    exact = True

    def __init__(self, channels: int):
        super().__init__(channels)
        self.outputs = channels * NUM_VALUES

    def log_prob(self, outputs: Tensor, frames: Tensor) -> Tensor:
        scores = self._by_subpixel(outputs)
        values = values_of(frames).movedim(1, -1)
        nats = _LogSoftmaxAt.apply(scores.reshape(-1, NUM_VALUES), values.reshape(-1))
        return nats.view(values.shape).movedim(-1, 1)

    def mean(self, outputs: Tensor) -> Tensor:
        scores = self._by_subpixel(outputs)
        values = frames_of(torch.arange(NUM_VALUES, device=outputs.device))
        rows = scores.reshape(-1, NUM_VALUES).split(_rows(scores))
        means = torch.cat([torch.softmax(part.float(), -1) @ values for part in rows])
        return means.view(scores.shape[:-1]).movedim(-1, 1)

    @torch.no_grad()
    def sample(self, outputs: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        scores = self._by_subpixel(outputs)
        noise = uniform(scores.shape[:-1], scores.device, generator)
        parts = []
        for part, draw in zip(
            scores.reshape(-1, NUM_VALUES).split(_rows(scores)), noise.reshape(-1).split(_rows(scores)), strict=True
        ):
            cumulative = torch.softmax(part.float() / temperature, -1).cumsum(-1)
            # Rounding may leave the last sum off one: the noise is scaled, so that no value of probability 0 is drawn.
            target = draw[:, None] * cumulative[:, -1:]
            parts.append(torch.searchsorted(cumulative, target, right=True).clamp_(max=NUM_VALUES - 1)[:, 0])
        return frames_of(torch.cat(parts).view(noise.shape)).movedim(-1, 1)


def _rows(scores: Tensor) -> int:
    return ROWS if scores.device.type == "cpu" else max(scores.numel() // NUM_VALUES, 1)


class _LogSoftmaxAt(torch.autograd.Function):
    """log_softmax(scores)[values] of rows: scores (M, 256) of any float type, values (M,) → (M,) float32.

    On a CPU the scores of 32 frames of 32×32 are 100 MB in float32, and what limits a plain cross-entropy is memory: it
    writes as much again forward, and once more for a cast. Here a block of rows is finished while it is in the cache,
    and nothing of that size is kept but the scores themselves; backward makes the softmax again.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(scores, values)
        nats = torch.empty(len(values), device=scores.device)
        size = _rows(scores)
        for start in range(0, len(values), size):
            part = slice(start, start + size)
            logs = torch.log_softmax(scores[part].float(), -1)
            torch.gather(logs, 1, values[part, None], out=nats[part, None])
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        scores, values = ctx.saved_tensors
        result = torch.empty_like(scores)
        size = _rows(scores)
        for start in range(0, len(values), size):
            part = slice(start, start + size)
            weight = grad[part, None]
            slope = torch.softmax(scores[part].float(), -1).mul_(-weight)
            result[part] = slope.scatter_add_(1, values[part, None], weight)
        return result, None
