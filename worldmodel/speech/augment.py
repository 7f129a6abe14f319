"""What a tokenizer is shown instead of the examples themselves, so that few are not learnt by heart."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.speech.nn.mel import companded, expanded
from worldmodel.training.augment import Augmentation
from worldmodel.types import to_float, to_uint8
from worldmodel.util.ranges import NonNegative, Share, ShareBelowOne


class VariedSounds(Augmentation):
    """Sounds faster or slower, upside down, louder or softer, and one laid over another.

    Frames are (B, 1, n) uint8, companded as all sound is.

    For a codec, which has to give back whatever it is given, and would learn minutes of speech by heart. The gains and
    the mixtures are those of Défossez et al., *EnCodec*, 2022, section 4.2. It is not for decoders that are told who
    speaks.

    Args:
        share: of the sounds that get another one of the batch over them, in [0, 1].
        gain: deviation of the loudness of each, in dB, ≥ 0.
        speed: each is played faster or slower by up to this share, in [0, 1), so that its pitch and timbre change.
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
            waves = played(waves, speeds.to(frames.device))
        waves = waves + waves[other.to(frames.device)] * mixed.to(frames.device)[:, None, None]
        return to_uint8(companded(waves))


TAPS = 16


def played(waves: Tensor, speeds: Tensor) -> Tensor:
    """Waves (B, 1, n) read at ``speeds`` (B,) by a windowed sinc; what lies behind their end is their mirror image.

    Faster than 1, what would be above half the rate is not taken away first: at a tenth faster it is little of speech.
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
    taken = waves[:, 0].gather(1, at.flatten(1)).view_as(weights)
    return (taken * weights).sum(-1)[:, None]
