"""Fill a store from a source: what is there already stays, what is missing comes in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from worldmodel.data.records import Item
from worldmodel.data.sources.base import Source
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import DataError

CHUNK = 16  # items that are read between two looks at whether to stop
BATCH_BYTES = 16 * 2**20  # of frames that are written at once; what an interruption may cost


@dataclasses.dataclass(frozen=True)
class Filled:
    """What one call did."""

    added: int  # items that are new
    known: int  # items that were there
    unreadable: tuple[str, ...]  # one line for each that could not be read


def fill(
    store: EpisodeStore,
    source: Source,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Filled:
    """Append every item of a source whose key is not in the store, which is open for writing; in the source's order.

    ``workers`` threads read; an item that cannot be read is left out. ``progress(done, total)`` counts the items that
    were missing. When ``stopped()`` says so, what was read is written and KeyboardInterrupt raised. Raises
    :class:`DataError` when the source is of another Spec than the store; OSError when the disk is full.
    """
    if source.spec != store.spec:
        raise DataError(f"{store.path} holds data of another kind than the source; choose another folder with data=…")
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
            for got in pool.map(read, missing[at : at + CHUNK]):
                if isinstance(got, str):
                    unreadable.append(got)
                else:
                    pending.append(got)
            if sum(item.episode.frames.nbytes for item in pending) >= BATCH_BYTES or stopped():
                store.extend(pending)
                pending.clear()
            if stopped():
                raise KeyboardInterrupt
            progress(min(at + CHUNK, len(missing)), len(missing))
    store.extend(pending)
    return Filled(len(missing) - len(unreadable), len(source) - len(missing), tuple(unreadable))
