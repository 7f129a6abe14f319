"""The distance of the spectra of two utterances of one sentence along their best alignment."""

from __future__ import annotations

import math

import librosa
import numpy as np

from worldmodel.speech.scores.features import Wave, as_wave, mel_cepstrum, mel_power

RANGE = 1e-6  # mel power, relative to the loudest, below which a band is silent: 60 dB
ORDER = 24


def dtw(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dynamic time warping under the Euclidean distance: (S, D), (T, D) float → (L, 2) int64 rows (i, j) from (0, 0)
    to (S - 1, T - 1), by steps of (1, 1), (1, 0) and (0, 1)."""
    centre = a.mean(0)  # avoids cancellation in the difference of squares
    a, b = a - centre, b - centre
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)
    path: np.ndarray = librosa.sequence.dtw(C=np.sqrt(np.maximum(squares, 0)))[1][::-1]
    return path


def mel_cepstra(wave: Wave, order: int = ORDER) -> np.ndarray:
    """(n,) → (n // 160, order) float64: mel-cepstrum without c₀, with bands clamped to 60 dB below the loudest one.

    It depends little on the loudness and on noise below the speech. Raises ``ValueError`` for digital silence.
    """
    power = mel_power(as_wave(wave))
    if not float(power.max()):
        raise ValueError("a wave without sound has no spectrum to compare")
    return mel_cepstrum(power.clamp(min=RANGE * float(power.max())).log(), order)[:, 1:].double().numpy()


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
