"""What a tokenizer is shown instead of the examples themselves, so that few are not learnt by heart."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.nn.sound import companded, expanded
from worldmodel.types import to_float, to_uint8


class Augmentation(nn.Module, abc.ABC):
    """Examples of a batch → what is shown in their place. It has no parameters."""

    @abc.abstractmethod
    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, C, *size) float in [-1, 1] → the same shape, on the levels of bytes as frames are."""


class MixedSounds(Augmentation):
    """Sounds louder or softer, upside down, and one laid over another. Frames are (B, 1, n), companded as all sound is.

    For a codec, which has to give back whatever it is given: minutes of speech are few, their sums are many. The gains
    and the mixtures are those of Défossez et al., *EnCodec*, 2022, section 4.2. It is not for decoders that are told
    who speaks.

    Args:
        share: of the sounds that get another one of the batch over them, in [0, 1].
        gain: deviation of the loudness of each, in dB, ≥ 0.
    """

    def __init__(self, share: float = 0.5, gain: float = 6.0):
        super().__init__()
        if not (0 <= share <= 1 and gain >= 0):
            raise ConfigError(f"share is {share} and gain {gain}; the share is in [0, 1], the gain at least 0 dB")
        self.share, self.gain = share, gain

    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        count = len(frames)
        device = frames.device if generator is None else generator.device
        decibels = self.gain * torch.randn(count, generator=generator, device=device)
        signs = torch.randint(2, (count,), generator=generator, device=device) * 2 - 1
        other = torch.randint(count, (count,), generator=generator, device=device)
        mixed = torch.rand(count, generator=generator, device=device) < self.share
        factors = (signs * 10 ** (decibels / 20)).to(frames.device)[:, None, None]
        waves = expanded(frames) * factors
        waves = waves + waves[other.to(frames.device)] * mixed.to(frames.device)[:, None, None]
        return to_float(to_uint8(companded(waves)))
