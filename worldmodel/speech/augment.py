"""Data augmentation for codecs of sound, against overfitting to small data sets."""

import torch
from torch import Tensor

from worldmodel.speech.nn.mel import companded, expanded
from worldmodel.training.base import Augmentation
from worldmodel.types import to_float, to_uint8
from worldmodel.util.ranges import NonNegative, Share, ShareBelowOne


class VariedSounds(Augmentation):
    """Random changes of speed, sign and gain of sounds, and mixtures of two sounds. Frames are (B, 1, n) uint8, µ-law.

    Gains and mixtures follow Défossez et al., *EnCodec*, 2022, section 4.2. It is not for decoders that receive the
    speaker.

    Args:
        share: of the sounds that another one of the batch is added to.
        gain: standard deviation of the gain, in dB.
        speed: maximum change of the playback speed, as a share; pitch and timbre change with it.
    """

    def __init__(self, share: Share = 0.0, gain: NonNegative = 0.0, speed: ShareBelowOne = 0.0):
        super().__init__()
        self.share, self.gain, self.speed = share, gain, speed

    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        count = len(frames)
        device = frames.device if generator is None else generator.device
        decibels = self.gain * torch.randn(count, generator=generator, device=device)
        signs = torch.randint(2, (count,), generator=generator, device=device) * 2 - 1
        other = torch.randint(count, (count,), generator=generator, device=device)
        mixed = torch.rand(count, generator=generator, device=device) < self.share
        factors = (signs * 10 ** (decibels / 20)).to(frames.device)[:, None, None]
        waves = expanded(to_float(frames)) * factors
        if self.speed:
            speeds = 1 + self.speed * (2 * torch.rand(count, generator=generator, device=device) - 1)
            waves = resampled(waves, speeds.to(frames.device))
        waves = waves + waves[other.to(frames.device)] * mixed.to(frames.device)[:, None, None]
        return to_uint8(companded(waves))


TAPS = 16


def resampled(waves: Tensor, speeds: Tensor) -> Tensor:
    """Waves (B, 1, n) resampled at ``speeds`` (B,) by a windowed sinc, continued by reflection at the end.

    There is no low-pass filter for speeds above 1: a tenth faster, speech has little energy above half the rate.
    """
    length = waves.shape[-1]
    places = torch.arange(length, device=waves.device) * speeds[:, None]  # (B, n), in samples
    first = places.floor()
    offsets = torch.arange(TAPS, device=waves.device) - (TAPS // 2 - 1)
    apart = (places - first)[..., None] - offsets  # (B, n, taps), in (−TAPS / 2, TAPS / 2]
    weights = torch.sinc(apart) * torch.cos(apart * (torch.pi / TAPS)).square()
    at = (first.long()[..., None] + offsets).abs()
    at = at % (2 * (length - 1))
    at = torch.minimum(at, 2 * (length - 1) - at)
    values = waves[:, 0].gather(1, at.flatten(1)).view_as(weights)
    return (values * weights).sum(-1)[:, None]
