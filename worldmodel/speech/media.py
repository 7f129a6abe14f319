"""Sound that goes out: waves into files, and what is to be seen of them as a page of spectrograms and pitch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import soundfile
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from worldmodel.errors import ConfigError, DataError
from worldmodel.media.plots import COLOURS, STYLE, TEXT
from worldmodel.speech.mel import to_hertz, to_mel
from worldmodel.speech.pitch import pitch
from worldmodel.util.files import whole

SOUND_SUFFIXES = (".wav", ".flac")

HOP, WIDTH = 0.005, 0.025  # seconds between spectra, and of each
BANDS = 80
RANGE = 70.0  # dB that are shown, from the loudest of all waves down
TICKS_HERTZ = (250, 500, 1000, 2000, 4000, 8000)
PITCH_HERTZ = (60.0, 400.0)  # shown of the pitch
PITCH_TICKS = (75, 150, 300)
MOST_INCHES, INCHES_A_SECOND, LEAST_INCHES = 16.0, 2.4, 7.0


def check_sound_path(path: str | Path) -> Path:
    """The path when its suffix is one of a file of sound. Raises :class:`ConfigError`, which lists them."""
    path = Path(path)
    if path.suffix.lower() not in SOUND_SUFFIXES:
        raise ConfigError(f"cannot write {str(path)!r}; the name of a sound must end in {', '.join(SOUND_SUFFIXES)}")
    return path


def save_sound(path: str | Path, wave: np.ndarray, rate: int) -> Path:
    """Write a wave (n,) float of [-1, 1] with 16 bits a sample, by the suffix as WAV or FLAC; what is louder is
    clipped. Written whole, then renamed; missing folders are made. Returns the path.

    Raises :class:`ConfigError` for another suffix, :class:`DataError` for what is no wave.
    """
    path = check_sound_path(path)
    if wave.ndim != 1 or not len(wave) or not np.isfinite(wave).all():
        raise DataError(f"cannot write {path}: a wave is one row of at least one number; got {wave.dtype} {wave.shape}")
    samples = np.round(np.clip(wave, -1, 1) * 32767).astype(np.int16)
    kind = path.suffix[1:].upper()
    with whole(path) as part:
        try:
            soundfile.write(part, samples, rate, subtype="PCM_16", format=kind)
        except soundfile.LibsndfileError as error:
            raise OSError(f"cannot write {path}: {error.error_string}") from error
    return path


def log_mels(wave: np.ndarray, rate: int, bands: int = BANDS, hop: float = HOP) -> np.ndarray:
    """Levels in dB of ``bands`` mel bands from 0 Hz to half the rate, every ``hop`` seconds: (N, bands) float32.

    Triangles over the power of Hann windows of 25 ms; evenly spaced on the mel scale.
    """
    width, step = round(WIDTH * rate), max(1, round(hop * rate))
    padded = np.pad(wave.astype(np.float32), (width // 2, width))
    frames = np.lib.stride_tricks.sliding_window_view(padded, width)[::step][: 1 + len(wave) // step]
    size = 2 << width.bit_length()  # finer than the window, so that the lowest bands are not empty
    power = np.abs(np.fft.rfft(frames * np.hanning(width + 1)[:-1], size)) ** 2 / (width / 2) ** 2
    edges = to_hertz(np.linspace(0, to_mel(rate / 2), bands + 2))
    hertz = np.fft.rfftfreq(size, 1 / rate)[:, None]
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    levels: np.ndarray = 10 * np.log10(power @ triangles + 1e-10)
    return levels.astype(np.float32)


def spectrogram(waves: Sequence[tuple[str, np.ndarray]], rate: int, title: str = "") -> np.ndarray:
    """Labelled waves (n,) of one rate under each other as log-mel spectrograms, with their pitch below each and one
    axis of time: one picture (height, width, 3) uint8, which :func:`worldmodel.media.save_png` writes.

    All share one scale of colours, which begins at the loudest of all. Raises :class:`DataError` without a sound.
    """
    if not waves or any(wave.ndim != 1 or not len(wave) for _, wave in waves):
        raise DataError("there is no sound to show")
    mels = [log_mels(wave, rate) for _, wave in waves]
    loudest = max(float(mel.max()) for mel in mels)
    seconds = max(len(wave) for _, wave in waves) / rate
    across = float(np.clip(INCHES_A_SECOND * seconds, LEAST_INCHES, MOST_INCHES))
    with mpl.rc_context(STYLE):
        size = across, 2.35 * len(waves) + (0.75 if title else 0.4)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(hspace=0.02, h_pad=0.06))
        canvas = FigureCanvasAgg(figure)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        rows = figure.subplots(2 * len(waves), 1, sharex=True, squeeze=False, height_ratios=[3, 1.2] * len(waves))[:, 0]
        for (label, wave), mel, above, below in zip(waves, mels, rows[::2], rows[1::2], strict=True):
            _draw_levels(above, mel, rate, loudest)
            above.set_title(label)
            _draw_pitch(below, wave, rate)
        rows[-1].set_xlim(0, seconds)
        rows[-1].set_xlabel("seconds")
        rows[-1].tick_params(labelbottom=True)
        canvas.draw()
        return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _draw_levels(axes: Axes, mel: np.ndarray, rate: int, loudest: float) -> None:
    top = to_mel(rate / 2)
    extent = (-HOP / 2, (len(mel) - 0.5) * HOP, 0, top)
    axes.imshow(
        mel.T, cmap="magma", origin="lower", aspect="auto", extent=extent, vmin=loudest - RANGE, vmax=loudest,
        interpolation="nearest",
    )  # fmt: skip
    shown = [hertz for hertz in TICKS_HERTZ if hertz <= rate / 2]
    names = [f"{hertz / 1000:g}k" if hertz >= 1000 else str(hertz) for hertz in shown]
    axes.set_yticks([to_mel(hertz) for hertz in shown], names)
    axes.set_ylabel("Hz")
    axes.grid(visible=False)
    axes.set_facecolor("white")  # where a shorter wave has ended


def _draw_pitch(axes: Axes, wave: np.ndarray, rate: int) -> None:
    found = pitch(wave, rate)
    axes.plot(found.times, found.hertz, color=COLOURS[0], linewidth=1.8, solid_capstyle="round")
    axes.set_yscale("log")
    axes.set_ylim(*PITCH_HERTZ)
    axes.yaxis.set_major_locator(FixedLocator(PITCH_TICKS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda hertz, _: f"{hertz:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("F0, Hz")
    if np.isfinite(found.hertz).any():
        median = float(np.nanmedian(found.hertz))
        said = f"median {median:.0f} Hz"
    else:
        said = "no voice"
    axes.text(0.995, 0.94, said, ha="right", va="top", fontsize=8, color=TEXT, transform=axes.transAxes)
