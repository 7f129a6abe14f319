"""What a decoder's outputs say about the levels of a frame: exact probabilities of uint8 levels, or a squared error.

Frames are float in [-1, 1], on the 256 levels that :func:`worldmodel.types.to_float` makes of bytes. Sub-pixels (a
channel of a pixel; a sample of sound) are independent given the outputs, so that figures of different likelihoods can
be compared. All of it is computed in float32, whatever the decoder computed in: the outputs that it rounded are then
the parameters of a distribution that still sums to one.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEVELS = 256
ROWS = 4096  # sub-pixels whose 256 scores are worked on at a time on a CPU: 4 MB, which stays in its cache
HALF = 1 / 255  # half the distance of two levels


class Studied(NamedTuple):
    """A likelihood's answer to a training batch."""

    loss: Tensor  # (), as :meth:`Likelihood.loss`
    frames: Tensor  # (B, C, *size) float32, without gradient: to be looked at and measured


class Likelihood(nn.Module, abc.ABC):
    """p(frame | outputs) by sub-pixel.

    Args:
        channels: C of the frames.
    """

    keep_float32 = True
    outputs: int  # channels that the decoder has to give
    stride: int = 1  # places of the frame, along each axis, that share one place of the outputs
    exact: bool  # whether log_prob is the log-likelihood of uint8 levels

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    @abc.abstractmethod
    def log_prob(self, outputs: Tensor, frames: Tensor) -> Tensor:
        """Outputs (B, outputs, *size), frames (B, C, *size) float in [-1, 1] → (B, C, *size) nats, float32."""

    @abc.abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """Outputs (B, outputs, *size) → the expected frames (B, C, *size) float32 in [-1, 1]."""

    @abc.abstractmethod
    def sample(self, outputs: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Outputs (B, outputs, *size) → frames (B, C, *size) float32 in [-1, 1], drawn from the distribution, or from
        one that a ``temperature`` > 0 below 1 makes narrower."""

    def study(self, outputs: Tensor, frames: Tensor) -> Studied:
        """What training needs of outputs and true frames. Where the expected frames take many passes, those shown are
        what one pass expects of each sub-pixel after the true ones before it."""
        return Studied(self.loss(outputs, frames), self.mean(outputs.detach()))

    def loss(self, outputs: Tensor, frames: Tensor) -> Tensor:
        """Mean of −log_prob over the batch and the sub-pixels, (): nats per sub-pixel where the likelihood is exact."""
        return -self.log_prob(outputs, frames).mean()

    def guides(self, outputs: Tensor, frames: Tensor) -> dict[str, Tensor]:
        """Further terms of training, () each, that help the decoder to say what the likelihood should heed."""
        return {}

    def _by_subpixel(self, outputs: Tensor) -> Tensor:
        """(B, C · n, *size) → (B, *size, C, n): no copy, and n adjacent in memory where outputs are channels-last."""
        return outputs.movedim(1, -1).unflatten(-1, (self.channels, -1))


def levels_of(frames: Tensor) -> Tensor:
    """Frames in [-1, 1] → the nearest of the levels 0 … 255, int64."""
    return frames.float().add(1).mul(127.5).round_().clamp_(0, LEVELS - 1).long()


def frames_of(levels: Tensor) -> Tensor:
    """Levels 0 … 255 → frames in [-1, 1], float32."""
    return levels.float() * (2 * HALF) - 1


def uniform(shape: Sequence[int], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Uniform noise in [0, 1) on a device, whatever the generator's."""
    where = device if generator is None else generator.device
    return torch.rand(tuple(shape), generator=generator, device=where).to(device)


class Categorical(Likelihood):
    """A softmax over the 256 levels of each sub-pixel; output channel c · 256 + l is the score of level l of channel c.

    The scores lie with the levels innermost (channels-last), and are worked on some thousand rows at a time.
    """

    exact = True

    def __init__(self, channels: int):
        super().__init__(channels)
        self.outputs = channels * LEVELS

    def log_prob(self, outputs: Tensor, frames: Tensor) -> Tensor:
        scores = self._by_subpixel(outputs)
        levels = levels_of(frames).movedim(1, -1)
        nats = _LogSoftmaxAt.apply(scores.reshape(-1, LEVELS), levels.reshape(-1))
        return nats.view(levels.shape).movedim(-1, 1)

    def mean(self, outputs: Tensor) -> Tensor:
        scores = self._by_subpixel(outputs)
        levels = frames_of(torch.arange(LEVELS, device=outputs.device))
        rows = scores.reshape(-1, LEVELS).split(_rows(scores))
        means = torch.cat([torch.softmax(part.float(), -1) @ levels for part in rows])
        return means.view(scores.shape[:-1]).movedim(-1, 1)

    @torch.no_grad()
    def sample(self, outputs: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        scores = self._by_subpixel(outputs)
        noise = uniform(scores.shape[:-1], scores.device, generator)
        parts = []
        for part, draw in zip(
            scores.reshape(-1, LEVELS).split(_rows(scores)), noise.reshape(-1).split(_rows(scores)), strict=True
        ):
            cumulative = torch.softmax(part.float() / temperature, -1).cumsum(-1)
            # Rounding may leave the last sum off one: the noise is scaled, so that no level of probability 0 is drawn.
            target = draw[:, None] * cumulative[:, -1:]
            parts.append(torch.searchsorted(cumulative, target, right=True).clamp_(max=LEVELS - 1)[:, 0])
        return frames_of(torch.cat(parts).view(noise.shape)).movedim(-1, 1)


def _rows(scores: Tensor) -> int:
    return ROWS if scores.device.type == "cpu" else max(scores.numel() // LEVELS, 1)


class _LogSoftmaxAt(torch.autograd.Function):
    """log_softmax(scores)[levels] of rows: scores (M, 256) of any float type, levels (M,) → (M,) float32.

    On a CPU the scores of 32 frames of 32×32 are 100 MB in float32, and what limits a plain cross-entropy is memory: it
    writes as much again forward, and once more for a cast. Here a block of rows is finished while it is in the cache,
    and nothing of that size is kept but the scores themselves; backward makes the softmax again.
    """

    @staticmethod
    def forward(ctx, scores: Tensor, levels: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(scores, levels)
        nats = torch.empty(len(levels), device=scores.device)
        size = _rows(scores)
        for start in range(0, len(levels), size):
            part = slice(start, start + size)
            logs = torch.log_softmax(scores[part].float(), -1)
            torch.gather(logs, 1, levels[part, None], out=nats[part, None])
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        scores, levels = ctx.saved_tensors
        result = torch.empty_like(scores)
        size = _rows(scores)
        for start in range(0, len(levels), size):
            part = slice(start, start + size)
            weight = grad[part, None]
            slope = torch.softmax(scores[part].float(), -1).mul_(-weight)
            result[part] = slope.scatter_add_(1, levels[part, None], weight)
        return result, None


class LogisticMixture(Likelihood):
    """A mixture of logistic densities for each sub-pixel; a level has the mass of its bin, the edge bins are open.

    The mass of a bin is σ(a) − σ(b) with a, b = (x ± half a bin − μ) / s (Salimans et al., *PixelCNN++*, 2017), here
    without its conditioning of channels on channels. It is computed as σ(a) σ(−b) (1 − e^(b−a)), the same number
    without the difference of two numbers near each other, so that no bin is so far from μ that its gradient is lost.

    Output channels: C times (components weights, components means, components log scales).

    Args:
        channels: C of the frames.
        components: logistics in the mixture.
    """

    exact = True
    narrowest = -7.0  # log s; a bin is 2/255, e^-4.8, wide
    widest = 7.0

    def __init__(self, channels: int, components: int = 10):
        super().__init__(channels)
        if components < 1:
            raise ValueError(f"a mixture needs at least one component, not {components}")
        self.components = components
        self.outputs = channels * 3 * components
        # Zero outputs mean a flat distribution, and components that differ from the start.
        places = (torch.arange(components) + 0.5) * (2 / components) - 1
        self.register_buffer("places", places, persistent=False)
        self.start = -math.log(components) - 1

    places: Tensor

    def _parameters_of(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means, log scales, each (B, *size, C, components) float32."""
        return self.mixture(self._by_subpixel(outputs.float()))

    def mixture(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of sub-pixels (..., 3 components) float32 → log weights, means, log scales, (..., components)."""
        weights, means, scales = parameters.chunk(3, -1)
        # A soft floor keeps a gradient; the ceiling is so far away that nothing sensible reaches it.
        floor = self.narrowest + F.softplus(scales + self.start - self.narrowest)
        return torch.log_softmax(weights, -1), means + self.places, floor.clamp(max=self.widest)

    def log_prob(self, outputs: Tensor, frames: Tensor) -> Tensor:
        weights, means, scales = self._parameters_of(outputs)
        levels = levels_of(frames).movedim(1, -1)[..., None]
        distance = frames_of(levels) - means
        rate = torch.exp(-scales)
        below_top, above_bottom = levels < LEVELS - 1, levels > 0
        upper = F.logsigmoid((distance + HALF) * rate).where(below_top, 0.0)
        lower = F.logsigmoid((HALF - distance) * rate).where(above_bottom, 0.0)
        inside = torch.log(-torch.expm1(-2 * HALF * rate)).where(below_top & above_bottom, 0.0)
        return torch.logsumexp(weights + upper + lower + inside, -1).movedim(-1, 1)

    def mean(self, outputs: Tensor) -> Tensor:
        """The mean of the mixture clamped to [-1, 1]: the integral of P(X > t) over it, where the mean of the levels
        is the sum of P(X > t) over the edges of the bins; they differ by less than half a level."""
        weights, means, scales = self._parameters_of(outputs)
        rate = torch.exp(-scales)
        above = (F.softplus((means + 1) * rate) - F.softplus((means - 1) * rate)) / rate
        return ((weights.exp() * above).sum(-1) - 1).clamp(-1, 1).movedim(-1, 1)

    @torch.no_grad()
    def sample(self, outputs: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        weights, means, scales = self._parameters_of(outputs)
        gumbel = -torch.log(-torch.log(uniform(weights.shape, weights.device, generator).clamp(1e-20, 1 - 1e-7)))
        chosen = (weights / temperature + gumbel).argmax(-1, keepdim=True)
        mean, scale = means.gather(-1, chosen)[..., 0], scales.gather(-1, chosen)[..., 0].exp()
        value = mean + temperature * scale * torch.logit(uniform(mean.shape, mean.device, generator), eps=1e-7)
        return frames_of(levels_of(value.movedim(-1, 1)))


class SquaredError(Likelihood):
    """Outputs are the frames; the loss is the mean squared error.

    Not exact: ``log_prob`` is the negative squared error, a log density up to a scale and a constant that nobody
    fitted, and no bound on bits can be made of it. Whoever needs one refuses a likelihood that is not ``exact``.
    """

    exact = False

    def __init__(self, channels: int):
        super().__init__(channels)
        self.outputs = channels

    def log_prob(self, outputs: Tensor, frames: Tensor) -> Tensor:
        return -(outputs.float() - frames.float()).square()

    def loss(self, outputs: Tensor, frames: Tensor) -> Tensor:
        return F.mse_loss(outputs.float(), frames.float())

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.float()

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """The frames themselves: there is no distribution to draw from."""
        return outputs.float()
