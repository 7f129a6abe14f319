"""CIFAR-10 as published: pickled batches, read without executing code in them.

A pickle may call any function. A batch needs only four names, all for numpy arrays. The unpickler here replaces them by
inert classes that store their arguments, and refuses all other names.

Format: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.records import Item
from worldmodel.data.sources.base import Source, check_folder, image_item
from worldmodel.errors import DataError
from worldmodel.types import Spec
from worldmodel.util.ranges import Text

SHAPE = (3, 32, 32)
META, TRAINING, TEST = "batches.meta", "data_batch_*", "test_batch"


class CIFAR10(Source):
    """The batches of a folder ``cifar-10-batches-py``. The test batch is held out.

    All images are held in memory (184 MB for the whole set). Raises :class:`DataError` for a folder without batches and
    for a file that is damaged or holds anything but arrays, numbers and texts.
    """

    def __init__(self, path: Text, name: Text = "cifar10"):
        folder = check_folder(path, "the folder cifar-10-batches-py, which holds data_batch_1 and test_batch")
        files = [*sorted(folder.glob(TRAINING)), *folder.glob(TEST)]
        if not files or not (folder / META).is_file():
            lacking = META if files else f"{TRAINING.replace('*', '1')} and no {TEST}"
            raise DataError(f"there is no {lacking} in {folder}; source.path=… names the folder cifar-10-batches-py")
        names = read_names(folder / META)
        self.spec = Spec(name, SHAPE, names, rate=1.0)
        self._batches = [read_batch(file, len(names)) for file in files]
        self._held_out = [file.name == TEST for file in files]
        self._places = [(b, row) for b, batch in enumerate(self._batches) for row in range(len(batch.labels))]
        self.keys = [f"{files[batch].name}/{row}" for batch, row in self._places]

    def read(self, index: int) -> Item:
        number, row = self._places[index]
        batch = self._batches[number]
        return image_item(batch.images[row], int(batch.labels[row]), self._held_out[number], self.keys[index])


@dataclasses.dataclass(frozen=True)
class Batch:
    """One file of images."""

    images: np.ndarray  # (n, 3, 32, 32) uint8
    labels: np.ndarray  # (n,) int64


def read_names(file: Path) -> tuple[str, ...]:
    """The names of the classes, from ``batches.meta``. Raises :class:`DataError`."""
    names = unpickle(file).get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file} names no classes; take it from the published archive")
    return tuple(names)


def read_batch(file: Path, classes: int) -> Batch:
    """The images of one file, with labels in [0, classes). Raises :class:`DataError`."""
    content = unpickle(file)
    data, labels = content.get("data"), content.get("labels")
    size = int(np.prod(SHAPE))
    if not isinstance(data, _Array) or data.kind != "u1" or data.shape[1:] != (size,) or not data.is_whole:
        raise DataError(f"{file} holds no array of n × {size} bytes under the name data; it is no batch of CIFAR-10")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < classes for label in labels):
        raise DataError(f"{file} holds labels that are none of the {classes} classes")
    if len(labels) != data.shape[0]:
        raise DataError(f"{file} holds {data.shape[0]} images and {len(labels)} labels")
    images = np.frombuffer(data.bytes, np.uint8).reshape(-1, *SHAPE)
    return Batch(images, np.array(labels, np.int64))


def unpickle(file: Path) -> dict[str, Any]:
    """The dict in a pickle of plain values and arrays, these as :class:`_Array`. Raises :class:`DataError`."""
    try:
        content = _Unpickler(io.BytesIO(file.read_bytes()), encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{file} {error}") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{file} is damaged or no pickle ({type(error).__name__}); fetch it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds no table of arrays; it is no batch of CIFAR-10")
    return content


class _Type:
    """Stands for ``numpy.dtype``: its letters, such as u1."""

    def __init__(self, letters: object = "", *rest: object):
        self.letters = str(letters)

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which bytes do not have."""


class _Array:
    """Replaces ``numpy.ndarray``: the constructor arguments of an array."""

    shape: tuple[int, ...] = ()
    kind = ""
    bytes = b""
    rows_first = True

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, columns_first, content = state
        self.shape = tuple(int(size) for size in shape)
        self.kind = kind.letters if isinstance(kind, _Type) else ""
        self.bytes = content.encode("latin1") if isinstance(content, str) else bytes(content)
        self.rows_first = not columns_first

    @property
    def is_whole(self) -> bool:
        """Whether its bytes are those of an array of its shape, row by row."""
        return len(self.shape) == 2 and self.rows_first and len(self.bytes) == self.shape[0] * self.shape[1]


def _encode(text: str, encoding: str = "") -> bytes:
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes for Python 2."""
    return text.encode("latin1")


def _reconstruct(*arguments: object) -> _Array:
    """Stands for the function of numpy that makes an empty array, to be filled by its state."""
    return _Array()


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """Knows the stand-ins by name and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise DataError(f"is refused: it names {module}.{name}, and a batch of CIFAR-10 holds arrays only")
        return _STAND_INS[module, name]

    def persistent_load(self, name: object) -> Any:
        raise DataError("is refused: it refers to something outside of it, and a batch of CIFAR-10 holds arrays only")
