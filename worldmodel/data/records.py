"""The stored form of an episode: validation, records, checksum."""

from __future__ import annotations

import json
import zlib
from typing import Any, NamedTuple

import numpy as np

from worldmodel.errors import DataError
from worldmodel.types import NO_ACTION, Episode, Spec
from worldmodel.util.files import as_bytes

STEP = np.dtype([("action", "<i4"), ("reward", "<f4")])
"""The record of a frame: the action that led to it (at index 0 the condition) and the reward received on arriving."""


class Item(NamedTuple):
    """An episode to append, with its split and key."""

    episode: Episode
    held_out: bool | None = None  # None: depends on its checksum
    key: str | None = None  # in :attr:`EpisodeStore.keys`


def check_fits(episode: Episode, spec: Spec) -> None:
    """Raises :class:`DataError` for an episode that is not one of this Spec."""
    frames, shape = episode.frames, spec.frame_shape
    if frames.shape[1:] != shape or not len(frames) or frames.dtype != np.uint8:
        expected = ", ".join(map(str, ("T", *shape)))
        raise DataError(f"an episode needs uint8 frames ({expected}); got {frames.dtype} {frames.shape}")
    for name, meaning in (("actions", "the action that led to it"), ("rewards", "the reward received on arriving")):
        if (got := np.shape(getattr(episode, name))) != (len(frames),):
            raise DataError(f"{name} of an episode are {got}; give ({len(frames)},), for each frame {meaning}")
    count, taken = len(spec.action_names), episode.actions[1:]
    if len(taken) and not 0 <= taken.min() <= taken.max() < count:
        raise DataError(f"actions must be in [0, {count}), one of {short(', '.join(spec.action_names))}")
    if not NO_ACTION <= episode.condition < count:
        raise DataError(f"the condition {episode.condition} of an episode is neither {NO_ACTION} nor in [0, {count})")


def to_records(episode: Episode) -> np.ndarray:
    """(T,) of dtype :data:`STEP`."""
    records = np.zeros(len(episode.frames), STEP)
    records["action"], records["reward"] = episode.actions, episode.rewards
    return records


def joined(arrays: list[np.ndarray]) -> np.ndarray:
    """Concatenate arrays; a single one is not copied."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def checksum(frames: np.ndarray, records: np.ndarray) -> int:
    """CRC-32 of an episode's frames, then its records."""
    return zlib.crc32(as_bytes(records), zlib.crc32(as_bytes(frames)))


def short(value: Any) -> str:
    """A value or a text, shortened for error messages."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "…"
