"""Features of waves for the scores: log-mel spectra and mel-cepstra at 100 frames a second.

Frame i is the spectrum of a 25 ms window in the *middle* of the samples [160 i, 160 (i + 1)), so that four frames
correspond to a code of 640 samples, and the phone of a frame is that of its samples.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worldmodel.speech.nn import mel as sound

RATE = 16000  # Hz
HOP = 160  # samples between frames: 10 ms
WINDOW = 400  # samples of the Hann window: 25 ms
FFT = 512
BANDS = 80
FLOOR = sound.FLOOR

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


def mel_power(waves: Tensor, bands: int = BANDS) -> Tensor:
    """(..., n) float32 → (..., n // 160, bands): power |STFT|² under each mel filter."""
    return sound.mel_power(waves, bands, HOP, WINDOW, FFT, RATE)


def log_mel(wave: Wave, bands: int = BANDS, floor: float = FLOOR) -> Tensor:
    """(n,) → (n // 160, bands) float32: natural logarithm of mel *power*, of at least ``floor``."""
    return mel_power(as_wave(wave), bands).clamp(min=floor).log()


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
