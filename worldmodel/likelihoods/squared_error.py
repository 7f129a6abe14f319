"""A squared error: the reconstruction term of decoders that model no distribution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.likelihoods.base import Likelihood


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
