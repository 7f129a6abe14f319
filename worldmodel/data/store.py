"""Episodes on disk in memory-mapped shards; writing may be interrupted at any time.

A store is a folder::

    spec.json            the Spec of the data
    shard-00000.frames   uint8 frames of all episodes of the shard, one after another
    shard-00000.steps    one record a frame: the action that led to it and the reward on arriving; at the first frame
                         the action is the episode's condition, or -1
    index.jsonl          one line per episode: location, length, flags and checksums; written last
    damaged.jsonl        index lines of damaged episodes, with the reason
    lock                 held by the one writer

An episode exists when it has an index line. Bytes after the last indexed episode are overwritten by the next append, so
an interruption loses at most the batch that is being written.

The source may state whether an episode is held out. Otherwise its checksum determines it, for about one in ten, so that
it does not depend on other episodes or on the store. There are two exceptions: while a store has no episode for
training, none is held out by its checksum; and if a store of three episodes or more would have none held out, the
appended one is.
"""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal, Self

import numpy as np

from worldmodel.data.records import Entry, Index, Item, Shards, checksum, new_entries, read_spec, to_records
from worldmodel.data.remote import is_remote, open_remote
from worldmodel.data.validate import check_episode
from worldmodel.errors import BusyError, DataError
from worldmodel.types import Episode, Spec
from worldmodel.util.files import NewFiles, expanded, lock_is_free, replace_text, take_lock

MOST_NAMED = 10  # maximum number of damaged episodes that are reported by line
SOURCE = "source.yaml"  # settings of the source of an imported store
FILES = ("shard-*", "index.jsonl", "spec.json", "lock")  # that a writer makes; the lock protects the removal
Split = Literal["train", "held_out", "all"]

log = logging.getLogger(__name__)


class EpisodeStore:
    """Episodes in a folder. Several processes may read while one writes; a reader sees the state at opening.

    Use :meth:`open` to read, :meth:`writer` to append. As a context manager, a writer holds the lock until closed; if
    an error ends the block before there is an episode, what the writer made is removed.
    Episodes are numbered from 0 in the order of the index, without damaged ones.
    """

    def __init__(
        self,
        path: Path,
        spec: Spec,
        lock: IO[str] | None = None,
        new: NewFiles | None = None,
        remote: Shards | None = None,
    ):
        self.path, self.spec, self.remote = path, spec, remote
        self.damaged: list[str] = []  # reports of episodes that were left out
        self._lock, self._new = lock, new
        self._index, self._shards = Index(path), remote or Shards(path, spec.frame_shape)
        self._verified: set[Entry] = set()  # with verified checksum
        # The number of the next episode counts damaged ones, too.
        self.entries, unreadable, self.next_number = self._index.read(writing=lock is not None)
        self._set_aside(self._shards.missing(self.entries), unreadable)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """An existing store, to read, in a folder or at an address such as ``s3://bucket/folder``.

        Raises :class:`DataError` when there is none or its Spec is unreadable.
        """
        if is_remote(path):
            remote = open_remote(str(path))
            return cls(remote.path, remote.spec, remote=remote)
        path = expanded(path)
        return cls(path, read_spec(path))

    @classmethod
    def writer(cls, path: str | Path, spec: Spec) -> Self:
        """Open or create the store at ``path`` for appending.

        Raises :class:`DataError` for a Spec that is not valid or not that of the store, :class:`BusyError` when another
        process is writing.
        """
        if is_remote(path):
            raise DataError(f"{path} can only be read; record into a local folder, data=…, and copy that there")
        path = expanded(path)
        Spec.from_json(spec.to_json())  # which checks it
        if path.exists() and not path.is_dir():
            raise DataError(f"{path} is no folder; choose another with data=…")
        new = NewFiles(path, FILES)
        path.mkdir(parents=True, exist_ok=True)
        lock = take_lock(path)
        if lock is None:
            raise BusyError(f"another process is writing to {path}; wait for it or choose another folder with data=…")
        try:
            if (path / "index.jsonl").exists():  # else it is empty
                read_spec(path, spec)
            else:
                replace_text(path / "spec.json", spec.to_json())
            return cls(path, spec, lock, new)
        except BaseException:
            if not (path / "index.jsonl").exists():
                new.remove()
            lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None and self._new is not None and not self.next_number:
            self._new.remove()
        self.close()

    def close(self) -> None:
        """Release the lock. Reading remains possible."""
        if self._lock is not None:
            self._lock.close()
            self._lock = self._new = None

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def frame_counts(self) -> np.ndarray:
        """(E,) int64: T, the frames of every episode."""
        return np.array([entry.frames for entry in self.entries], np.int64)

    @property
    def frames(self) -> int:
        """Number of frames in all episodes."""
        return sum(entry.frames for entry in self.entries)

    @property
    def steps(self) -> int:
        """Number of steps in all episodes."""
        return self.frames - len(self)

    @property
    def keys(self) -> set[str]:
        """The keys of imported episodes; recorded ones have none."""
        return {entry.key for entry in self.entries if entry.key is not None}

    def split(self, name: Split) -> np.ndarray:
        """Indices of the episodes for training, of those held out, or of all. (n,) int64."""
        held_out = np.array([entry.held_out for entry in self.entries], bool)
        splits = {"train": ~held_out, "held_out": held_out, "all": np.ones_like(held_out)}
        if name not in splits:
            raise DataError(f"unknown split {name!r}; choose train, held_out or all")
        return np.flatnonzero(splits[name])

    def require(self, name: Split) -> np.ndarray:
        """Like :meth:`split`. Raises :class:`DataError`, with the remedy, when no episode is in it."""
        if len(indices := self.split(name)):
            return indices
        held_out = "none is" if name == "held_out" else "all are"
        count = f"{len(self):,} episode{'s' * (len(self) != 1)}"
        reason = f"of {count} at {self.path}, {held_out} held out"
        reason = reason if len(self) else f"{self.path} holds no finished episode yet"
        cut = "source=npz source.longest=… cuts a long recording into several (into another data=…)"
        raise DataError(f"{reason}; python -m worldmodel.collect data={self.path} records more, and {cut}")

    def episode(self, index: int) -> Episode:
        """Episode ``index``; its frames are a read-only view of the memory map.

        Raises :class:`DataError` for an unknown index and for an episode whose checksum is wrong.
        """
        if not 0 <= index < len(self):
            raise DataError(f"there is no episode {index} in {self.path}; it holds 0 to {len(self) - 1}")
        entry = self.entries[index]
        frames, records = self.read(index, 0, entry.frames)
        if entry not in self._verified and checksum(frames, records) != entry.crc:
            raise DataError(f"{self._describe(entry)} is damaged (wrong checksum); EpisodeStore.verify sets it aside")
        self._verified.add(entry)
        actions, rewards = records["action"].astype(np.int64), records["reward"].copy()
        return Episode(frames, actions, rewards, entry.terminated, entry.truncated)

    def read(self, index: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames ``first`` to ``last`` (excluded) of an episode and their records, as views of the memory map.

        (n, C, *size) uint8 and (n,) of dtype :data:`STEP`. Data are read from disk on access.
        """
        return self._shards.read(self.entries[index], first, last)

    def records(self, index: int) -> np.ndarray:
        """(T,) of dtype :data:`STEP`: the records of an episode, without its frames."""
        return self._shards.records(self.entries[index])

    def prefetch(self, indices: Sequence[int] | np.ndarray) -> None:
        """Prepare reading these episodes: of a remote store, their shards are copied together."""
        self._shards.prefetch(self.entries[int(index)].shard for index in indices)

    def append(self, episode: Episode, held_out: bool | None = None, key: str | None = None) -> int:
        """Write one episode; returns its index. Raises as :meth:`extend` does."""
        return self.extend([Item(episode, held_out, key)])[0]

    def extend(self, items: Sequence[Item]) -> range:
        """Write a batch of episodes; returns their indices.

        An error or interruption loses at most the batch, and appending may continue. Raises :class:`DataError`, before
        anything is written, for an episode that does not fit the Spec; OSError for errors of the system.
        """
        if self._lock is None:
            raise DataError(f"{self.path} is open for reading; EpisodeStore.writer opens it for writing")
        for number, item in enumerate(items, self.next_number):
            check_episode(item.episode, self.spec, f"{self.path}, episode {item.key or number}")
        before = len(self)
        while rest := items[len(self) - before :]:
            sizes = [item.episode.frames.nbytes for item in rest]
            shard, offset, count = self._shards.place(self.entries[-1] if self.entries else None, sizes)
            self._write(rest[:count], shard, offset)
        return range(before, len(self))

    def _write(self, items: Sequence[Item], shard: int, offset: int) -> None:
        """Write frames, then records, then index lines of consecutive episodes in a shard."""
        frames = [np.ascontiguousarray(item.episode.frames) for item in items]
        records = [to_records(item.episode) for item in items]
        crcs = [checksum(*parts) for parts in zip(frames, records, strict=True)]
        entries = new_entries(self.entries, items, crcs, self.next_number, shard, offset)
        self._shards.write(shard, offset, frames, records)
        self._index.append(entries)
        self.entries += entries
        self.next_number += len(entries)

    def verify(self, indices: Sequence[int] | None = None) -> list[str]:
        """Check sizes and checksums of all or some episodes; set the damaged ones aside.

        Returns a line for each damaged episode. The indices of later episodes decrease. Commands that read a whole
        store call it first. Bytes behind the last episode are logged: those of an interrupted recording, or of
        episodes whose lines an index has lost.
        """
        if self.remote is not None:  # sizes are checked on opening, and checksums when a shard is copied
            return []
        wanted = range(len(self)) if indices is None else indices
        last = max(self.entries, key=lambda entry: (entry.shard, entry.offset), default=None)
        if indices is None and self._shards.goes_on_behind(last) and (self._lock or lock_is_free(self.path)):
            log.warning(
                "%s holds frames behind its last episode: a recording was interrupted, or index.jsonl is cut off; "
                "the next recording overwrites them", self.path,
            )  # fmt: skip
        damaged = self._shards.missing(self.entries[index] for index in wanted)
        for index in wanted:
            entry = self.entries[index]
            self._verified.discard(entry)
            if entry in damaged:
                continue
            try:
                self.episode(index)
            except DataError:
                damaged[entry] = "wrong checksum"
        return self._set_aside(damaged)

    def _describe(self, entry: Entry) -> str:
        return f"episode {entry.episode} in {self._shards.file(entry.shard, 'frames')}"

    def _set_aside(self, damaged: dict[Entry, str], unreadable: int = 0) -> list[str]:
        """Leave damaged entries out, log them, and move their lines to damaged.jsonl if the folder is writable."""
        if not damaged and not unreadable:
            return []
        reports = [f"{self._describe(entry)}: {reason}" for entry, reason in damaged.items()]
        if unreadable:
            reports.append(f"{self._index.file}: unreadable lines: {unreadable}")
        for report in reports[:MOST_NAMED]:
            log.warning("damaged data left out: %s", report)
        if len(reports) > MOST_NAMED:
            log.warning("damaged data left out: %d more; %s lists them", len(reports) - MOST_NAMED, self._index.aside)
        self.damaged += reports
        self.entries = [entry for entry in self.entries if entry not in damaged]
        with contextlib.suppress(OSError):  # the folder may be read-only
            lock = self._lock or take_lock(self.path)
            if lock is not None:  # else another process is writing
                with contextlib.nullcontext() if self._lock else lock:
                    self._index.set_aside(damaged)
        return reports
