"""Strips of frames, and their layout: the canvases of a video, a contact sheet of all steps, rows of images."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from worldmodel.errors import ConfigError, DataError
from worldmodel.media.draw import DIM, DREAMT, INK, PAPER, RAIL, SEEN, Colour, icon, text_width, write

Labels = Literal["arrows", "names", "none"]

EDGE = 3  # coloured line around a frame of the video; 2 on the sheet
GAP = 12
CAPTION, BAR, TIMELINE = 24, 34, 4  # heights in pixels: above a frame, below it, at the bottom
ACROSS = 4  # maximum number of strips side by side in a video
SHEET_CELLS = 120  # maximum number of frames on a contact sheet; longer dreams are subsampled
SHEET_COLUMNS = 10


@dataclasses.dataclass(frozen=True)
class Strip:
    """Frames of one source: the truth, a reconstruction or a dream.

    ``frames`` is an array or a tensor, shown as :func:`colours` says. Raises :class:`DataError` for other shapes.
    """

    frames: np.ndarray  # (T, C, H, W) uint8; stored as (T, H, W, 3)
    caption: str = ""
    actions: tuple[str | None, ...] = ()  # name of the action that led to frame t, None if unknown
    seen: int = 0  # number of leading seen frames
    dreamt: bool = False  # whether the frames after the seen ones are dreamt

    def __post_init__(self) -> None:
        object.__setattr__(self, "frames", pictures(self.frames))
        object.__setattr__(self, "actions", tuple(self.actions) or (None,) * len(self.frames))
        if len(self.actions) != len(self.frames):
            raise DataError(f"{len(self.actions)} actions for {len(self.frames)} frames of {self.caption or 'a strip'}")

    def __len__(self) -> int:
        return len(self.frames)


def pictures(frames: np.ndarray | Tensor) -> np.ndarray:
    """(T, C, H, W) uint8 → (T, H, W, 3) uint8. Raises :class:`DataError` for anything else."""
    array = _host(frames)
    if array.dtype != np.uint8 or array.ndim != 4 or 0 in array.shape:
        raise DataError(f"cannot show {array.dtype} {array.shape}; frames are uint8 (T, C, H, W)")
    return np.ascontiguousarray(colours(array.transpose(0, 2, 3, 1)))


def colours(frames: np.ndarray) -> np.ndarray:
    """What is shown of frames (…, H, W, C): (…, H, W, 3).

    Of a stack of frames, that is the last one: the last three channels if C is a multiple of three, else the last
    channel as grey. Four channels are red, green, blue and opacity, which is not shown.
    """
    channels = frames.shape[-1]
    if channels == 4:
        return frames[..., :3]
    return frames[..., -3:] if channels % 3 == 0 else frames[..., -1:].repeat(3, -1)


def action_names(actions: Sequence[int] | np.ndarray | Tensor, names: Sequence[str]) -> tuple[str | None, ...]:
    """Indices (T,) → names; None for ``NO_ACTION``."""
    return tuple(names[int(action)] if int(action) >= 0 else None for action in actions)


def dream_strip(seen: Any, frames: Any, actions: Sequence[str | None] = (), caption: str = "dream") -> Strip:
    """The seen frames, followed by the dream.

    ``seen`` (T0, C, H, W) and ``frames`` (H, C, H, W) uint8; ``actions`` the names of the actions that led to each of
    the T0 + H frames, None if unknown.
    """
    return Strip(np.concatenate([_host(seen), _host(frames)]), caption, tuple(actions), seen=len(seen), dreamt=True)


def triptych(truth: Any, reconstruction: Any, dream: Strip) -> list[Strip]:
    """Strips of truth, reconstruction and dream with the same actions; all include the seen frames."""
    if not len(truth) == len(reconstruction) == len(dream):
        raise DataError(f"strips of {len(truth)}, {len(reconstruction)} and {len(dream)} frames cannot be side by side")
    beside = {"truth": truth, "reconstruction": reconstruction}
    return [*(Strip(frames, name, dream.actions, seen=dream.seen) for name, frames in beside.items()), dream]


def _host(frames: Any) -> np.ndarray:
    return frames.detach().cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)


def canvases(
    strips: Sequence[Strip], labels: Labels = "arrows", size: int = 256, across: int | None = None
) -> Iterator[np.ndarray]:
    """The frames of a video: a (height, width, 3) uint8 canvas per step, of one even height and width.

    The strips are side by side, ``across`` in a row, with frames enlarged by an integer factor to at least ``size``
    pixels. Below each frame are its step (0 is the last seen frame), the action that led to it, and whether it was seen
    or dreamt; the line at the bottom shows the progress.
    """
    steps = _steps(strips, labels)
    layout = _Layout(strips, size, across)
    for t, step in enumerate(steps):
        canvas = Image.new("RGB", (layout.width, layout.height), PAPER)
        for index, strip in enumerate(strips):
            _panel(canvas, layout, index, strip, t, f"{step:+d}" if step else "0", labels)
        _timeline(canvas, layout, t, len(steps), max(strip.seen for strip in strips), any(s.dreamt for s in strips))
        yield np.asarray(canvas)


def contact_sheet(
    strips: Sequence[Strip], labels: Labels = "arrows", size: int = 96, title: str = "", columns: int = SHEET_COLUMNS
) -> np.ndarray:
    """All steps in one image (height, width, 3) uint8: time runs to the right and then down, with a row for each strip.

    Above each step are its number (0 is the last seen frame) and the action that led to it. If there are more than
    :data:`SHEET_CELLS` frames, every second, third, … step is shown, including step 0.
    """
    steps = _steps(strips, labels)
    stride = math.ceil(len(steps) / max(columns, SHEET_CELLS // len(strips)))
    shown = [t for t, step in enumerate(steps) if step % stride == 0]
    columns = min(columns, len(shown))
    scale, edge, gap, line = _scale(strips, size), 2, 6, 22
    height, width = (n * scale + 2 * edge for n in strips[0].frames.shape[1:3])
    shared = all(strip.actions == strips[0].actions for strip in strips)
    lines = [row == 0 or not shared for row in range(len(strips))]  # whether a row has labels above it
    captions = [strip.caption if len(strips) > 1 else "" for strip in strips]  # the title describes a single strip
    left = GAP + (max(text_width(caption, 13) for caption in captions) + GAP if any(captions) else 0)
    head = 30
    block = sum(lines) * line + len(strips) * (height + gap) + gap
    blocks = math.ceil(len(shown) / columns)
    sheet_width = max(left + columns * (width + gap) - gap + GAP, text_width("seen  dreamt", 13) + 90)
    canvas = Image.new("RGB", (sheet_width, head + blocks * block + GAP - 2 * gap), PAPER)
    legend = _legend(canvas, strips, sheet_width - GAP)
    write(canvas, (GAP, head / 2 + 1), title, 14, INK, "lm", legend - 2 * GAP)
    for place, t in enumerate(shown):
        x = left + (place % columns) * (width + gap)
        y = head + (place // columns) * block
        for row, strip in enumerate(strips):
            if lines[row]:
                write(canvas, (x + 2, y + line / 2), str(steps[t]), 12, DIM, "lm", width)
                _action(canvas, strip.actions[t], labels, (x + width / 2, y + line / 2), 15, width - 52)
                y += line
            _picture(canvas, (x, y), strip, t, scale, edge)
            if place % columns == 0:
                write(canvas, (GAP, y + height / 2), captions[row], 13, INK, "lm", left)
            y += height + gap
    return np.asarray(canvas)


def gallery(rows: Sequence[tuple[str, Tensor]], size: int = 96, title: str = "") -> np.ndarray:
    """Rows of (label, images (n, C, H, W) uint8) → one image (height, width, 3) uint8.

    Images are enlarged by an integer factor to at least ``size`` pixels. Raises :class:`DataError` without images.
    """
    if not rows or not all(len(images) for _, images in rows):
        raise DataError("there is no picture to show")
    scale = max(1, math.ceil(size / max(max(images.shape[-2:]) for _, images in rows)))
    gap, letters = 6, 13
    widest = max(text_width(label, letters) for label, _ in rows)
    left = gap + (widest + 2 * gap if widest else 0)
    head = 28 if title else gap
    heights = [images.shape[-2] * scale for _, images in rows]
    across = max(len(images) * (images.shape[-1] * scale + gap) for _, images in rows)
    canvas = Image.new("RGB", (left + across, head + sum(heights) + gap * len(rows)), PAPER)
    write(canvas, (gap, head / 2), title, letters + 1, INK, "lm", left + across - 2 * gap)
    y = head
    for (label, images), height in zip(rows, heights, strict=True):
        write(canvas, (gap, y + height / 2), label, letters, INK, "lm", left)
        for column, picture in enumerate(pictures(images)):  # (H, W, 3)
            x = left + column * (picture.shape[1] * scale + gap)
            canvas.paste(Image.fromarray(picture.repeat(scale, 0).repeat(scale, 1)), (x, y))
        y += height + gap
    return np.asarray(canvas)


class _Layout:
    """Positions of the panels of a video, in pixels."""

    def __init__(self, strips: Sequence[Strip], size: int, across: int | None = None):
        self.scale = _scale(strips, size)
        height, width = (n * self.scale + 2 * EDGE for n in strips[0].frames.shape[1:3])
        self.panel = width, height  # of a frame with its edge
        down = math.ceil(len(strips) / (across or ACROSS))
        self.across = across or math.ceil(len(strips) / down)  # six are 3 + 3, not 4 + 2
        self.caption = CAPTION if any(strip.caption for strip in strips) else GAP  # height above a frame
        total = self.across * (width + GAP) + GAP, down * (self.caption + height + BAR) + TIMELINE + 8
        self.width, self.height = (extent + extent % 2 for extent in total)

    def corner(self, index: int) -> tuple[int, int]:
        """Upper left corner of the frame of a strip."""
        row, column = divmod(index, self.across)
        width, height = self.panel
        return GAP + column * (width + GAP), row * (self.caption + height + BAR) + self.caption


def _panel(canvas: Image.Image, layout: _Layout, index: int, strip: Strip, t: int, step: str, labels: Labels) -> None:
    x, y = layout.corner(index)
    width, height = layout.panel
    write(canvas, (x + width / 2, y - layout.caption / 2), strip.caption, 14, INK, "mm", width)
    _picture(canvas, (x, y), strip, t, layout.scale, EDGE)
    middle = y + height + BAR / 2
    write(canvas, (x + EDGE, middle), step, 14, DIM, "lm", 0.3 * width)
    _action(canvas, strip.actions[t], labels, (x + width / 2, middle), 22, 0.45 * width)
    tag, colour = _kind(strip, t)
    write(canvas, (x + width - EDGE, middle), tag, 14, colour, "rm", 0.3 * width)


def _picture(canvas: Image.Image, xy: tuple[int, int], strip: Strip, t: int, scale: int, edge: int) -> None:
    height, width = (n * scale for n in strip.frames.shape[1:3])
    x, y = xy
    canvas.paste(_kind(strip, t)[1], (x, y, x + width + 2 * edge, y + height + 2 * edge))
    picture = Image.fromarray(strip.frames[t]).resize((width, height), Image.Resampling.NEAREST)
    canvas.paste(picture, (x + edge, y + edge))


def _kind(strip: Strip, t: int) -> tuple[str, Colour]:
    """Label and colour of a frame: seen, dreamt, or neither."""
    if t < strip.seen:
        return "seen", SEEN
    return ("dreamt", DREAMT) if strip.dreamt else ("", RAIL)


def _action(
    canvas: Image.Image, name: str | None, labels: Labels, centre: tuple[float, float], size: int, width: float
) -> None:
    """Draw the icon of an action, or its name if labels are names or there is no icon."""
    if name is None or labels == "none":
        return
    mask = icon(name, size) if labels == "arrows" else None
    if mask is None:
        write(canvas, centre, name, max(11, round(0.65 * size)), INK, "mm", width)
    else:
        canvas.paste(INK, (round(centre[0] - size / 2), round(centre[1] - size / 2)), mask)


def _timeline(canvas: Image.Image, layout: _Layout, t: int, length: int, seen: int, dreamt: bool) -> None:
    left, right, top = GAP, layout.width - GAP, layout.height - TIMELINE - 6

    def fill(first: float, last: float, colour: Colour) -> None:
        span = (right - left) / length
        if last > first:
            box = [left + first * span, top, left + last * span - 1, top + TIMELINE - 1]
            ImageDraw.Draw(canvas).rectangle(box, fill=colour)

    fill(0, length, RAIL)
    fill(0, min(t + 1, seen), SEEN)
    fill(seen, t + 1, DREAMT if dreamt else DIM)


def _legend(canvas: Image.Image, strips: Sequence[Strip], right: int) -> int:
    """Draw the colours that occur, ending at ``right``; returns the left end of the legend."""
    kinds = [("seen", SEEN, any(s.seen for s in strips)), ("dreamt", DREAMT, any(s.dreamt for s in strips))]
    for text, colour, occurs in reversed(kinds):
        if occurs:
            right -= text_width(text, 13)
            write(canvas, (right, 16), text, 13, colour, "lm", math.inf)
            right -= 16
            canvas.paste(colour, (right, 11, right + 10, 21))
            right -= 14
    return right


def _steps(strips: Sequence[Strip], labels: str) -> list[int]:
    """Step numbers: 0 is the last seen frame, or the first frame if none was seen.

    Raises :class:`ConfigError` for unknown labels, :class:`DataError` for strips that do not fit together.
    """
    if labels not in get_args(Labels):
        raise ConfigError(f"labels {labels!r}; choose from {', '.join(get_args(Labels))}")
    if not strips:
        raise DataError("nothing to show; give at least one strip of frames")
    shapes = {strip.frames.shape for strip in strips}
    if len(shapes) > 1:
        raise DataError(f"strips of different shapes {sorted(shapes)} cannot run side by side")
    seen = max(strip.seen for strip in strips)
    return [t - max(seen - 1, 0) for t in range(len(strips[0]))]


def _scale(strips: Sequence[Strip], size: int) -> int:
    return max(1, math.ceil(size / min(strips[0].frames.shape[1:3])))
