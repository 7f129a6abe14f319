"""The interface of sources of recorded data, and the import of their items into a store."""

import abc
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from worldmodel.data.records import Item
from worldmodel.data.store import EpisodeStore
from worldmodel.data.validate import MOST_ACTIONS, action_name, check_episode, short
from worldmodel.errors import DataError
from worldmodel.types import DEFAULT_RATE, Episode, Spec
from worldmodel.util.files import expanded

CHUNK = 16  # items that are read between checks for interruptions
BATCH_BYTES = 16 * 2**20  # of frames that are written at once


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


def some_for_training(held_out: Sequence[bool]) -> list[bool]:
    """Whether each item is held out; none of them, if a rule would hold out all of the few that there are."""
    return [False] * len(held_out) if all(held_out) else list(held_out)


def check_folder(path: str | Path, wanted: str) -> Path:
    """The absolute path of a folder. Raises :class:`DataError` with a description of what is ``wanted`` there."""
    folder = expanded(path).resolve()
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise DataError(f"{path} {what}; source.path=… names {wanted}")
    return folder


def files_below(folder: str | Path, endings: tuple[str, ...]) -> Iterator[Path]:
    """Files whose names have one of these lower-case endings, at any depth, also behind links, without hidden ones."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in files if name.lower().endswith(endings) and not name.startswith("."))


def recorded_spec(
    name: str, shape: tuple[int, ...], actions: int, known: Spec | None, given: Sequence[str] | None, rate: float | None
) -> Spec:
    """The Spec of recordings with ``actions`` actions, from a ``known`` Spec and what the user gives: names and a rate.

    Actions without names are numbered. Raises :class:`DataError` for too few or duplicate names.
    """
    if actions > MOST_ACTIONS:
        raise DataError(f"the recordings hold {actions:,} actions, more than {MOST_ACTIONS:,}; number them from 0")
    names = list(map(action_name, given or ())) or list(known.action_names if known else map(str, range(actions)))
    if len(names) < actions or len(set(names)) < len(names):
        reason = f"the recordings hold {actions} actions, which need as many different names"
        raise DataError(f"{reason}; got {short(', '.join(names))}: give them with source.action_names=[…]")
    rate = rate or (known.rate if known else DEFAULT_RATE)
    return Spec(known.env_id if known else name, shape, tuple(names), float(rate), known.env_kwargs if known else {})


@dataclasses.dataclass(frozen=True)
class Filled:
    """Statistics of an import."""

    added: int  # new items
    known: int  # items that were in the store
    unreadable: tuple[str, ...]  # one line for each unreadable item


def fill(
    store: EpisodeStore,
    source: Source,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Filled:
    """Append every item of a source whose key is not in the store, in the order of the source.

    ``workers`` threads read; unreadable items are left out. ``progress(done, total)`` counts the new items. When
    ``stopped()`` returns true, the items read so far are written and KeyboardInterrupt is raised. Raises
    :class:`DataError` when the Spec of the source differs from that of the store; OSError when the disk is full.
    """
    if source.spec != store.spec:
        raise DataError(f"{store.path} has another Spec than the source; choose another folder with data=…")
    known = store.keys
    missing = [index for index, key in enumerate(source.keys) if key not in known]
    unreadable: list[str] = []
    pending: list[Item] = []

    def read(index: int) -> Item | str:
        try:
            item = source.read(index)
            check_episode(item.episode, source.spec, source.keys[index])
            return item
        except DataError as error:
            return str(error)

    progress(0, len(missing))
    with ThreadPoolExecutor(workers) as pool:
        for at in range(0, len(missing), CHUNK):
            for item in pool.map(read, missing[at : at + CHUNK]):
                if isinstance(item, str):
                    unreadable.append(item)
                else:
                    pending.append(item)
            if sum(item.episode.frames.nbytes for item in pending) >= BATCH_BYTES or stopped():
                store.extend(pending)
                pending.clear()
            if stopped():
                raise KeyboardInterrupt
            progress(min(at + CHUNK, len(missing)), len(missing))
    store.extend(pending)
    return Filled(len(missing) - len(unreadable), len(source) - len(missing), tuple(unreadable))
