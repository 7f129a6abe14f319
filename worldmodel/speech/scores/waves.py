"""Features of waves: log-mel spectra and mel-cepstra at 100 frames a second; augmentations that make real speech
similar to resynthesised speech, which the classifiers are not trained on; and distances of waves: SI-SDR, log-spectral
distance, and mel-cepstral distortion along the best alignment.

Frame i is the spectrum of a 25 ms window in the *middle* of the samples [160 i, 160 (i + 1)), so that four frames
correspond to a code of 640 samples, and the phone of a frame is that of its samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import librosa
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.evaluation.metrics import mean_interval
from worldmodel.speech.nn import mel as sound
from worldmodel.speech.nn.mel import FLOOR, companded, expanded

RATE = 16000  # Hz
HOP = 160  # samples between frames: 10 ms
WINDOW = 400  # samples of the Hann window: 25 ms
BANDS = 80
LOUDNESS = 0.05  # root mean square of the waves that a classifier receives
LIMIT = 100.0  # dB: the SI-SDR of equal and of unrelated waves is infinite
LSD_WINDOW, LSD_HOP = 512, 128  # samples: 32 ms and 8 ms
LSD_RANGE = 1e-7  # power, of the reference's loudest bin, below which a bin is silent: 70 dB
MEL_RANGE = 1e-6  # mel power, relative to the loudest, below which a band is silent: 60 dB
ORDER = 24  # of mel-cepstra

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


def mel_cepstrum(log_mels: Tensor, order: int = ORDER) -> Tensor:
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
