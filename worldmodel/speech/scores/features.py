"""Features of waves for the scores: log-mel spectra and mel-cepstra at 100 frames a second; and augmentations that make
real speech similar to resynthesised speech, which the classifiers are not trained on.

Frame i is the spectrum of a 25 ms window in the *middle* of the samples [160 i, 160 (i + 1)), so that four frames
correspond to a code of 640 samples, and the phone of a frame is that of its samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.speech.nn import mel as sound
from worldmodel.speech.nn.mel import FLOOR, companded, expanded

RATE = 16000  # Hz
HOP = 160  # samples between frames: 10 ms
WINDOW = 400  # samples of the Hann window: 25 ms
BANDS = 80
LOUDNESS = 0.05  # root mean square of the waves that a classifier receives

Wave = np.ndarray | Tensor
"""One utterance: (n,) float, 16,000 Hz mono, pressure in [-1, 1]."""


def as_wave(wave: Wave, least: int = WINDOW) -> Tensor:
    """(n,) float32 tensor of a wave. Raises ``ValueError`` for another shape or type, fewer samples than ``least``, or
    values that are not finite."""
    tensor = torch.as_tensor(wave)
    if tensor.ndim != 1 or not tensor.is_floating_point():
        raise ValueError(f"a wave is (n,) floats in [-1, 1], got {tuple(tensor.shape)} {tensor.dtype}")
    if len(tensor) < least:
        raise ValueError(f"a wave of {len(tensor)} samples is too short; at least {least} are needed")
    if not bool(tensor.isfinite().all()):
        raise ValueError("a wave has values that are not finite")
    return tensor.detach().float().cpu()


def as_integers(
    values: Sequence[int] | np.ndarray, shape: tuple[int, ...], least: int, end: float, what: str
) -> Tensor:
    """int64 tensor of values. Raises ``ValueError`` unless they are integers of a shape in [least, end)."""
    array = np.asarray(values)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise ValueError(f"{what} are {shape} integers, got {array.shape} {array.dtype}")
    if array.size and not least <= array.min() <= array.max() < end:
        raise ValueError(f"{what} are {least} to {end - 1}, got {array.min()} to {array.max()}")
    return torch.from_numpy(array.astype(np.int64))


def mel_power(waves: Tensor) -> Tensor:
    """(..., n) float32 → (..., n // 160, 80): power |STFT|² under each mel filter."""
    return sound.mel_power(waves, BANDS, HOP, WINDOW, RATE)


def log_mel(wave: Wave, floor: float = FLOOR) -> Tensor:
    """(n,) → (n // 160, 80) float32: natural logarithm of mel *power*, of at least ``floor``."""
    return mel_power(as_wave(wave)).clamp(min=floor).log()


def mel_cepstrum(log_mels: Tensor, order: int = 24) -> Tensor:
    """(..., bands) natural log of power → (..., order + 1) float: coefficients of its cosine series, c₀ first.

    A DCT-II, scaled so that ln *amplitude* of band k is Σ_d c_d cos(π d (k + ½) / bands), to the order kept: the scale
    of the mel-cepstra in speech synthesis, and up to constant factors the MFCCs of speech recognition.
    Raises ``ValueError`` for an order that the bands do not have.
    """
    bands = log_mels.shape[-1]
    if not 0 <= order < bands:
        raise ValueError(f"{bands} bands have a cepstrum of an order from 0 to {bands - 1}, got {order}")
    # In float64, since the angles reach π · bands, where float32 is wrong in the fifth decimal.
    place = (torch.arange(bands, device=log_mels.device, dtype=torch.float64) + 0.5) * torch.pi / bands
    basis = torch.cos(place[:, None] * torch.arange(order + 1, device=log_mels.device)) / bands
    basis[:, 0] /= 2
    return log_mels @ basis.to(log_mels.dtype)


def normalised(features: Tensor, variance: bool = True, least: float = 1e-3) -> Tensor:
    """(T, D) → (T, D) with the mean of each dimension over the utterance subtracted, divided by its deviation.

    Subtracting the mean of log spectra removes the response of microphone and room. ``least``: smallest divisor.
    """
    centred = features - features.mean(0)
    return centred / centred.square().mean(0).sqrt().clamp(min=least) if variance else centred


def pooled(features: Tensor, frames: int = 4) -> Tensor:
    """(T, D) → (T // frames, D): means of ``frames`` consecutive frames; four are 40 ms, one code of 640 samples."""
    count = len(features) // frames
    return features[: count * frames].reshape(count, frames, *features.shape[1:]).mean(1)


def levelled(waves: Tensor) -> Tensor:
    """(..., n) → the same at the root mean square :data:`LOUDNESS`; digital silence stays silent."""
    return waves * (LOUDNESS / waves.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6))


def levelled_log_mels(waves: Tensor, floor: float = FLOOR) -> Tensor:
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


def blurred(log_mels: Tensor, generator: torch.Generator) -> Tensor:
    """(B, T, D) → the same, randomly averaged over 3 frames, 3 bands, or both, as coarse codes do."""
    for _ in ("frames", "bands"):  # each is the last axis once, as the rows are transposed twice
        smooth = F.avg_pool1d(log_mels.mT, 3, 1, 1, count_include_pad=False)
        log_mels = torch.where(_random_mask(len(log_mels), 0.3, generator)[..., None], smooth, log_mels.mT)
    return log_mels


def degraded_log_mels(waves: Tensor, generator: torch.Generator, floor: float = FLOOR) -> Tensor:
    """(B, n) → (B, n // 160, 80): what a classifier is trained on."""
    return blurred(levelled_log_mels(degraded(waves, generator), floor), generator)
