"""Scores of decoded sound: SI-SDR of the waveform and log-spectral distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.evaluation.metrics import mean_interval
from worldmodel.speech.scores.features import Wave, as_wave

LIMIT = 100.0  # dB: the SI-SDR of equal and of unrelated waves is infinite
LSD_WINDOW, LSD_HOP = 512, 128  # samples: 32 ms and 8 ms
LSD_RANGE = 1e-7  # power, of the reference's loudest bin, below which a bin is silent: 70 dB


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
    if len(references) != len(estimates) or not references:
        raise ValueError(f"{len(references)} references and {len(estimates)} estimates do not pair up")
    pairs = list(zip(references, estimates, strict=True))
    scores = {"si_sdr": si_sdr, "log_spectral_distance": log_spectral_distance}
    return {
        name: mean_interval(np.array([score(*pair) for pair in pairs]), seed).to_json()
        for name, score in scores.items()
    }
