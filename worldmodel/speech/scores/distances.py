"""Distances of sounds: SI-SDR, log-spectral distance, and mel-cepstral distortion along the best alignment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import librosa
import numpy as np
import torch
from torch import Tensor

from worldmodel.evaluation.metrics import mean_interval
from worldmodel.speech.scores.features import Wave, as_wave, mel_cepstrum, mel_power

LIMIT = 100.0  # dB: the SI-SDR of equal and of unrelated waves is infinite
LSD_WINDOW, LSD_HOP = 512, 128  # samples: 32 ms and 8 ms
LSD_RANGE = 1e-7  # power, of the reference's loudest bin, below which a bin is silent: 70 dB
MEL_RANGE = 1e-6  # mel power, relative to the loudest, below which a band is silent: 60 dB
ORDER = 24  # of mel-cepstra


def _pair(reference: Wave, estimate: Wave, least: int) -> tuple[Tensor, Tensor]:
    one, other = as_wave(reference, least).double(), as_wave(estimate, least).double()
    if one.shape != other.shape:
        raise ValueError(f"waves of {len(one)} and {len(other)} samples cannot be compared sample by sample")
    return one, other


def si_sdr(reference: Wave, estimate: Wave) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, of two (n,) waves; within ±100 dB.

    Le Roux, Wisdom, Erdogan, Hershey, *SDR – half-baked or well done?*, 2019: 10 log₁₀(‖αs‖² / ‖αs − ŝ‖²) with
    α = ⟨ŝ, s⟩ / ‖s‖², after the mean of both is removed. Raises ``ValueError`` for a reference without sound.
    """
    one, other = _pair(reference, estimate, 1)
    one, other = one - one.mean(), other - other.mean()
    energy = one.square().sum()
    if not float(energy):
        raise ValueError("a reference without sound has no signal-to-distortion ratio")
    target = (other @ one) / energy * one
    signal, noise = float(target.square().sum()), float((target - other).square().sum())
    if not signal or not noise:
        return LIMIT if signal else -LIMIT
    return float(np.clip(10 * np.log10(signal / noise), -LIMIT, LIMIT))


def log_spectral_distance(reference: Wave, estimate: Wave) -> float:
    """Log-spectral distance in dB, of two (n,) waves: per frame the root mean square over bins of the difference of
    10 log₁₀ power, then the mean over frames (Gray and Markel, *Distance measures for speech processing*, 1976).

    Hann windows of 32 ms every 8 ms. Power is clamped to 70 dB below the *reference's* loudest bin, so that digital
    silence does not dominate. It depends on the loudness. Raises ``ValueError`` for a reference without sound.
    """
    waves = torch.stack(_pair(reference, estimate, LSD_WINDOW))
    window = torch.hann_window(LSD_WINDOW, dtype=waves.dtype)
    power = torch.stft(waves, LSD_WINDOW, LSD_HOP, window=window, return_complex=True).abs().square()
    floor = LSD_RANGE * float(power[0].max())
    if not floor:
        raise ValueError("a reference without sound has no spectrum to compare")
    levels = 10 * power.clamp(min=floor).log10()
    return float((levels[0] - levels[1]).square().mean(0).sqrt().mean())


def wave_scores(references: Sequence[Wave], estimates: Sequence[Wave], seed: int = 0) -> dict[str, Any]:
    """Both scores of pairs of waves: means with intervals over utterances."""
    pairs = list(zip(references, estimates, strict=True))
    sdr, distance = (np.array([score(*pair) for pair in pairs]) for score in (si_sdr, log_spectral_distance))
    return {
        "si_sdr": mean_interval(sdr, seed).to_json(),
        "log_spectral_distance": mean_interval(distance, seed).to_json(),
    }


def dtw(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dynamic time warping under the Euclidean distance: (S, D), (T, D) float → (L, 2) int64 rows (i, j) from (0, 0)
    to (S - 1, T - 1), by steps of (1, 1), (1, 0) and (0, 1)."""
    path: np.ndarray = librosa.sequence.dtw(a.T, b.T)[1][::-1]
    return path


def mel_cepstra(wave: Wave, order: int = ORDER) -> np.ndarray:
    """(n,) → (n // 160, order) float64: mel-cepstrum without c₀, with bands clamped to 60 dB below the loudest one.

    It depends little on the loudness and on noise below the speech. Raises ``ValueError`` for digital silence.
    """
    power = mel_power(as_wave(wave))
    if not float(power.max()):
        raise ValueError("a wave without sound has no spectrum to compare")
    return mel_cepstrum(power.clamp(min=MEL_RANGE * float(power.max())).log(), order)[:, 1:].double().numpy()


def mel_cepstral_distortion(a: Wave, b: Wave, order: int = ORDER) -> float:
    """Mel-cepstral distortion in dB: the mean over a path of (10 / ln 10) √(2 Σ_{d=1…order} (c_d − c'_d)²).

    Kubichek, *Mel-cepstral distance measure for objective speech quality assessment*, 1993. c₀, the loudness, is left
    out; the path is that of :func:`dtw` on the same coefficients. The cepstra are cosine series of 80 log-mel bands at
    100 frames a second; values computed from the spectral envelopes of WORLD or SPTK are not comparable.
    """
    one, other = mel_cepstra(a, order), mel_cepstra(b, order)
    path = dtw(one, other)
    squares = np.square(one[path[:, 0]] - other[path[:, 1]]).sum(1)
    return float(10 / math.log(10) * np.sqrt(2 * squares).mean())
