"""Files of sound → waves → frames: read at any rate, trimmed, brought to one loudness, cut into windows of µ-law bytes.

What counts as sound is judged by levels: RMS over 20 ms, every 10 ms, of what lies above 60 Hz (rooms rumble), in dBFS
(a full square wave has 0). *Loud* is the level that an utterance has for 0.2 s in all. It is *active* where its level
lies above a threshold: 35 dB below loud, or 12 dB above the background (the level that it has 95 % of the time) where
that is higher, but never less than 25 dB below loud; and this for 80 ms at least, or within 0.25 s of such a stretch:
so the burst that ends a word is active, and a click before it is not.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import soundfile
import soxr

from worldmodel.errors import DataError
from worldmodel.speech.mulaw import to_samples
from worldmodel.speech.pitch import high_pass

SUFFIXES = (".wav", ".flac")
WINDOW, RATE = 640, 16000
"""Samples of a frame, and samples a second: 25 frames a second."""

LOUDNESS = -23.0  # dBFS RMS of the active part
FLOOR = -60.0  # dBFS; nothing louder for 0.2 s: there is no sound
RANGE, ABOVE_BACKGROUND, LEAST_RANGE = 35.0, 12.0, 25.0  # dB; see above
MARGIN = 0.05  # seconds that are kept around what is active
PEAK = 0.99  # no sample is made louder
MOST_HERTZ = 768_000  # a rate above is no rate

HOP = 0.01  # seconds between levels, each over two hops
LOUD_HOPS, ACTIVE_HOPS, NEAR_HOPS = 20, 8, 25


def read_sound(path: str | Path, rate: int = RATE) -> np.ndarray:
    """The sound of a WAV (RIFF or NIST SPHERE), FLAC or other file of libsndfile at ``rate`` samples a second: (n,)
    float32, about [-1, 1]. Channels are averaged.

    Raises :class:`DataError`, naming the file, for one that is missing, empty, damaged, cut off, compressed by
    shorten, or that holds what is no number.
    """
    path = Path(path)
    try:
        promised = _promised(path)
        with soundfile.SoundFile(path) as file:
            own, wave = file.samplerate, file.read(dtype="float32", always_2d=True)
            lacking = max(file.frames, promised or 0) - len(wave)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); remove it or restore it") from error
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} {_reason(path, error)}") from error
    if lacking > 0:
        raise DataError(f"{path} is cut off: {lacking:,} of {lacking + len(wave):,} samples lack; restore it")
    if not len(wave):
        raise DataError(f"{path} holds no sample; remove it or restore it")
    if not np.isfinite(wave).all():
        raise DataError(f"{path} holds samples that are no numbers; remove it or restore it")
    if not 0 < own <= MOST_HERTZ:
        raise DataError(f"{path} claims {own:,} samples a second; remove it or restore it")
    mono = wave.mean(1, dtype=np.float32)
    if own != rate:
        mono = soxr.resample(mono, own, rate, "HQ")
    if not len(mono):
        raise DataError(f"{path} holds no sample at {rate:,} samples a second; remove it or restore it")
    return np.ascontiguousarray(mono, np.float32)


def levels(wave: np.ndarray, rate: int) -> np.ndarray:
    """Levels of a wave (n,) above 60 Hz in dBFS: (ceil(n / 10 ms),); level i is of the 20 ms around its 10 ms."""
    hop = max(1, round(HOP * rate))
    energy = np.square(high_pass(wave, rate))
    sums = np.add.reduceat(np.concatenate([energy, np.zeros(-len(energy) % hop)]), range(0, len(energy), hop))
    sums = np.pad(sums, 1)
    means = (0.5 * sums[:-2] + sums[1:-1] + 0.5 * sums[2:]) / (2 * hop)
    return 10 * np.log10(means + 1e-12)


def active(wave: np.ndarray, rate: int) -> np.ndarray:
    """Where a wave is active (see above), one a level: (ceil(n / 10 ms),) bool. All False where there is no sound."""
    level = levels(wave, rate)
    loud = np.sort(level)[-min(LOUD_HOPS, -(-len(level) // 2))]
    if loud < FLOOR:
        return np.zeros(len(level), bool)
    background = np.percentile(level, 5)
    above = level > np.clip(background + ABOVE_BACKGROUND, loud - RANGE, loud - LEAST_RANGE)
    run = min(ACTIVE_HOPS, max(1, len(level) // 2))  # a sound may be shorter than a stretch of speech
    starts = np.flatnonzero(np.lib.stride_tricks.sliding_window_view(above, run).all(1))
    near = np.zeros(len(level), bool)
    for start in starts:
        near[max(0, start - NEAR_HOPS) : start + run + NEAR_HOPS] = True
    return above & near


def trim(wave: np.ndarray, rate: int, margin: float = MARGIN) -> np.ndarray:
    """A wave (n,) from the first to the last of what is active, and ``margin`` seconds around it; (0,) without any."""
    on = np.flatnonzero(active(wave, rate))
    if not len(on):
        return wave[:0]
    hop = max(1, round(HOP * rate))
    return wave[max(0, on[0] * hop - round(margin * rate)) : (on[-1] + 1) * hop + round(margin * rate)]


def normalise(wave: np.ndarray, rate: int, loudness: float = LOUDNESS) -> np.ndarray:
    """A wave (n,) about its median, its active part at ``loudness`` dBFS RMS, or less where a peak would pass
    :data:`PEAK`. A wave without sound comes back as it is.
    """
    on = active(wave, rate)
    if not on.any():
        return wave
    wave = wave - np.median(wave)  # an offset of the recorder; not the mean, which would move silence with the speech
    now = 10 * np.log10(np.mean(10 ** (levels(wave, rate)[on] / 10)))
    gain = min(10 ** ((loudness - now) / 20), PEAK / np.abs(wave).max())
    return (wave * np.float32(gain)).astype(np.float32)


def to_frames(wave: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """A wave (n,) → frames (T, 1, window) uint8 of µ-law. What is left behind the last whole window is filled up with
    silence where it is more than half of one, else dropped.
    """
    count = len(wave) // window + (2 * (len(wave) % window) > window)
    filled = np.concatenate([wave[: count * window], np.zeros(max(0, count * window - len(wave)), np.float32)])
    return to_samples(filled).reshape(count, 1, window)


def _promised(path: Path) -> int | None:
    """How many samples a channel a WAV file says it has; None where it does not say. Libsndfile takes what there is."""
    with path.open("rb") as file:
        head = file.read(1024)
        if head.startswith(b"NIST_1A"):
            said = re.search(rb"sample_count -i (\d+)", head)
            return int(said[1]) if said else None
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return None
        block = 1
        file.seek(12)
        while len(chunk := file.read(8)) == 8:
            size = int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"data":  # what was written into a pipe has no length, or the greatest
                return size // block if 0 < size < 0xFFFFF000 else None
            content = file.read(min(size, 16)) if chunk[:4] == b"fmt " else b""
            block = int.from_bytes(content[12:14], "little") or block
            file.seek(size + size % 2 - len(content), 1)
    return None


def _reason(path: Path, error: Exception) -> str:
    """Why libsndfile cannot read a file."""
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        return "is empty; remove it or restore it"
    if b"embedded-shorten" in head:
        return "is SPHERE compressed by shorten, which is not read; convert it with sph2pipe -f wav"
    said = str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(".")
    return f"is damaged or no sound ({said}); remove it or restore it"
