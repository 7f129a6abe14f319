"""Images in labelled rows, such as originals above reconstructions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from worldmodel.errors import DataError
from worldmodel.media.draw import INK, PAPER, text_width, write

GAP, LETTERS = 6, 13


def gallery(rows: Sequence[tuple[str, Tensor]], size: int = 96, title: str = "") -> np.ndarray:
    """Rows of (label, images (n, C, H, W) uint8, C 1 or 3) → one image (height, width, 3) uint8.

    Images are enlarged by an integer factor to at least ``size`` pixels. Raises :class:`DataError` without images.
    """
    if not rows or not all(len(pictures) for _, pictures in rows):
        raise DataError("there is no picture to show")
    extent = max(max(pictures.shape[-2:]) for _, pictures in rows)
    scale = max(1, -(-size // extent))
    left = GAP + (
        max(text_width(label, LETTERS) for label, _ in rows) + 2 * GAP if any(label for label, _ in rows) else 0
    )
    head = 28 if title else GAP
    heights = [pictures.shape[-2] * scale for _, pictures in rows]
    across = max(len(pictures) * (pictures.shape[-1] * scale + GAP) for _, pictures in rows)
    canvas = Image.new("RGB", (left + across, head + sum(heights) + GAP * len(rows)), PAPER)
    draw = ImageDraw.Draw(canvas)
    write(draw, (GAP, head / 2), title, LETTERS + 1, INK, "lm", left + across - 2 * GAP)
    y = head
    for (label, pictures), height in zip(rows, heights, strict=True):
        write(draw, (GAP, y + height / 2), label, LETTERS, INK, "lm", left)
        for column, picture in enumerate(pictures):
            x = left + column * (picture.shape[-1] * scale + GAP)
            pixels = picture.expand(3, -1, -1).movedim(0, -1).cpu().numpy()
            pixels = pixels.repeat(scale, 0).repeat(scale, 1)
            canvas.paste(Image.fromarray(pixels), (x, y))
        y += height + GAP
    return np.asarray(canvas)
