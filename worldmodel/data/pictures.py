"""Pictures as environments and recordings have them, grey or in colour, channels first or last: what they become."""

from __future__ import annotations

import numpy as np
from PIL import Image

SMALLEST = 16
"""Pixels. Arrays that are smaller are encodings of a state (MiniGrid's 7×7×3), not pictures."""


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether a picture of this shape is (C, H, W)."""
    return len(shape) == 3 and shape[0] <= 4 < shape[2]


def frame_shape(shape: tuple[int, ...], size: int | None = None) -> tuple[int, int, int] | None:
    """(H, W), (H, W, C) or (C, H, W) → (C, H, W), or (C, size, size); None for what is no picture."""
    if len(shape) not in (2, 3) or sorted(shape)[-2] < SMALLEST:
        return None
    if channels_first(shape):
        channels, height, width = shape
    else:
        height, width, channels = shape if len(shape) == 3 else (*shape, 1)
    return (channels, height, width) if size is None else (channels, size, size)


def resize(picture: np.ndarray, size: int) -> np.ndarray:
    """(H, W) or (H, W, C) uint8 → (size, size[, C]), antialiased: every new pixel is the mean of the area it covers."""
    if picture.shape[:2] == (size, size):
        return picture
    if picture.ndim == 3 and picture.shape[2] not in (1, 3):  # Pillow would weigh four channels by the last, as opacity
        return np.stack([resize(picture[..., channel], size) for channel in range(picture.shape[2])], axis=-1)
    flat = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
    resized = np.asarray(Image.fromarray(flat).resize((size, size), Image.Resampling.BOX))
    return resized.reshape(size, size, *picture.shape[2:])


def to_frames(pictures: np.ndarray, size: int | None = None) -> np.ndarray:
    """(n, H, W), (n, H, W, C) or (n, C, H, W) uint8 → (n, C, H, W), or squeezed to (n, C, size, size)."""
    shape = pictures.shape[1:]
    last = pictures[..., None] if len(shape) == 2 else pictures
    if channels_first(shape):
        last = pictures.transpose(0, 2, 3, 1)
    if size is not None and last.shape[1:3] != (size, size):
        last = np.stack([resize(np.ascontiguousarray(picture), size) for picture in last])
    return np.ascontiguousarray(last.transpose(0, 3, 1, 2))
