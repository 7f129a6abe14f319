"""Sound files → waves → frames: resampling, trimming, normalisation of loudness, windows of µ-law samples.

Loudness is the RMS above 60 Hz over 20 ms, every 10 ms, in dBFS (a full-scale square wave has 0). The *loud* level of
an utterance is exceeded for 0.2 s in all; the background is the 5th percentile. A time is *active* when its loudness is
above a threshold for at least 80 ms, or within 0.25 s of such a stretch, so that the burst at the end of a word is
active and an isolated click is not. The threshold is 12 dB above the background, clipped to 25 to 35 dB below loud.

Frames are µ-law companded into 256 sample values, fine near silence and coarse for loud sound (ITU-T G.711). With
f(x) = sign(x) ln(1 + µ|x|) / ln(1 + µ), µ = 255, a sample value is round((f + 1) · 255 / 2). Thus frames of sound are
uint8 like images, and :func:`worldmodel.types.to_float` returns f up to rounding. Speech has an SNR of some 37 dB.

This module is without torch, like all that read data; :func:`worldmodel.speech.nn.mel.expanded` is for tensors.
"""

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from scipy import ndimage

from worldmodel.errors import DataError
from worldmodel.speech.pitch import high_pass
from worldmodel.util.formats import unreadable

SUFFIXES = (".wav", ".flac")
WINDOW, RATE = 640, 16000  # samples of a frame, and samples a second: 25 frames a second

LOUDNESS = -23.0  # dBFS RMS of the active part
FLOOR = -60.0  # dBFS; a wave with a lower loud level is silent
RANGE, ABOVE_BACKGROUND, LEAST_RANGE = 35.0, 12.0, 25.0  # dB; see above
MARGIN = 0.05  # seconds that are kept around the active part
PEAK = 0.99  # normalisation keeps all samples below
MOST_SAMPLES = 2**48  # more stand for an unknown length
NO_LENGTH = 0x7FFFF000  # bytes; lengths from here on, of programs that write WAV to a pipe, are not true
CHUNKS = (b"LIST", b"JUNK", b"fact", b"id3 ", b"bext", b"cue ", b"smpl")  # that may follow a data chunk without samples
CONSTANT_SIZE = (1, 3, 6, 7, 0xFFFE)  # format tags of WAV with as many bytes for every sample: PCM, float, A-law, µ-law
SUPPORTED = (*CONSTANT_SIZE, 2, 0x11, 0x31, 0x40, 0x50, 0x55)  # and ADPCM (2, 0x11, 0x40), GSM 6.10, MPEG (0x50, 0x55)
BLOCK = 2**20  # samples that are read at once
MOST_HERTZ = 768_000  # higher rates are errors

HOP = 0.01  # seconds between levels, each over two hops
LOUD_HOPS, ACTIVE_HOPS, NEAR_HOPS = 20, 8, 25

MU = 255
SILENCE = 128  # the sample value nearest to silence

_SCALE = np.float32(math.log1p(MU))


def to_samples(wave: np.ndarray) -> np.ndarray:
    """Pressure in [-1, 1], any shape → the nearest sample values, uint8; louder samples are clipped."""
    wave = np.clip(wave, -1, 1)
    values = np.sign(wave) * np.log1p(MU * np.abs(wave)) / _SCALE
    return np.round((values + 1) * (MU / 2)).astype(np.uint8)


def to_wave(samples: np.ndarray) -> np.ndarray:
    """Sample values, uint8 of any shape → pressure in [-1, 1], float32."""
    values = samples.astype(np.float32) * np.float32(2 / MU) - 1
    return (np.sign(values) * np.expm1(np.abs(values) * _SCALE) / MU).astype(np.float32)


def read_sound(path: str | Path, rate: int = RATE) -> np.ndarray:
    """Read a WAV (RIFF or NIST SPHERE), FLAC or other file of libsndfile at ``rate`` samples a second: (n,) float32,
    about [-1, 1]. Channels are averaged.

    Raises :class:`DataError` for a file that is missing, empty, damaged, cut off, compressed by shorten, or not finite.
    """
    path = Path(path)
    try:
        in_header, whole = _header(path)
        with soundfile.SoundFile(path if whole is None else io.BytesIO(whole)) as file:
            own, wave = file.samplerate, _to_the_end(file)
            stated = file.frames if file.frames < MOST_SAMPLES and not file.subtype.startswith("MPEG") else 0
            missing = max(stated, in_header or 0) - len(wave)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); remove it or restore it") from error
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} {_reason(path, error)}") from error
    if missing > 0:
        raise DataError(f"{path} is cut off: {missing:,} of {missing + len(wave):,} samples are missing; restore it")
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
    """Where a wave is active (see above): (ceil(n / 10 ms),) bool, all False for a silent wave."""
    level = levels(wave, rate)
    loud = np.sort(level)[-min(LOUD_HOPS, -(-len(level) // 2))]
    if loud < FLOOR:
        return np.zeros(len(level), bool)
    background = np.percentile(level, 5)
    above = level > np.clip(background + ABOVE_BACKGROUND, loud - RANGE, loud - LEAST_RANGE)
    run = min(ACTIVE_HOPS, max(1, len(level) // 2))  # for short sounds
    long = ndimage.binary_opening(above, np.ones(run))
    return above & ndimage.binary_dilation(long, np.ones(2 * NEAR_HOPS + 1))


def trim(wave: np.ndarray, rate: int, margin: float = MARGIN) -> np.ndarray:
    """A wave (n,) from its first to its last active time, with a margin in seconds; (0,) for a silent wave."""
    on = np.flatnonzero(active(wave, rate))
    if not len(on):
        return wave[:0]
    hop = max(1, round(HOP * rate))
    return wave[max(0, on[0] * hop - round(margin * rate)) : (on[-1] + 1) * hop + round(margin * rate)]


def normalise(wave: np.ndarray, rate: int, loudness: float = LOUDNESS) -> np.ndarray:
    """Subtract the median of a wave (n,) and scale its active part to ``loudness`` dBFS RMS, or less where a peak would
    exceed :data:`PEAK`. A silent wave is returned unchanged."""
    on = active(wave, rate)
    if not on.any():
        return wave
    wave = wave - np.median(wave)  # a constant offset; the mean would depend on the speech
    now = 10 * np.log10(np.mean(10 ** (levels(wave, rate)[on] / 10)))
    gain = min(10 ** ((loudness - now) / 20), PEAK / np.abs(wave).max())
    return (wave * np.float32(gain)).astype(np.float32)


def to_frames(wave: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """A wave (n,) → frames (T, 1, window) uint8, µ-law. A last incomplete window is padded with silence if it is more
    than half full, else dropped."""
    count = len(wave) // window + (2 * (len(wave) % window) > window)
    filled = np.concatenate([wave[: count * window], np.zeros(max(0, count * window - len(wave)), np.float32)])
    return to_samples(filled).reshape(count, 1, window)


def _to_the_end(file: Any) -> np.ndarray:
    """All samples (n, channels) float32 of an open SoundFile, also of one without a known length."""
    file.seekable = lambda: False  # it would seek after each block, which needs a length
    blocks = [np.empty((0, file.channels), np.float32)]
    while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
    return np.concatenate(blocks)


def _header(path: Path) -> tuple[int | None, bytes | None]:
    """Samples per channel according to the header of a WAV or SPHERE file, or None; libsndfile ignores missing samples.
    If the length of a WAV was unknown when it was written (to a pipe), also the whole file, with its true length."""
    with path.open("rb") as file:
        head = file.read(1024)
        if head.startswith(b"NIST_1A"):
            match = re.search(rb"sample_count -i (\d+)", head)
            return (int(match[1]) if match else None), None
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return None, None
        tag, block = 0, 1
        file.seek(12)
        while len(chunk := file.read(8)) == 8:
            size = int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"data":
                start = file.tell()
                present = path.stat().st_size - start
                empty = size == 0 and (not present or file.read(4) in CHUNKS)
                if not empty and (size == 0 or NO_LENGTH <= size > present):
                    whole = bytearray(path.read_bytes())
                    whole[start - 4 : start] = present.to_bytes(4, "little")
                    return None, bytes(whole)
                return (size // block if tag in CONSTANT_SIZE else None), None
            content = file.read(min(size, 16)) if chunk[:4] == b"fmt " else b""
            if len(content) >= 14:
                tag, block = (int.from_bytes(content[at : at + 2], "little") for at in (0, 12))
                block = max(block, 1)
            file.seek(size + size % 2 - len(content), 1)
    return None, None


def _reason(path: Path, error: Exception) -> str:
    """The reason why libsndfile cannot read a file."""
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        return "is empty; remove it or restore it"
    if b"embedded-shorten" in head:
        return "is SPHERE compressed by shorten, which is not read; convert it with sph2pipe -f wav"
    message = str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(".")
    remedy = f"convert it: ffmpeg -i {path.name} {path.stem}-pcm.wav"
    tag = int.from_bytes(head[20:22], "little")
    if head[:4] == b"RIFF" and head[12:16] == b"fmt " and tag not in SUPPORTED:
        return f"is a WAV file of compression {tag:#06x}, which is not supported here; {remedy}"
    return unreadable(path, f"damaged or no sound: {message}", ("WAV", "FLAC", "Ogg", "MP3"), remedy)
