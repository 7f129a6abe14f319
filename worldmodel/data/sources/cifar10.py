"""CIFAR-10 as published: pickled batches, read without executing code in them.

A pickle may call any function. A batch needs only four names, all for numpy arrays. The unpickler here replaces them by
inert classes that store their arguments, and refuses all other names.

Format: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

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
        names = unpickle(folder / META).get("label_names")
        if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
            raise DataError(f"{folder / META} names no classes; take it from the published archive")
        self.spec = Spec(name, SHAPE, tuple(names), rate=1.0)
        self.keys: list[str] = []
        self._items: list[tuple[np.ndarray, int, bool]] = []  # image, label, whether it is held out
        for file in files:
            images, labels = read_batch(file, len(names))
            self.keys += [f"{file.name}/{row}" for row in range(len(labels))]
            self._items += [(image, label, file.name == TEST) for image, label in zip(images, labels, strict=True)]

    def read(self, index: int) -> Item:
        return image_item(*self._items[index], self.keys[index])


def read_batch(file: Path, classes: int) -> tuple[np.ndarray, list[int]]:
    """The images (n, 3, 32, 32) uint8 of one file, and their labels in [0, classes). Raises :class:`DataError`."""
    content = unpickle(file)
    data, labels = content.get("data"), content.get("labels")
    size = int(np.prod(SHAPE))
    if not isinstance(data, _Array) or data.rows is None or data.rows.shape[1] != size:
        raise DataError(f"{file} holds no array of n × {size} bytes under the name data; it is no batch of CIFAR-10")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < classes for label in labels):
        raise DataError(f"{file} holds labels that are none of the {classes} classes")
    if len(labels) != len(data.rows):
        raise DataError(f"{file} holds {len(data.rows)} images and {len(labels)} labels")
    return data.rows.reshape(-1, *SHAPE), labels


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
    """Stands for ``numpy.ndarray``, of which it accepts a table of bytes."""

    rows: np.ndarray | None = None  # (n, width) uint8; None for any other array

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, columns_first, content = state
        values = content.encode("latin1") if isinstance(content, str) else bytes(content)
        if isinstance(kind, _Type) and kind.letters == "u1" and not columns_first and len(shape) == 2:
            self.rows = np.frombuffer(values, np.uint8).reshape(shape)


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *arguments: _Array(),  # an empty array, to be filled by its state
    ("numpy._core.multiarray", "_reconstruct"): lambda *arguments: _Array(),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # by which Python 3 writes bytes for Python 2
}


class _Unpickler(pickle.Unpickler):
    """Finds the stand-ins by their names and refuses all other names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise DataError(f"is refused: it names {module}.{name}, and a batch of CIFAR-10 holds arrays only")
        return _STAND_INS[module, name]

    def persistent_load(self, name: object) -> Any:
        raise DataError("is refused: it refers to something outside of it, and a batch of CIFAR-10 holds arrays only")
