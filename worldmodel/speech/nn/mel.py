"""µ-law for tensors, mel spectra, and an encoder whose input are mel spectra."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.nn.convnets import CONV, Encoder, ResidualBlock, check_strides, strided
from worldmodel.speech.sound import MU
from worldmodel.util.ranges import Count, Counts, ShareBelowOne, Whole

FLOOR = 1e-6
"""Mel power below which a band counts as silent. Rounding to 16 bits has 1e-8 per bin, speech about 1."""


def to_mel(hertz: np.ndarray) -> np.ndarray:
    """The mel scale of O'Shaughnessy (1987), as in HTK."""
    return np.asarray(2595 * np.log10(1 + hertz / 700))


def companded(wave: Tensor) -> Tensor:
    """Pressure in [-1, 1] → µ-law values in [-1, 1] of the same shape; louder samples are clipped."""
    wave = wave.clamp(-1, 1)
    return wave.sign() * (MU * wave.abs()).log1p() / math.log1p(MU)


def expanded(values: Tensor) -> Tensor:
    """Inverse of :func:`companded`: µ-law values in [-1, 1], as in frames of sound, → pressure in [-1, 1]."""
    return values.sign() * (values.abs() * math.log1p(MU)).expm1() / MU


@functools.cache
@torch.inference_mode(False)  # the cached tensor is also used with gradients
def mel_filters(bands: int, fft: int, rate: int) -> Tensor:
    """(fft // 2 + 1, bands) triangles of height 1, equally spaced from 0 Hz to half the rate on the mel scale.

    The triangles are symmetric on the mel scale. Raises ``ValueError`` when a band lies between two bins and would
    always be silent.
    """
    mels = torch.from_numpy(to_mel(np.linspace(0, rate / 2, fft // 2 + 1)))
    width = mels[-1] / (bands + 1)
    centres = width * torch.arange(1, bands + 1)
    filters = (1 - (mels[:, None] - centres).abs() / width).clamp(min=0)
    if bool((filters.sum(0) == 0).any()):
        raise ValueError(f"{bands} bands are too narrow for a spectrum of {fft // 2 + 1} bins")
    return filters.float()


def size_of(window: int) -> int:
    """Samples of the transform of a window: the next power of two."""
    return 1 << (window - 1).bit_length()


def mel_power(waves: Tensor, bands: int, hop: int, window: int, rate: int) -> Tensor:
    """Pressure (..., n) float32 → (..., n // hop, bands): power |STFT|² under each mel filter.

    Frame i is the spectrum of a Hann window in the *middle* of the samples [hop i, hop (i + 1)).
    """
    fft = size_of(window)
    margin = (fft - hop) // 2
    padded = F.pad(waves.reshape(-1, waves.shape[-1]), (margin, margin), mode="reflect")
    hann = torch.hann_window(window, device=waves.device)
    spectrum = torch.stft(padded, fft, hop, window, hann, center=False, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    mels = power.transpose(1, 2) @ mel_filters(bands, fft, rate).to(waves.device)
    return mels[:, : waves.shape[-1] // hop].reshape(*waves.shape[:-1], -1, bands)


def log_mels(waves: Tensor, bands: int, hop: int, window: int, rate: int) -> Tensor:
    """Pressure (..., n) → (..., n // hop, bands): log power, scaled to about N(0, 1) for speech."""
    with torch.autocast(waves.device.type, enabled=False):
        power = mel_power(waves.float(), bands, hop, window, rate)
        return 0.25 * (power.clamp(min=FLOOR).log() + 4)


def of_log_mels(values: Tensor) -> Tensor:
    """Inverse of the scaling in :func:`log_mels`: values → mel power."""
    return (4 * values - 4).exp()


def stretched(mels: Tensor, factors: Tensor) -> Tensor:
    """Spectra (B, M, bands) interpolated linearly at band · factor, factors (B,); the last band is repeated."""
    count = mels.shape[-1]
    places = (torch.arange(count, device=mels.device) * factors[:, None]).clamp(max=count - 1)  # (B, bands)
    low = places.long().clamp(max=count - 2)
    share = (places - low)[:, None]
    below, above = (mels.gather(2, at[:, None].expand(-1, mels.shape[1], -1)) for at in (low, low + 1))
    return below + share * (above - below)


class MelEncoder(Encoder):
    """Frames of sound (B, 1, n) → log-mel spectra → strided convolutions: (B, widths[-1], n / factor).

    Mel spectra discard the phase, which an encoder of the wave does not learn to ignore from minutes of speech
    (Chorowski et al., *Unsupervised speech representation learning using WaveNet autoencoders*, 2019, use them, too).

    Args:
        rank, channels: 1. widths: channels of each convolution. blocks: residual blocks after the convolutions.
        strides: of each convolution, whose kernel is that of :func:`~worldmodel.nn.convnets.strided`.
        bands, hop, window: of the spectra; samples, at ``rate`` a second. factor = hop · the product of the strides.
        subtract_mean: subtract the mean of each band over the signal. This removes the microphone, the room and part of
            the voice. In training the mean is that of a window, which approximates that of the utterance.
        warp: maximum share by which spectra are stretched along the mel scale in training, like a longer or shorter
            vocal tract (Jaitly and Hinton, *Vocal tract length perturbation*, 2013). The decoder, which receives the
            speaker, reconstructs the original spectra, so that the codes contain less of the voice.
    """

    def __init__(
        self,
        rank: int,
        channels: int,
        widths: Counts,
        blocks: Whole,
        strides: Counts = (2, 2),
        bands: Count = 80,
        hop: Count = 160,
        window: Count = 400,
        rate: Count = 16_000,
        subtract_mean: bool = False,
        warp: ShareBelowOne = 0.0,
    ):
        super().__init__()
        if (rank, channels) != (1, 1):
            raise ConfigError("a MelEncoder is for sound of one channel")
        check_strides(widths, strides)
        self.factor = hop * math.prod(strides)
        self.spectra = {"bands": bands, "hop": hop, "window": window, "rate": rate}
        self.subtract_mean, self.warp = subtract_mean, warp
        self.down = nn.ModuleList(
            CONV[1](inputs, width, *strided(stride))
            for inputs, width, stride in zip([bands, *widths[:-1]], widths, strides, strict=True)
        )
        self.blocks = nn.ModuleList(ResidualBlock(1, widths[-1], widths[-1]) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        mels = log_mels(expanded(x[:, 0].float()), **self.spectra)
        if self.subtract_mean:
            mels = mels - mels.mean(1, keepdim=True)
        if self.training and self.warp:
            mels = stretched(mels, 1 + self.warp * (2 * torch.rand(len(mels), device=mels.device) - 1))
        x = mels.movedim(1, -1).to(x.dtype)
        for index, conv in enumerate(self.down):
            x = conv(x if index == 0 else F.relu(x))
        for block in self.blocks:
            x = block(x)
        return F.relu(x)
