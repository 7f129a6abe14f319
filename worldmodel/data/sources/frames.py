"""Pictures as recordings hold them, grey or in colour, channels first or last: what they become in a store."""

from __future__ import annotations

import numpy as np
from PIL import Image

SMALLEST = 16
"""Pixels. Arrays that are smaller are encodings of a state (MiniGrid's 7×7×3), not pictures."""


def frame_shape(shape: tuple[int, ...], size: int | None = None) -> tuple[int, int, int] | None:
    """(H, W), (H, W, C) or (C, H, W) → (C, H, W), or (C, size, size); None for what is no picture."""
    if len(shape) not in (2, 3) or sorted(shape)[-2] < SMALLEST:
        return None
    channels, height, width = shape if _channels_first(shape) else (1, *shape) if len(shape) == 2 else _first(shape)
    return (channels, height, width) if size is None else (channels, size, size)


def to_frames(pictures: np.ndarray, size: int | None = None) -> np.ndarray:
    """(n, H, W), (n, H, W, C) or (n, C, H, W) uint8 → (n, C, H, W), or (n, C, size, size).

    A picture of another size is squeezed as a whole, every new pixel the mean of the area that it covers, as
    environments do it.
    """
    shape = pictures.shape[1:]
    frames = pictures[:, None] if len(shape) == 2 else pictures
    if len(shape) == 3 and not _channels_first(shape):
        frames = frames.transpose(0, 3, 1, 2)
    if size is None or frames.shape[2:] == (size, size):
        return np.ascontiguousarray(frames)
    planes = [_resized(plane, size) for plane in frames.reshape(-1, *frames.shape[2:])]
    return np.stack(planes).reshape(*frames.shape[:2], size, size)


def _resized(plane: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BOX))


def _channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] <= 4 < shape[2]


def _first(shape: tuple[int, ...]) -> tuple[int, int, int]:
    height, width, channels = shape
    return channels, height, width
