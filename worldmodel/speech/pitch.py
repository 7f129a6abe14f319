"""The pitch of a voice over time, estimated by YIN.

A. de Cheveigné and H. Kawahara, YIN, a fundamental frequency estimator for speech and music, Journal of the Acoustical
Society of America 111, 2002, steps 1 to 5. Instead of step 6, octave errors are corrected towards the median of
neighbouring estimates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

HOP = 0.01  # seconds between estimates
WIDTH = 0.025  # seconds, the window that is compared with a later one
LOW, HIGH = 60.0, 450.0  # hertz; voices of adults
THRESHOLD = 0.25  # aperiodicity below which a local minimum is a period
CUTOFF = 60.0  # hertz, below which there is noise of rooms and microphones
RANGE = 35.0  # dB below the loudest frame, below which no frame is voiced
OCTAVE_ERROR = 0.6  # distance in octaves from the median of neighbours that is an octave error
NEIGHBOURS, MIN_RUN = 15, 3  # estimates; voiced runs shorter than MIN_RUN are dropped
CHUNK = 2048  # estimates at a time, to limit memory


class Pitch(NamedTuple):
    """F0 at N times, :data:`HOP` apart."""

    times: np.ndarray  # (N,) seconds
    hertz: np.ndarray  # (N,) float64; NaN where unvoiced


def pitch(wave: np.ndarray, rate: int, low: float = LOW, high: float = HIGH, threshold: float = THRESHOLD) -> Pitch:
    """F0 of a wave (n,) of ``rate`` samples a second, between ``low`` and ``high`` hertz, every 10 ms.

    A time is voiced where the normalised difference has a minimum below ``threshold`` and the sound is loud enough.
    """
    longest, shortest, width = int(np.ceil(rate / low)) + 1, max(2, int(rate / high)), round(WIDTH * rate)
    hop, span = round(HOP * rate), width + longest
    count = 1 + len(wave) // hop
    padded = np.pad(high_pass(wave, rate), (span // 2, span))
    frames = np.lib.stride_tricks.sliding_window_view(padded, span)[::hop][:count]  # (N, span), centred at their times
    hertz, energy = np.empty(count), np.empty(count)
    for at in range(0, count, CHUNK):
        rows = frames[at : at + CHUNK]
        normal, energy[at : at + CHUNK] = _differences(rows - rows.mean(1, keepdims=True), width, longest)
        hertz[at : at + CHUNK] = rate / _periods(normal, shortest, threshold)
    hertz[(hertz > high) | (energy <= energy.max() * 10 ** (-RANGE / 10))] = np.nan
    return Pitch(np.arange(count) * hop / rate, _without_octave_errors(hertz))


def mean_log_f0(tracks: Sequence[np.ndarray]) -> float:
    """Mean of ln F0 over all voiced times of tracks (N,) in hertz. Raises ``ValueError`` when none is voiced."""
    hertz = np.concatenate(tracks)
    if not np.isfinite(hertz).any():
        raise ValueError("no frame is voiced, so there is no F0")
    return float(np.log(hertz[np.isfinite(hertz)]).mean())


def log_f0_correlation(track: np.ndarray, other: np.ndarray) -> float | None:
    """Pearson's correlation of ln F0 of two tracks (N,) in hertz where both are voiced, which compares
    intonation independent of the register. None where it is undefined."""
    both = np.isfinite(track) & np.isfinite(other)
    a, b = np.log(track[both]), np.log(other[both])
    spread = a.std() * b.std() if both.sum() > 1 else 0.0
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread else None


def high_pass(wave: np.ndarray, rate: int, below: float = CUTOFF) -> np.ndarray:
    """A wave (n,) after a zero-phase high-pass filter of 24 dB an octave: (n,) float64."""
    size = len(wave) + -len(wave) % 4096  # a length with small factors, for the FFT
    hertz = np.fft.rfftfreq(size, 1 / rate)
    gain = 1 / np.sqrt(1 + (below / np.maximum(hertz, 1e-3)) ** 8)
    centred = wave - wave.mean(dtype=np.float64)  # avoids a step at the ends
    return np.fft.irfft(np.fft.rfft(centred, size) * gain, size)[: len(wave)]


def _differences(frames: np.ndarray, width: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps 2 and 3 of frames (N, width + longest): the difference function of lags 0 … longest over its own mean up to
    that lag, (N, longest + 1); and the energy of each frame (N,)."""
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
    """Steps 4 and 5: the first minimum below the threshold, interpolated; (N,), NaN without one."""
    inner = normal[:, shortest:-1]
    dip = (inner < threshold) & (inner <= normal[:, shortest - 1 : -2]) & (inner <= normal[:, shortest + 1 :])
    lag = shortest + dip.argmax(1)
    rows = np.arange(len(normal))
    before, at, after = normal[rows, lag - 1], normal[rows, lag], normal[rows, lag + 1]
    bend = before - 2 * at + after
    shift = np.divide(0.5 * (before - after), bend, out=np.zeros_like(bend), where=bend > 1e-12)
    return np.where(dip.any(1), lag + np.clip(shift, -0.5, 0.5), np.nan)


def _without_octave_errors(hertz: np.ndarray) -> np.ndarray:
    """Correct estimates (N,) that are whole octaves from the median of their neighbours; drop other outliers and short
    runs."""
    octaves = np.log2(hertz)
    padded = np.pad(octaves, NEIGHBOURS // 2, constant_values=np.nan)
    near = np.lib.stride_tricks.sliding_window_view(padded, NEIGHBOURS)
    known = np.isfinite(near).any(1)
    median = np.full(len(octaves), np.nan)
    median[known] = np.nanmedian(near[known], 1)
    off = octaves - median
    outlier = np.abs(off) > OCTAVE_ERROR
    corrected = np.where(outlier, octaves - np.round(off), octaves)
    corrected[outlier & (np.abs(corrected - median) > 0.25)] = np.nan
    corrected[~ndimage.binary_opening(np.isfinite(corrected), np.ones(MIN_RUN))] = np.nan
    return 2**corrected
