"""Exact likelihoods of the 256 values of each sub-pixel: a softmax, and a mixture of discretised logistics."""

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from worldmodel.likelihoods.base import HALF, NUM_VALUES, Likelihood, frames_of, values_of
from worldmodel.nn.modules import inverse_cdf, uniform
from worldmodel.util.ranges import Count

ROWS = 4096  # sub-pixels whose 256 scores are processed at a time on a CPU: 4 MB, which fit into its cache


class Categorical(Likelihood):
    """A softmax over the 256 values of each sub-pixel; output channel c · 256 + l is the score of value l of channel c.

    Scores are channels-last, so that those of a sub-pixel are adjacent, and are processed in blocks.
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
    def sample(self, outputs: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        scores = self._by_subpixel(outputs)
        noise = uniform(scores.shape[:-1], scores.device, generator)
        parts, size = [], _rows(scores)
        for part, draw in zip(scores.reshape(-1, NUM_VALUES).split(size), noise.reshape(-1).split(size), strict=True):
            parts.append(inverse_cdf(torch.softmax(part.float() / temperature, -1), draw[:, None])[:, 0])
        return frames_of(torch.cat(parts).view(noise.shape)).movedim(-1, 1)


def _rows(scores: Tensor) -> int:
    return ROWS if scores.device.type == "cpu" else max(scores.numel() // NUM_VALUES, 1)


class _LogSoftmaxAt(torch.autograd.Function):
    """log_softmax(scores)[values] of rows: scores (M, 256) of any float type, values (M,) → (M,) float32.

    On a CPU, a cross-entropy of 32 frames of 32×32, whose scores are 100 MB in float32, is limited by memory bandwidth.
    Here each block of rows is processed while it is in the cache, and only the scores are kept; backward computes the
    softmax again.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(scores, values)
        nats = torch.empty(len(values), device=scores.device)
        size = _rows(scores)
        for start in range(0, len(values), size):
            part = slice(start, start + size)
            torch.gather(torch.log_softmax(scores[part].float(), -1), 1, values[part, None], out=nats[part, None])
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


class LogisticMixture(Likelihood):
    """A mixture of logistic densities for each sub-pixel; a value has the mass of its bin, the edge bins are open.

    The mass of a bin is σ(a) − σ(b) with a, b = (x ± half a bin − μ) / s (Salimans et al., *PixelCNN++*, 2017), here
    without its conditioning of channels on channels. It is computed as σ(a) σ(−b) (1 − e^(b−a)), without a difference
    of nearly equal numbers, so that bins far from μ have a gradient, too.

    Output channels: C times (components weights, components means, components log scales).
    """

    exact = True
    narrowest = -7.0  # log s; a bin is 2/255, e^-4.8, wide
    widest = 7.0

    def __init__(self, channels: int, components: Count = 10):
        super().__init__(channels)
        self.components = components
        self.outputs = channels * 3 * components
        # Zero outputs give a nearly flat distribution with different components.
        self.places = nn.Buffer((torch.arange(components) + 0.5) * (2 / components) - 1, persistent=False)
        self.start = -math.log(components) - 1

    def _parameters_of(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means, log scales, each (B, *size, C, components) float32."""
        return self.mixture(self._by_subpixel(outputs.float()))

    def mixture(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of sub-pixels (..., 3 components) float32 → log weights, means, log scales, (..., components)."""
        weights, means, scales = parameters.chunk(3, -1)
        # A soft lower bound keeps a gradient; the upper bound is never reached in practice.
        floor = self.narrowest + F.softplus(scales + self.start - self.narrowest)
        return torch.log_softmax(weights, -1), means + self.places, floor.clamp(max=self.widest)

    def log_prob(self, outputs: Tensor, frames: Tensor) -> Tensor:
        weights, means, scales = self._parameters_of(outputs)
        values = values_of(frames).movedim(1, -1)[..., None]
        distance = frames_of(values) - means
        rate = torch.exp(-scales)
        below_top, above_bottom = values < NUM_VALUES - 1, values > 0
        upper = F.logsigmoid((distance + HALF) * rate).where(below_top, 0.0)
        lower = F.logsigmoid((HALF - distance) * rate).where(above_bottom, 0.0)
        inside = torch.log(-torch.expm1(-2 * HALF * rate)).where(below_top & above_bottom, 0.0)
        return torch.logsumexp(weights + upper + lower + inside, -1).movedim(-1, 1)

    def mean(self, outputs: Tensor) -> Tensor:
        """The mean of the mixture clamped to [-1, 1]: the integral of P(X > t) over it, where the mean of the values
        is the sum of P(X > t) over the edges of the bins; they differ by less than half a value."""
        weights, means, scales = self._parameters_of(outputs)
        rate = torch.exp(-scales)
        above = (F.softplus((means + 1) * rate) - F.softplus((means - 1) * rate)) / rate
        return ((weights.exp() * above).sum(-1) - 1).clamp(-1, 1).movedim(-1, 1)

    @torch.no_grad()
    def sample(self, outputs: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        weights, means, scales = self._parameters_of(outputs)
        gumbel = -torch.log(-torch.log(uniform(weights.shape, weights.device, generator).clamp(1e-20, 1 - 1e-7)))
        chosen = (weights / temperature + gumbel).argmax(-1, keepdim=True)
        mean, scale = means.gather(-1, chosen)[..., 0], scales.gather(-1, chosen)[..., 0].exp()
        value = mean + temperature * scale * torch.logit(uniform(mean.shape, mean.device, generator), eps=1e-7)
        return frames_of(values_of(value.movedim(-1, 1)))
