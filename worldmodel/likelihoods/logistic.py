"""A mixture of discretised logistic distributions over the 256 values of each sub-pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.likelihoods.base import HALF, NUM_VALUES, Likelihood, frames_of, uniform, values_of
from worldmodel.util.ranges import Count


class LogisticMixture(Likelihood):
    """A mixture of logistic densities for each sub-pixel; a value has the mass of its bin, the edge bins are open.

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

    def __init__(self, channels: int, components: Count = 10):
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
    def sample(self, outputs: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        weights, means, scales = self._parameters_of(outputs)
        gumbel = -torch.log(-torch.log(uniform(weights.shape, weights.device, generator).clamp(1e-20, 1 - 1e-7)))
        chosen = (weights / temperature + gumbel).argmax(-1, keepdim=True)
        mean, scale = means.gather(-1, chosen)[..., 0], scales.gather(-1, chosen)[..., 0].exp()
        value = mean + temperature * scale * torch.logit(uniform(mean.shape, mean.device, generator), eps=1e-7)
        return frames_of(values_of(value.movedim(-1, 1)))
