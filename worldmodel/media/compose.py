"""Layout of strips: the canvases of a video, and a contact sheet of all steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

from worldmodel.errors import ConfigError, DataError
from worldmodel.media.draw import DIM, DREAMT, INK, PAPER, RAIL, SEEN, Colour, icon, text_width, write
from worldmodel.media.strip import Strip

Labels = Literal["arrows", "names", "none"]

EDGE = 3  # coloured line around a frame of the video; 2 on the sheet
GAP = 12
CAPTION, BAR, TIMELINE = 24, 34, 4  # heights in pixels: above a frame, below it, at the bottom
ACROSS = 4  # maximum number of strips side by side in a video
SHEET_CELLS = 120  # maximum number of frames on a contact sheet; longer dreams are subsampled
SHEET_COLUMNS = 10


def check_labels(labels: str) -> None:
    """Raises :class:`ConfigError` for a kind of label that does not exist."""
    if labels not in get_args(Labels):
        raise ConfigError(f"labels {labels!r}; choose from {', '.join(get_args(Labels))}")


def canvases(
    strips: Sequence[Strip], labels: Labels = "arrows", size: int = 256, across: int | None = None
) -> Iterator[np.ndarray]:
    """The frames of a video: a (height, width, 3) uint8 canvas per step, of one even height and width.

    The strips are side by side, ``across`` in a row, with frames enlarged by an integer factor to at least ``size``
    pixels. Below each frame are its step (0 is the last seen frame), the action that led to it, and whether it was seen
    or dreamt; the line at the bottom shows the progress.
    """
    steps = _steps(strips)
    check_labels(labels)
    layout = _Layout.fit(strips, size, across)
    for t, step in enumerate(steps):
        canvas = Image.new("RGB", (layout.width, layout.height), PAPER)
        draw = ImageDraw.Draw(canvas)
        for index, strip in enumerate(strips):
            _panel(canvas, draw, layout, index, strip, t, f"{step:+d}" if step else "0", labels)
        _timeline(draw, layout, t, len(steps), max(strip.seen for strip in strips), any(s.dreamt for s in strips))
        yield np.asarray(canvas)


def contact_sheet(
    strips: Sequence[Strip], labels: Labels = "arrows", size: int = 96, title: str = "", columns: int = SHEET_COLUMNS
) -> np.ndarray:
    """All steps in one image (height, width, 3) uint8: time runs to the right and then down, with a row for each strip.

    Above each step are its number (0 is the last seen frame) and the action that led to it. If there are more than
    :data:`SHEET_CELLS` frames, every second, third, … step is shown, including step 0.
    """
    steps = _steps(strips)
    check_labels(labels)
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
    draw = ImageDraw.Draw(canvas)
    legend = _legend(draw, strips, sheet_width - GAP)
    write(draw, (GAP, head / 2 + 1), title, 14, INK, "lm", legend - 2 * GAP)
    for place, t in enumerate(shown):
        x = left + (place % columns) * (width + gap)
        y = head + (place // columns) * block
        for row, strip in enumerate(strips):
            if lines[row]:
                write(draw, (x + 2, y + line / 2), str(steps[t]), 12, DIM, "lm", width)
                _action(canvas, draw, strip.actions[t], labels, (x + width / 2, y + line / 2), 15, width - 52)
                y += line
            _picture(canvas, draw, (x, y), strip, t, scale, edge)
            if place % columns == 0:
                write(draw, (GAP, y + height / 2), captions[row], 13, INK, "lm", left)
            y += height + gap
    return np.asarray(canvas)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Positions of the panels of a video, in pixels."""

    scale: int
    panel: tuple[int, int]  # width and height of a frame with its edge
    across: int
    caption: int  # height above a frame
    width: int
    height: int

    @classmethod
    def fit(cls, strips: Sequence[Strip], size: int, across: int | None = None) -> _Layout:
        scale = _scale(strips, size)
        height, width = (n * scale + 2 * EDGE for n in strips[0].frames.shape[1:3])
        down = math.ceil(len(strips) / (across or ACROSS))
        across = across or math.ceil(len(strips) / down)  # six are 3 + 3, not 4 + 2
        caption = CAPTION if any(strip.caption for strip in strips) else GAP
        total_width = across * (width + GAP) + GAP
        total_height = down * (caption + height + BAR) + TIMELINE + 8
        return cls(
            scale, (width, height), across, caption, total_width + total_width % 2, total_height + total_height % 2
        )

    def corner(self, index: int) -> tuple[int, int]:
        """Upper left corner of the frame of a strip."""
        row, column = divmod(index, self.across)
        width, height = self.panel
        return GAP + column * (width + GAP), row * (self.caption + height + BAR) + self.caption


def _panel(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    layout: _Layout,
    index: int,
    strip: Strip,
    t: int,
    step: str,
    labels: Labels,
) -> None:
    x, y = layout.corner(index)
    width, height = layout.panel
    write(draw, (x + width / 2, y - layout.caption / 2), strip.caption, 14, INK, "mm", width)
    _picture(canvas, draw, (x, y), strip, t, layout.scale, EDGE)
    middle = y + height + BAR / 2
    write(draw, (x + EDGE, middle), step, 14, DIM, "lm", 0.3 * width)
    _action(canvas, draw, strip.actions[t], labels, (x + width / 2, middle), 22, 0.45 * width)
    tag, colour = _kind(strip, t)
    write(draw, (x + width - EDGE, middle), tag, 14, colour, "rm", 0.3 * width)


def _picture(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, xy: tuple[int, int], strip: Strip, t: int, scale: int, edge: int
) -> None:
    height, width = (n * scale for n in strip.frames.shape[1:3])
    x, y = xy
    draw.rectangle([x, y, x + width + 2 * edge - 1, y + height + 2 * edge - 1], fill=_kind(strip, t)[1])
    picture = Image.fromarray(strip.frames[t]).resize((width, height), Image.Resampling.NEAREST)
    canvas.paste(picture, (x + edge, y + edge))


def _kind(strip: Strip, t: int) -> tuple[str, Colour]:
    """Label and colour of a frame: seen, dreamt, or neither."""
    if t < strip.seen:
        return "seen", SEEN
    return ("dreamt", DREAMT) if strip.dreamt else ("", RAIL)


def _action(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    name: str | None,
    labels: Labels,
    centre: tuple[float, float],
    size: int,
    width: float,
) -> None:
    """Draw the icon of an action, or its name if labels are names or there is no icon."""
    if name is None or labels == "none":
        return
    mask = icon(name, size) if labels == "arrows" else None
    if mask is None:
        write(draw, centre, name, max(11, round(0.65 * size)), INK, "mm", width)
    else:
        canvas.paste(INK, (round(centre[0] - size / 2), round(centre[1] - size / 2)), mask)


def _timeline(draw: ImageDraw.ImageDraw, layout: _Layout, t: int, length: int, seen: int, dreamt: bool) -> None:
    left, right, top = GAP, layout.width - GAP, layout.height - TIMELINE - 6

    def fill(first: float, last: float, colour: Colour) -> None:
        span = (right - left) / length
        if last > first:
            draw.rectangle([left + first * span, top, left + last * span - 1, top + TIMELINE - 1], fill=colour)

    fill(0, length, RAIL)
    fill(0, min(t + 1, seen), SEEN)
    fill(seen, t + 1, DREAMT if dreamt else DIM)


def _legend(draw: ImageDraw.ImageDraw, strips: Sequence[Strip], right: int) -> int:
    """Draw the colours that occur, ending at ``right``; returns the left end of the legend."""
    kinds = [("seen", SEEN, any(s.seen for s in strips)), ("dreamt", DREAMT, any(s.dreamt for s in strips))]
    for text, colour, occurs in reversed(kinds):
        if occurs:
            right -= text_width(text, 13)
            write(draw, (right, 16), text, 13, colour, "lm", math.inf)
            right -= 16
            draw.rectangle([right, 11, right + 9, 20], fill=colour)
            right -= 14
    return right


def _steps(strips: Sequence[Strip]) -> list[int]:
    """Step numbers: 0 is the last seen frame, or the first frame if none was seen."""
    if not strips:
        raise DataError("nothing to show; give at least one strip of frames")
    shapes = {strip.frames.shape for strip in strips}
    if len(shapes) > 1:
        raise DataError(f"strips of different shapes {sorted(shapes)} cannot run side by side")
    seen = max(strip.seen for strip in strips)
    return [t - max(seen - 1, 0) for t in range(len(strips[0]))]


def _scale(strips: Sequence[Strip], size: int) -> int:
    return max(1, math.ceil(size / min(strips[0].frames.shape[1:3])))
