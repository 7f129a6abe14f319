"""Output of sound: wave files, a page of spectrograms and pitch, and both for speech in several voices."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import soundfile
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from worldmodel.errors import ConfigError, DataError
from worldmodel.media import save_png
from worldmodel.media.plots import COLOURS, STYLE, TEXT
from worldmodel.speech.nn.mel import mel_filters, to_mel
from worldmodel.speech.pitch import pitch
from worldmodel.speech.voice import VoiceModel
from worldmodel.util.files import whole
from worldmodel.util.output import SOUND_SUFFIXES, check_suffix, output_of

HOP, WIDTH = 0.005, 0.025  # seconds between spectra, and of each
BANDS = 80
RANGE = 70.0  # dB below the loudest value of all waves that are shown
TICKS_HERTZ = (250, 500, 1000, 2000, 4000, 8000)
PITCH_HERTZ = (60.0, 400.0)  # range of the plot
PITCH_TICKS = (75, 150, 300)
MOST_INCHES, INCHES_A_SECOND, LEAST_INCHES = 16.0, 2.4, 7.0


def save_sound(path: str | Path, wave: np.ndarray, rate: int) -> Path:
    """Write a wave (n,) float in [-1, 1] as 16-bit WAV or FLAC, depending on the suffix; louder samples are clipped.
    Folders are created. Returns the path.

    Raises :class:`ConfigError` for another suffix, :class:`DataError` for an array that is no wave.
    """
    path = check_suffix(path, SOUND_SUFFIXES)
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


def log_mels(wave: np.ndarray, rate: int) -> np.ndarray:
    """Levels in dB of :data:`BANDS` mel bands from 0 Hz to half the rate, every :data:`HOP` seconds: (N, bands)."""
    width, hop = round(WIDTH * rate), max(1, round(HOP * rate))
    size = 2 << width.bit_length()  # finer than the window, so that the lowest bands are not empty
    padded = torch.from_numpy(np.pad(wave.astype(np.float32), (0, size)))
    hann = torch.hann_window(width)
    spectrum = torch.stft(padded, size, hop, width, hann, pad_mode="constant", return_complex=True)
    power = spectrum[:, : 1 + len(wave) // hop].abs().square().numpy()
    mels = mel_filters(BANDS, size, rate).numpy().T @ power
    return np.asarray(10 * np.log10(mels.T / (width / 2) ** 2 + 1e-10))


def spectrogram(waves: Sequence[tuple[str, np.ndarray]], rate: int, title: str = "") -> np.ndarray:
    """Log-mel spectrograms of labelled waves (n,) of one rate, one below the other, each with its pitch, on a shared
    time axis and colour scale: an image (height, width, 3) uint8. Raises :class:`DataError` without a sound."""
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
        rows[-1].set(xlim=(0, seconds), xlabel="seconds")
        rows[-1].tick_params(labelbottom=True)
        canvas.draw()
        return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _draw_levels(axes: Axes, mel: np.ndarray, rate: int, loudest: float) -> None:
    mels = to_mel(np.array([rate / 2, *TICKS_HERTZ]))
    extent = (-HOP / 2, (len(mel) - 0.5) * HOP, 0, mels[0])
    axes.imshow(
        mel.T, cmap="magma", origin="lower", aspect="auto", extent=extent, vmin=loudest - RANGE, vmax=loudest,
        interpolation="nearest",
    )  # fmt: skip
    names = [f"{hertz / 1000:g}k" if hertz >= 1000 else str(hertz) for hertz in TICKS_HERTZ if hertz <= rate / 2]
    axes.set_yticks(mels[1 : 1 + len(names)], names)
    axes.grid(visible=False)
    axes.set(ylabel="Hz", facecolor="white")  # white after the end of a shorter wave


def _draw_pitch(axes: Axes, wave: np.ndarray, rate: int) -> None:
    track = pitch(wave, rate)
    axes.plot(track.times, track.hertz, color=COLOURS[0], linewidth=1.8, solid_capstyle="round")
    axes.set(yscale="log", ylim=PITCH_HERTZ, ylabel="F0, Hz")
    axes.set_yticks(PITCH_TICKS, [str(hertz) for hertz in PITCH_TICKS])
    axes.set_yticks([], minor=True)
    voiced = track.hertz[np.isfinite(track.hertz)]
    label = f"median {np.median(voiced):.0f} Hz" if len(voiced) else "no voice"
    axes.text(0.995, 0.94, label, ha="right", va="top", fontsize=8, color=TEXT, transform=axes.transAxes)


def choose_speakers(script: str | None, model: VoiceModel) -> list[str]:
    """Parse names such as ``p225,p226``; the first speaker of the run by default.

    Raises :class:`UnknownActionError` for a speaker that the run does not have, :class:`ConfigError` for an empty name.
    """
    if script is None:
        return [model.spec.action_names[0]]
    speakers = [name.strip() for name in script.split(",")]
    if not all(speakers):
        example = model.spec.action_names[0]
        raise ConfigError(f"a speaker is missing in {script!r}; write names separated by commas, such as {example!r}")
    for speaker in speakers:
        model.spec.action_index(speaker)
    return list(dict.fromkeys(speakers))


def write_voices(
    run: Path,
    model: VoiceModel,
    speakers: Sequence[str],
    speak: Callable[[str, torch.Generator], np.ndarray],
    seed: int,
    output: str | None,
    name: str,
    before: Sequence[tuple[str, np.ndarray]] = (),
) -> None:
    """Write the wave (n,) that ``speak`` returns for each speaker and a page of their spectrograms; print a report.

    ``output``: the value of ``--output``; ``before``: labelled waves at the top of the page. Raises
    :class:`ConfigError` for one file and several speakers.
    """
    place = output_of(output, run / "dreams", name, SOUND_SUFFIXES)
    if place.suffix and len(speakers) > 1:
        raise ConfigError(f"--output {output} is one file, and there are {len(speakers)} speakers; name a folder")
    print(f"run       {run}")
    shown = list(before)
    for speaker in speakers:
        started = time.perf_counter()
        wave = speak(speaker, torch.Generator(model.device).manual_seed(seed))
        seconds = time.perf_counter() - started
        path = save_sound(place.path(place.suffix or ".wav", f"-{speaker}"), wave, model.rate)
        shown.append((speaker, wave))
        length = len(wave) / model.rate
        print(f"{speaker:<10}{length:.2f} s of sound in {seconds:.1f} s: {len(wave) / seconds:,.0f} samples/s")
        print(f"written   {path}")
    page = place.path(".png")
    save_png(page, spectrogram(shown, model.rate, title=f"{run.name} · seed {seed}"))
    print(f"          {page}")
