"""Augmentations that make real speech similar to resynthesised speech, which the classifiers are not trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.speech.nn.mel import companded, expanded
from worldmodel.speech.scores.features import FLOOR, RATE, mel_power

LOUDNESS = 0.05  # root mean square of the waves that a classifier receives


def levelled(waves: Tensor) -> Tensor:
    """(..., n) → the same at the root mean square :data:`LOUDNESS`; digital silence stays silent."""
    return waves * (LOUDNESS / waves.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6))


def features(waves: Tensor, floor: float = FLOOR) -> Tensor:
    """(B, n) → (B, n // 160, 80): log-mels of the levelled waves, the input of both classifiers."""
    return mel_power(levelled(waves)).clamp(min=floor).log()


def _random_mask(batch: int, share: float, generator: torch.Generator) -> Tensor:
    return torch.rand(batch, 1, generator=generator) < share


def degraded(waves: Tensor, generator: torch.Generator) -> Tensor:
    """(B, n) float32 in [-1, 1] → the same with random degradations: a gain of ±10 dB, a spectral tilt, a low-pass
    between 3.4 and 8 kHz, white noise 15 to 45 dB below the speech, and 8-bit µ-law."""
    batch, count = waves.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, 1, generator=generator)

    waves = levelled(waves) * 10 ** (uniform(-10, 10) / 20)
    spectrum = torch.fft.rfft(waves)
    frequencies = torch.linspace(0, RATE / 2, spectrum.shape[-1])
    tilt = uniform(-3, 3) * (frequencies / 1000).clamp(min=0.1).log2()  # dB: within ±3 an octave
    cut = torch.where(_random_mask(batch, 0.3, generator), uniform(3400, 8000), RATE / 2)
    response = 10 ** (tilt.clamp(-10, 10) / 20) * torch.sigmoid((cut + 100 - frequencies) / 50)
    waves = torch.where(_random_mask(batch, 0.7, generator), torch.fft.irfft(spectrum * response, count), waves)
    level = waves.square().mean(-1, keepdim=True).sqrt()
    noise = torch.randn(batch, count, generator=generator) * level * 10 ** (-uniform(15, 45) / 20)
    waves = waves + torch.where(_random_mask(batch, 0.7, generator), noise, 0.0)
    coarse = expanded(((companded(waves) + 1) * 127.5).round() / 127.5 - 1)
    return torch.where(_random_mask(batch, 0.5, generator), coarse, waves)


def _moving_average(rows: Tensor) -> Tensor:
    """(B, R, N) → moving averages of three values along N."""
    return torch.nn.functional.avg_pool1d(rows, 3, 1, 1, count_include_pad=False)


def blurred(log_mels: Tensor, generator: torch.Generator) -> Tensor:
    """(B, T, D) → the same, randomly averaged over 3 frames, 3 bands, or both, as coarse codes do."""
    batch = len(log_mels)
    over_time = _moving_average(log_mels.transpose(1, 2)).transpose(1, 2)
    log_mels = torch.where(_random_mask(batch, 0.3, generator)[..., None], over_time, log_mels)
    over_bands = _moving_average(log_mels)
    return torch.where(_random_mask(batch, 0.3, generator)[..., None], over_bands, log_mels)
