"""Two utterances of one sentence side by side: dynamic time warping, and how far their spectra are apart along it."""

from __future__ import annotations

import math

import numpy as np

from worldmodel.speech.scores.features import Wave, as_wave, mel_cepstrum, mel_power

RANGE = 1e-6  # mel power, of the loudest, below which a band is silent: 60 dB
ORDER = 24


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(S, D), (T, D) → (S, T) float64: Euclidean distances of every pair of rows."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(f"two sequences (S, D) and (T, D) are needed, got {a.shape} and {b.shape}")
    centre = a.mean(0)  # without it the difference of large squares loses the small distances
    a, b = a - centre, b - centre
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)
    return np.sqrt(np.maximum(squares, 0))


def dtw(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The path of least total distance through two sequences: (S, D), (T, D) float → (L, 2) int64 rows (i, j).

    Sakoe and Chiba 1978 without slope constraint or band: from (0, 0) to (S - 1, T - 1) by the steps (1, 1), (1, 0) and
    (0, 1), every point counting once; of equals, the diagonal step. Worked on along anti-diagonals, whose points do not
    depend on each other: 5 s against 5 s at 100 frames a second take some 20 ms.
    """
    cost = distances(a, b)
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)  # with a border of infinities before the first row and column
    total[0, 0] = 0
    # In a flat array an anti-diagonal is a slice: down a row and back a column is `columns` elements on.
    sums, costs = total.reshape(-1), cost.reshape(-1)
    for diagonal in range(rows + columns - 1):
        first, last = max(0, diagonal - columns + 1), min(diagonal, rows - 1)
        count = last - first + 1
        start = (first + 1) * (columns + 1) + diagonal - first + 1

        def along(begin: int, step: int = columns, count: int = count) -> slice:
            return slice(begin, begin + (count - 1) * step + 1, step)

        best = np.minimum(sums[along(start - 1)], sums[along(start - columns - 1)])
        np.minimum(best, sums[along(start - columns - 2)], out=best)
        place = first * columns + diagonal - first
        step = max(1, columns - 1)
        sums[along(start)] = best + costs[along(place, step)]
    return _traced(total)


def _traced(total: np.ndarray) -> np.ndarray:
    """The path back through accumulated distances (S + 1, T + 1) with their border."""
    i, j = total.shape[0] - 1, total.shape[1] - 1
    path = []
    while i and j:
        path.append((i - 1, j - 1))
        before = (total[i - 1, j - 1], total[i - 1, j], total[i, j - 1])
        step = before.index(min(before))
        i, j = i - (step != 2), j - (step != 1)
    return np.array(path[::-1], dtype=np.int64)


def mel_cepstra(wave: Wave, order: int = ORDER) -> np.ndarray:
    """(n,) → (n // 160, order) float64: mel-cepstrum without c₀, of bands no more than 60 dB below the loudest.

    So neither the level nor, much, the hiss below the speech is seen. Raises ``ValueError`` for digital silence.
    """
    power = mel_power(as_wave(wave))
    if not float(power.max()):
        raise ValueError("a wave without sound has no spectrum to compare")
    return mel_cepstrum(power.clamp(min=RANGE * float(power.max())).log(), order)[:, 1:].double().numpy()


def mel_cepstral_distortion(a: Wave, b: Wave, order: int = ORDER, aligned: bool = False) -> float:
    """Mel-cepstral distortion in dB: the mean over a path of (10 / ln 10) √(2 Σ_{d=1…order} (c_d − c'_d)²).

    Kubichek, *Mel-cepstral distance measure for objective speech quality assessment*, 1993. c₀, the level, is left out;
    the path is that of :func:`dtw` on the same coefficients, or frame by frame where the utterances are ``aligned``
    (the longer is cut). By the scale of :func:`mel_cepstrum` it is the root mean square difference of two smoothed
    spectra in dB over the mel scale. The cepstra are cosine series of 80 log-mel bands at 100 frames a second:
    figures made of WORLD's or SPTK's spectral envelopes are on another scale, and only ones made here compare.
    """
    one, other = mel_cepstra(a, order), mel_cepstra(b, order)
    if aligned:
        count = min(len(one), len(other))
        path = np.stack([np.arange(count)] * 2, 1)
    else:
        path = dtw(one, other)
    squares = np.square(one[path[:, 0]] - other[path[:, 1]]).sum(1)
    return float(10 / math.log(10) * np.sqrt(2 * squares).mean())
