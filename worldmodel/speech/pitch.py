"""The pitch of a voice over time, by YIN.

A. de Cheveigné and H. Kawahara, YIN, a fundamental frequency estimator for speech and music, Journal of the Acoustical
Society of America 111, 2002. Steps 1 to 5 are theirs; in place of step 6 (the best estimate nearby) octave slips are
mended against the median of their neighbours. With numpy alone: scores and pictures both read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

HOP = 0.01  # seconds between estimates
WIDTH = 0.025  # seconds that are compared with themselves, later
LOW, HIGH = 60.0, 450.0  # hertz; voices of grown-ups
THRESHOLD = 0.25  # of aperiodicity, below which a dip is a period
RUMBLE = 60.0  # hertz, below which rooms and microphones are heard, not voices
RANGE = 35.0  # dB below the loudest, under which nothing is voiced
SLIP = 0.6  # in octaves: an estimate as far from its neighbours' median is a slip
NEIGHBOURS, LONE = 15, 3  # estimates; runs shorter than LONE are no voice
CHUNK = 2048  # estimates at a time, for the memory's sake


class Pitch(NamedTuple):
    """F0 of N moments, :data:`HOP` apart."""

    times: np.ndarray  # (N,) seconds
    hertz: np.ndarray  # (N,) float64; NaN where there is no voice


def pitch(wave: np.ndarray, rate: int, low: float = LOW, high: float = HIGH, threshold: float = THRESHOLD) -> Pitch:
    """F0 of a wave (n,) of ``rate`` samples a second, between ``low`` and ``high`` hertz, every 10 ms.

    A moment is voiced where the difference to itself a period later falls below ``threshold`` of what it is on average,
    and where it is loud enough. A wave without sound has no voiced moment.
    """
    longest, shortest, width = int(np.ceil(rate / low)) + 1, max(2, int(rate / high)), round(WIDTH * rate)
    hop, span = round(HOP * rate), width + longest
    count = 1 + len(wave) // hop
    padded = np.pad(without_rumble(wave, rate), (span // 2, span))
    frames = np.lib.stride_tricks.sliding_window_view(padded, span)[::hop][:count]  # (N, span), about their moment
    hertz, energy = np.empty(count), np.empty(count)
    for at in range(0, count, CHUNK):
        rows = frames[at : at + CHUNK]
        normal, energy[at : at + CHUNK] = _differences(rows - rows.mean(1, keepdims=True), width, longest)
        hertz[at : at + CHUNK] = rate / _periods(normal, shortest, threshold)
    hertz[(hertz > high) | (energy <= energy.max() * 10 ** (-RANGE / 10))] = np.nan
    return Pitch(np.arange(count) * hop / rate, _without_slips(hertz))


def mean_log_f0(tracks: Sequence[np.ndarray]) -> float:
    """Mean of ln F0 over all voiced moments of tracks (N,) in hertz. Raises ``ValueError`` where none is voiced."""
    hertz = np.concatenate(tracks)
    if not np.isfinite(hertz).any():
        raise ValueError("no frame is voiced: there is no F0 to speak of")
    return float(np.log(hertz[np.isfinite(hertz)]).mean())


def log_f0_correlation(track: np.ndarray, other: np.ndarray) -> float | None:
    """Pearson's correlation of ln F0 of two tracks (N,) in hertz over the moments at which both are voiced: whether the
    intonation is the same, even an octave higher. None where it is not defined."""
    both = np.isfinite(track) & np.isfinite(other)
    a, b = np.log(track[both]), np.log(other[both])
    spread = a.std() * b.std() if both.sum() > 1 else 0.0
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread else None


def without_rumble(wave: np.ndarray, rate: int, below: float = RUMBLE) -> np.ndarray:
    """A wave (n,) without what lies below some hertz, 24 dB an octave and without delay: (n,) float64."""
    size = len(wave) + -len(wave) % 4096  # a length of small factors: one that is prime takes many times as long
    hertz = np.fft.rfftfreq(size, 1 / rate)
    gain = 1 / np.sqrt(1 + (below / np.maximum(hertz, 1e-3)) ** 8)
    centred = wave - wave.mean(dtype=np.float64)  # an offset would be a step at the ends
    return np.fft.irfft(np.fft.rfft(centred, size) * gain, size)[: len(wave)]


def _differences(frames: np.ndarray, width: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps 2 and 3 of frames (N, width + longest): the difference function of lags 0 … longest over its own mean up to
    that lag, (N, longest + 1); and the energy of each frame (N,).
    """
    size = 1 << (frames.shape[1] + width).bit_length()
    spectrum = np.fft.rfft(frames, size)
    product = np.fft.irfft(spectrum * np.fft.rfft(frames[:, :width], size).conj(), size)[:, : longest + 1]
    sums = np.cumsum(np.pad(frames**2, ((0, 0), (1, 0))), 1)
    energies = sums[:, width : width + longest + 1] - sums[:, : longest + 1]  # of the window a lag later
    difference = np.maximum(energies[:, :1] + energies - 2 * product, 0)
    difference[:, 0] = 0
    means = np.cumsum(difference, 1)[:, 1:] / np.arange(1, longest + 1)
    normal = np.ones_like(difference)
    np.divide(difference[:, 1:], means, out=normal[:, 1:], where=means > 1e-12)
    return normal, energies[:, 0]


def _periods(normal: np.ndarray, shortest: int, threshold: float) -> np.ndarray:
    """Steps 4 and 5: the first dip below the threshold, to a fraction of a sample; (N,), NaN without one."""
    inner = normal[:, shortest:-1]
    dip = (inner < threshold) & (inner <= normal[:, shortest - 1 : -2]) & (inner <= normal[:, shortest + 1 :])
    lag = shortest + dip.argmax(1)
    rows = np.arange(len(normal))
    before, at, after = normal[rows, lag - 1], normal[rows, lag], normal[rows, lag + 1]
    bend = before - 2 * at + after
    shift = np.divide(0.5 * (before - after), bend, out=np.zeros_like(bend), where=bend > 1e-12)
    return np.where(dip.any(1), lag + np.clip(shift, -0.5, 0.5), np.nan)


def _without_slips(hertz: np.ndarray) -> np.ndarray:
    """Estimates (N,) an octave from their neighbours' median are mended where an octave does it, and dropped where not;
    so are lone ones.
    """
    octaves = np.log2(hertz)
    near = np.lib.stride_tricks.sliding_window_view(
        np.pad(octaves, NEIGHBOURS // 2, constant_values=np.nan), NEIGHBOURS
    )
    known = np.isfinite(near).any(1)
    median = np.full(len(octaves), np.nan)
    median[known] = np.nanmedian(near[known], 1)
    off = octaves - median
    slipped = np.abs(off) > SLIP
    mended = np.where(slipped, octaves - np.round(off), octaves)
    mended[slipped & (np.abs(mended - median) > 0.25)] = np.nan
    voiced = np.concatenate([[False], np.isfinite(mended), [False]])
    edges = np.flatnonzero(voiced[1:] != voiced[:-1]).reshape(-1, 2)
    for start, end in edges[edges[:, 1] - edges[:, 0] < LONE]:
        mended[start:end] = np.nan
    return 2**mended
