"""Import the items of a source that a store does not have yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from worldmodel.data.records import Item
from worldmodel.data.sources.base import Source
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import DataError

CHUNK = 16  # items that are read between checks for interruptions
BATCH_BYTES = 16 * 2**20  # of frames that are written at once


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
            return source.read(index)
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
