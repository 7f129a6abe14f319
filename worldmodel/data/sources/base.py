"""What a source of recorded data is."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldmodel.data.records import Item
from worldmodel.errors import DataError
from worldmodel.types import Episode, Spec


class Source(abc.ABC):
    """Items in a fixed order, each of which can be read by itself, in any order and from several threads.

    The constructor looks at the folder and knows ``spec`` and ``keys``; it raises :class:`DataError` when the folder
    does not hold what it should. Keys name the items for good: they do not change when the folder is moved or grows.
    """

    spec: Spec
    keys: Sequence[str]  # one an item, all different

    def __len__(self) -> int:
        return len(self.keys)

    @abc.abstractmethod
    def read(self, index: int) -> Item:
        """Item ``index``, under ``keys[index]``. Raises :class:`DataError`, naming the file, when it cannot be read."""


def image_item(image: np.ndarray, label: int, held_out: bool, key: str) -> Item:
    """An image (C, H, W) uint8 of class ``label`` (-1: unknown) as an episode of one frame."""
    nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
    return Item(Episode(image[None], *nothing, terminated=False, truncated=False, condition=label), held_out, key)


def check_folder(path: str | Path, wanted: str) -> Path:
    """The folder at ``path``, absolute. Raises :class:`DataError`, saying what is ``wanted`` there."""
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise DataError(f"{path} {what}; source.path=… names {wanted}")
    return folder
