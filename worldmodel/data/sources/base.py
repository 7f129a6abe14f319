"""The interface of sources of recorded data."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldmodel.data.records import Item, short
from worldmodel.errors import DataError
from worldmodel.types import DEFAULT_RATE, Episode, Spec, plain_name


class Source(abc.ABC):
    """Items that can be read in any order and from several threads.

    The constructor lists the items; it raises :class:`DataError` when the folder does not contain the expected files.
    Keys are permanent: they do not change when the folder is moved or grows.
    """

    spec: Spec
    keys: Sequence[str]  # one per item, unique

    def __len__(self) -> int:
        return len(self.keys)

    @abc.abstractmethod
    def read(self, index: int) -> Item:
        """Item ``index``, under ``keys[index]``. Raises :class:`DataError`, naming the file, when it cannot be read."""


def image_item(image: np.ndarray, label: int, held_out: bool, key: str) -> Item:
    """An image (C, H, W) uint8 of class ``label`` (-1: unknown) as an episode of one frame."""
    condition, reward = np.array([label], np.int64), np.zeros(1, np.float32)
    return Item(Episode(image[None], condition, reward, terminated=False, truncated=False), held_out, key)


def check_folder(path: str | Path, wanted: str) -> Path:
    """The absolute path of a folder. Raises :class:`DataError` with a description of what is ``wanted`` there."""
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise DataError(f"{path} {what}; source.path=… names {wanted}")
    return folder


def recorded_spec(
    name: str,
    shape: tuple[int, ...],
    actions: int,
    known: Spec | None,
    action_names: Sequence[str] | None,
    rate: float | None,
) -> Spec:
    """The Spec of recordings with ``actions`` actions, from a ``known`` Spec and the settings of the user.

    Actions without names are numbered. Raises :class:`DataError` for too few or duplicate names.
    """
    names = [
        plain_name(str(word)) for word in action_names or (known.action_names if known else map(str, range(actions)))
    ]
    if len(names) < actions or len(set(names)) < len(names) or not all(names):
        raise DataError(
            f"the recordings hold {actions} actions, which need as many different names; got "
            f"{short(', '.join(names))}: give them with source.action_names=[…]"
        )
    rate = rate or (known.rate if known else DEFAULT_RATE)
    return Spec(known.env_id if known else name, shape, tuple(names), float(rate), known.env_kwargs if known else {})
