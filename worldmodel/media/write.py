"""Writing of mp4, gif and png files; each is written to a temporary name and renamed when complete."""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from worldmodel.errors import ConfigError
from worldmodel.media import draw
from worldmodel.media.compose import Labels, Strip, canvases, contact_sheet
from worldmodel.util.files import check_writable, expanded, whole
from worldmodel.util.output import VIDEO_SUFFIXES, check_suffix

GIF_SIZE = 192  # minimum size of frames in a gif


def save(
    path: str | Path,
    strips: Sequence[Strip],
    rate: float,
    labels: Labels = "arrows",
    title: str = "",
    across: int | None = None,
) -> Path:
    """Write strips by suffix: ``.mp4`` and ``.gif`` are videos of ``rate`` frames a second with ``across`` strips
    in a row, ``.png`` is a contact sheet with a ``title``. Missing folders are created. Returns the path.

    Raises :class:`ConfigError` for another suffix, unknown labels or a missing encoder.
    """
    path = check_suffix(expanded(path), VIDEO_SUFFIXES)
    check_writable(path.parent)  # ffmpeg would only report a broken pipe
    match path.suffix.lower():
        case ".mp4":
            save_mp4(path, canvases(strips, labels, across=across), rate)
        case ".gif":
            save_gif(path, list(canvases(strips, labels, GIF_SIZE, across)), rate, palette(strips))
        case _:
            save_png(path, contact_sheet(strips, labels, title=title))
    return path


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Write an image, (H, W, 3) or (H, W) uint8."""
    with whole(Path(path)) as part:
        Image.fromarray(picture).save(part)


def save_gif(path: str | Path, frames: Sequence[np.ndarray], rate: float, colours: Image.Image) -> None:
    """Write an endless gif. ``frames`` (H, W, 3) uint8, ``colours`` the palette image of :func:`palette`.

    All frames share the palette without dithering, so that unchanged regions compress well.
    """
    indexed = [Image.fromarray(frame).quantize(palette=colours, dither=Image.Dither.NONE) for frame in frames]
    # Gifs count time in 1/100 s, and viewers slow down durations below 2/100 s.
    duration = max(20, 10 * round(100 / rate))
    with whole(Path(path)) as part:
        indexed[0].save(part, save_all=True, append_images=indexed[1:], duration=duration, loop=0, optimize=False)


def palette(strips: Sequence[Strip]) -> Image.Image:
    """256 colours: those of the layout, and others that are selected from the frames by median cut.

    Half of the latter are selected from all pixels, half from the distinct colours, so that small objects keep theirs.
    """
    fixed = [draw.PAPER, draw.RAIL, draw.DIM, draw.INK, draw.SEEN, draw.DREAMT]
    blends = [  # smooth edges of text
        tuple(round(0.5 * (a + b)) for a, b in zip(draw.PAPER, ink, strict=True)) for ink in fixed[2:]
    ]
    pixels = np.concatenate([strip.frames[:: max(1, len(strip) // 32)].reshape(-1, 3) for strip in strips])
    shades = np.unique(pixels >> 3, axis=0) << 3 | 4
    reserved = [*fixed, *blends]
    half = (256 - len(reserved)) // 2
    selected = [*_median_cut(pixels, half), *_median_cut(shades, 256 - len(reserved) - half)]
    colours = [*(channel for colour in reserved for channel in colour), *selected]
    result = Image.new("P", (1, 1))
    result.putpalette(colours)
    return result


def _median_cut(pixels: np.ndarray, count: int) -> list[int]:
    """Up to ``count`` colours of pixels (N, 3) uint8 by median cut, channel by channel."""
    chosen = Image.fromarray(pixels[None]).quantize(count, Image.Quantize.MEDIANCUT).getpalette() or []
    return chosen[: 3 * count]


def save_mp4(path: str | Path, frames: Iterator[np.ndarray], rate: float) -> None:
    """Write an mp4 (H.264) frame by frame. ``frames`` (H, W, 3) uint8, H and W even.

    Raises :class:`ConfigError` when the encoder is missing or fails.
    """
    from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter  # slow to import, and only needed here

    path = Path(path)
    first = next(frames)
    height, width = first.shape[:2]
    remedy = ".gif and .png need no encoder"
    with whole(path) as part:
        try:
            quality = ["-crf", "18", "-movflags", "+faststart"]
            # ffmpeg would take "a:" in front of a relative path for a protocol.
            writer = FFMPEG_VideoWriter(
                str(part.absolute()), (width, height), rate, codec="libx264", ffmpeg_params=quality
            )
        except FileNotFoundError as error:
            raise ConfigError(f"cannot write {path}: no ffmpeg ({error.filename}); {remedy}") from error
        process = writer.proc
        try:
            with writer:
                writer.write_frame(first)
                for frame in frames:
                    writer.write_frame(frame)
        except OSError as error:  # an error of ffmpeg, or a broken pipe to it
            raise _failed(path, str(error), remedy) from error
        if process.returncode != 0:
            raise _failed(path, f"ffmpeg failed (code {process.returncode})", remedy)


def _failed(path: Path, reason: str, remedy: str) -> Exception:
    """The error of a video that was not written; ffmpeg does not report a full disk."""
    if shutil.disk_usage(path.parent).free < 2**16:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return ConfigError(f"cannot write {path}: {reason}; {remedy}")
