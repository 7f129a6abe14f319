"""Conversion of images of environments and recordings, grey or colour, channels first or last, to frames; names of the
actions of environments."""

import enum
from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from worldmodel.data.validate import channel_axis


def frame_shape(shape: tuple[int, ...], size: int | None = None) -> tuple[int, int, int] | None:
    """(H, W), (H, W, C) or (C, H, W) → (C, H, W), or (C, size, size); None for other shapes."""
    axis = channel_axis(shape)
    if axis is None:
        return None
    height, width, channels = (*shape[1:], shape[0]) if axis == 0 else (*shape, 1)[:3]
    return (channels, height, width) if size is None else (channels, size, size)


def resize(picture: np.ndarray, size: int) -> np.ndarray:
    """(H, W) or (H, W, C) uint8 → (size, size[, C]), by averaging the area of each new pixel."""
    if picture.shape[:2] == (size, size):
        return picture
    if picture.ndim == 3 and picture.shape[2] not in (1, 3):  # Pillow would use the last channel as opacity
        return np.stack([resize(picture[..., channel], size) for channel in range(picture.shape[2])], axis=-1)
    flat = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
    resized = np.asarray(Image.fromarray(flat).resize((size, size), Image.Resampling.BOX))
    return resized.reshape(size, size, *picture.shape[2:])


def to_frames(pictures: np.ndarray, size: int | None = None) -> np.ndarray:
    """(n, H, W), (n, H, W, C) or (n, C, H, W) uint8 → (n, C, H, W), or resized to (n, C, size, size)."""
    shape = pictures.shape[1:]
    last = pictures[..., None] if len(shape) == 2 else pictures
    if channel_axis(shape) == 0:
        last = pictures.transpose(0, 2, 3, 1)
    if size is not None and last.shape[1:3] != (size, size):
        last = np.stack([resize(np.ascontiguousarray(picture), size) for picture in last])
    return np.ascontiguousarray(last.transpose(0, 3, 1, 2))


def own_action_names(env: gymnasium.Env[Any, Any], actions: Iterable[int]) -> list[str]:
    """The names of an environment for its actions, or none.

    They are in its metadata, in ``get_action_meanings`` (Atari) or in an enum (MiniGrid).
    """
    if names := env.metadata.get("action_names"):
        return [str(name) for name in names]
    if hasattr(env.unwrapped, "get_action_meanings"):
        return [str(name).lower() for name in env.unwrapped.get_action_meanings()]
    own = getattr(env.unwrapped, "actions", None)
    if not isinstance(own, type) or not issubclass(own, enum.IntEnum):
        return []
    by_number = {int(action): action.name.lower() for action in own}
    return [by_number.get(number, str(number)) for number in actions]
