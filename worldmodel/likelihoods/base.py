"""The interface of likelihoods of frames, given the outputs of a decoder; and the squared error.

Frames are float in [-1, 1], on the 256 values that :func:`worldmodel.types.to_float` makes of bytes. Sub-pixels are the
channels of a pixel, or samples of sound. Likelihoods are computed in float32 whatever the precision of the decoder, so
that probabilities sum to one.
"""

import abc
from typing import NamedTuple

from torch import Generator, Tensor, nn
from torch.nn import functional as F

NUM_VALUES = 256
HALF = 1 / 255  # half the distance of two values


class LossAndFrames(NamedTuple):
    """The loss of a training batch and its expected frames."""

    loss: Tensor  # (), as :meth:`Likelihood.loss`
    frames: Tensor  # (B, C, *size) float32, without gradient, for logging and metrics


class Likelihood(nn.Module, abc.ABC):
    """p(frame | outputs) by sub-pixel. ``channels``: C of the frames."""

    keep_float32 = True
    outputs: int  # output channels of the decoder
    stride: int = 1  # of the outputs in the frame, along each axis
    exact: bool  # whether log_prob is the log-likelihood of uint8 values

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    @abc.abstractmethod
    def log_prob(self, outputs: Tensor, frames: Tensor) -> Tensor:
        """Outputs (B, outputs, *size), frames (B, C, *size) float in [-1, 1] → (B, C, *size) nats, float32."""

    @abc.abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """Outputs (B, outputs, *size) → the expected frames (B, C, *size) float32 in [-1, 1]."""

    def sample(self, outputs: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Outputs (B, outputs, *size) → frames (B, C, *size) float32 in [-1, 1], drawn from the distribution, or from
        one that a ``temperature`` > 0 below 1 makes narrower; :meth:`mean` where there is no distribution."""
        return self.mean(outputs)

    def loss_and_frames(self, outputs: Tensor, frames: Tensor) -> LossAndFrames:
        """The training loss and the expected frames; of an autoregressive likelihood, the expectation of each sub-pixel
        given the true ones before it."""
        return LossAndFrames(self.loss(outputs, frames), self.mean(outputs.detach()))

    def loss(self, outputs: Tensor, frames: Tensor) -> Tensor:
        """Mean of −log_prob over the batch and the sub-pixels, (): nats per sub-pixel where the likelihood is exact."""
        return -self.log_prob(outputs, frames).mean()

    def auxiliary_losses(self, outputs: Tensor, frames: Tensor) -> dict[str, Tensor]:
        """Further named loss terms, () each, that train the features that the likelihood is conditioned on."""
        return {}

    def _by_subpixel(self, outputs: Tensor) -> Tensor:
        """(B, C · n, *size) → (B, *size, C, n): no copy, and n adjacent in memory where outputs are channels-last."""
        return outputs.movedim(1, -1).unflatten(-1, (self.channels, -1))


def values_of(frames: Tensor) -> Tensor:
    """Frames in [-1, 1] → the nearest of the values 0 … 255, int64."""
    return frames.float().add(1).mul(127.5).round_().clamp_(0, NUM_VALUES - 1).long()


def frames_of(values: Tensor) -> Tensor:
    """Values 0 … 255 → frames in [-1, 1], float32."""
    return values.float() * (2 * HALF) - 1


class SquaredError(Likelihood):
    """Outputs are the frames; the loss is the mean squared error.

    It is not exact: ``log_prob`` is the negative squared error, a log density up to an unknown scale and constant, so
    that it gives no bound on bits.
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
