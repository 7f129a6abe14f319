"""Strips of frames, the input of :func:`worldmodel.media.save`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from worldmodel.errors import DataError


@dataclasses.dataclass(frozen=True)
class Strip:
    """Frames of one source: the truth, a reconstruction or a dream.

    ``frames`` is an array or a tensor with 1 (grey), 3 or 4 (alpha is dropped) channels. Raises :class:`DataError` for
    other shapes.
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
    """(T, C, H, W) uint8, C of 1, 3 or 4 → (T, H, W, 3) uint8. Raises :class:`DataError` for anything else."""
    array: np.ndarray = frames.detach().cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3, 4) or 0 in array.shape:
        raise DataError(f"cannot show {array.dtype} {array.shape}; frames are uint8 (T, C, H, W) with C of 1, 3 or 4")
    array = np.repeat(array, 3, axis=1) if array.shape[1] == 1 else array[:, :3]
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def action_names(actions: Sequence[int] | np.ndarray | Tensor, names: Sequence[str]) -> tuple[str | None, ...]:
    """Indices (T,) → names; None for ``NO_ACTION``."""
    return tuple(names[int(action)] if int(action) >= 0 else None for action in actions)


def dream_strip(seen: Any, frames: Any, actions: Sequence[str | None] = (), caption: str = "dream") -> Strip:
    """The seen frames, followed by the dream.

    ``seen`` (T0, C, H, W) and ``frames`` (H, C, H, W) uint8; ``actions`` the names of the actions that led to each of
    the T0 + H frames, None if unknown.
    """
    both = np.concatenate([_host(seen), _host(frames)])
    return Strip(both, caption, tuple(actions), seen=len(seen), dreamt=True)


def triptych(truth: Any, reconstruction: Any, dream: Strip) -> list[Strip]:
    """Strips of truth, reconstruction and dream with the same actions; all include the seen frames."""
    if not len(truth) == len(reconstruction) == len(dream):
        raise DataError(
            f"strips of {len(truth)}, {len(reconstruction)} and {len(dream)} frames cannot run side by side"
        )
    return [
        Strip(truth, "truth", dream.actions, seen=dream.seen),
        Strip(reconstruction, "reconstruction", dream.actions, seen=dream.seen),
        dream,
    ]


def _host(frames: Any) -> np.ndarray:
    return frames.detach().cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)
