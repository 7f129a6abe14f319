"""Episodes on disk, as raw memory-mapped shards that survive being killed at any moment.

A store is a folder::

    spec.json            the Spec of the data
    shard-00000.frames   uint8 frames of all episodes of the shard, one after another
    shard-00000.steps    one record a frame: the action that led to it and the reward on arriving; at the first frame
                         the action is the episode's condition, -1 where there is none
    index.jsonl          one line an episode: where it lies, its length, flags and checksum; written last
    damaged.jsonl        index lines that were set aside, with the reason
    lock                 held by the one writer

An episode exists when its index line does. Bytes behind the last indexed episode are the leftover of a crash and are
overwritten by the next append, so an interruption costs at most the episode, or the batch of them, then being written.

Whether an episode is held out may be said by its source. Else it follows from its own checksum, about one in ten, and
is written into its line: nothing that happens to other episodes moves it, and a copy in another store is held out there
too. Only where this would leave a store of three episodes or more with none, the one being appended is held out
whatever its checksum.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

import numpy as np

from worldmodel.data.index import HELD_OUT_EVERY, Entry, parse_index
from worldmodel.data.records import STEP, Item, check_fits, checksum, joined, short, to_records
from worldmodel.errors import BusyError, DataError
from worldmodel.types import Episode, Spec
from worldmodel.util.files import append_line, replace_text, take_lock, write_at

SHARD_BYTES = 512 * 2**20
ASIDE = "damaged.jsonl"
MOST_NAMED = 10  # damaged episodes at once, one line each; a lost shard may hold a thousand
HELD_OUT_FROM = 3  # episodes from which on at least one is held out
SOURCE = "source.yaml"  # settings of the source that a store was filled from, where it was
Split = Literal["train", "held_out", "all"]

log = logging.getLogger(__name__)


class EpisodeStore:
    """Episodes in a folder. Many may read while one writes; a reader sees what was there when it was opened.

    Use :meth:`open` to read, :meth:`writer` to append (as a context manager, it holds the lock until closed).
    Episodes are counted from 0 in the order of the index; damaged ones are left out of the count.
    """

    def __init__(self, path: Path, spec: Spec, lock: IO[str] | None = None):
        self.path = path
        self.spec = spec
        self.entries: list[Entry] = []
        self.damaged: list[str] = []  # what this object left out, one line each
        self._lock = lock
        self._maps: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._sound: set[Entry] = set()  # whose checksum was found right
        self._load()

    @classmethod
    def open(cls, path: str | Path) -> EpisodeStore:
        """An existing store, to read. Raises :class:`DataError` when there is none or its Spec is unreadable."""
        path = Path(path)
        return cls(path, _read_spec(path))

    @classmethod
    def writer(cls, path: str | Path, spec: Spec) -> EpisodeStore:
        """The store at ``path``, to append to; created if there is none.

        Raises :class:`DataError` when the store there holds data of another Spec, :class:`BusyError` when another
        process is writing.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise DataError(f"{path} is no folder, where episodes could be kept; choose another with data=…")
        path.mkdir(parents=True, exist_ok=True)
        lock = take_lock(path)
        if lock is None:
            raise BusyError(f"another process is writing to {path}; wait for it or choose another folder with data=…")
        try:
            if (path / "index.jsonl").exists():  # else it holds nothing yet
                _check_same(path, _read_spec(path), spec)
            else:
                replace_text(path / "spec.json", spec.to_json())
            return cls(path, spec, lock)
        except BaseException:
            lock.close()
            raise

    def __enter__(self) -> EpisodeStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the lock, if it is held. Reading stays possible."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def frame_counts(self) -> np.ndarray:
        """(E,) int64: T, the frames of every episode."""
        return np.array([entry.frames for entry in self.entries], np.int64)

    @property
    def frames(self) -> int:
        """Frames in all episodes together."""
        return sum(entry.frames for entry in self.entries)

    @property
    def steps(self) -> int:
        """Steps in all episodes together: each has one less than frames."""
        return self.frames - len(self)

    @property
    def keys(self) -> set[str]:
        """What the sources of the episodes call them; those that were played have no key."""
        return {entry.key for entry in self.entries if entry.key is not None}

    @property
    def next_number(self) -> int:
        """The number that the next appended episode gets; counts damaged ones too."""
        return self._next_number

    def split(self, name: Split) -> np.ndarray:
        """Indices of the episodes for training, of those held out, or of all. (n,) int64."""
        held_out = np.array([entry.held_out for entry in self.entries], bool)
        if name not in ("train", "held_out", "all"):
            raise DataError(f"unknown split {name!r}; choose train, held_out or all")
        wanted = {"train": ~held_out, "held_out": held_out, "all": np.ones_like(held_out)}[name]
        return np.flatnonzero(wanted)

    def episode(self, index: int) -> Episode:
        """Episode ``index``; its frames are a read-only view of the memory map.

        Raises :class:`DataError` for an index that does not exist and for an episode whose checksum is wrong.
        """
        if not 0 <= index < len(self):
            raise DataError(f"there is no episode {index} in {self.path}; it holds 0 to {len(self) - 1}")
        entry = self.entries[index]
        frames, records = self.read(index, 0, entry.frames)
        if entry not in self._sound:
            if checksum(frames, records) != entry.crc:
                raise DataError(
                    f"{self._describe(entry)} is damaged (wrong checksum); EpisodeStore.verify sets it aside"
                )
            self._sound.add(entry)
        return Episode(
            frames=frames,
            actions=records["action"].astype(np.int64),
            rewards=records["reward"].copy(),
            terminated=entry.terminated,
            truncated=entry.truncated,
        )

    def read(self, index: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames ``first`` to ``last`` (excluded) of an episode and their records, as views of the memory map.

        (n, C, *size) uint8 and (n,) of dtype :data:`STEP`. Only what is then read of the view is read from disk.
        """
        entry = self.entries[index]
        maps = self._maps.get(entry.shard)
        if maps is None:
            maps = self._maps[entry.shard] = self._map(entry.shard)
        part = slice(entry.offset + first, entry.offset + last)
        return maps[0][part], maps[1][part]

    def append(self, episode: Episode, held_out: bool | None = None, key: str | None = None) -> int:
        """Write one episode; returns its index. Raises as :meth:`extend` does, whose batch of one it is."""
        return self.extend([Item(episode, held_out, key)])[0]

    def extend(self, items: Sequence[Item]) -> range:
        """Write a batch of episodes, as fast as the disk takes their bytes; returns their indices.

        An interruption costs at most the batch. After any error nothing earlier is lost and appending may go on.
        Raises :class:`DataError`, before anything is written, for an episode that does not fit the Spec; OSError as the
        system raises it.
        """
        if self._lock is None:
            raise DataError(f"{self.path} is open for reading; EpisodeStore.writer opens it for writing")
        for item in items:
            check_fits(item.episode, self.spec)
        before = len(self)
        while rest := items[len(self) - before :]:
            shard, offset = self._place(rest[0].episode.frames.nbytes)
            ends = offset * self._frame_bytes + np.cumsum([item.episode.frames.nbytes for item in rest])
            self._write(rest[: max(1, int(np.searchsorted(ends, SHARD_BYTES, side="right")))], shard, offset)
        return range(before, len(self))

    def _write(self, items: Sequence[Item], shard: int, offset: int) -> None:
        """Frames, then records, then index lines of episodes that lie one behind another in a shard."""
        frames = [np.ascontiguousarray(item.episode.frames) for item in items]
        records = [to_records(item.episode) for item in items]
        crcs = [checksum(*parts) for parts in zip(frames, records, strict=True)]
        entries: list[Entry] = []
        any_held_out = any(entry.held_out for entry in self.entries)
        for item, crc in zip(items, crcs, strict=True):
            count = len(self) + len(entries) + 1
            lacking = count >= HELD_OUT_FROM and not any_held_out
            held_out = crc % HELD_OUT_EVERY == 0 or lacking if item.held_out is None else item.held_out
            any_held_out |= held_out
            entry = Entry(
                episode=self._next_number + len(entries),
                shard=shard,
                offset=entries[-1].end if entries else offset,
                length=item.episode.steps,
                terminated=item.episode.terminated,
                truncated=item.episode.truncated,
                crc=crc,
                held_out=held_out,
                key=item.key,
            )
            entries.append(entry)
        write_at(self._file(shard, "frames"), offset * self._frame_bytes, joined(frames))
        write_at(self._file(shard, "steps"), offset * STEP.itemsize, joined(records))
        append_line(self.path / "index.jsonl", "\n".join(entry.to_line() for entry in entries))
        self._maps.pop(shard, None)  # an older map may cover bytes that were a crash's leftover until now
        self.entries += entries
        self._next_number += len(entries)

    def verify(self, indices: Sequence[int] | None = None) -> list[str]:
        """Check sizes and checksums, of all episodes or of some; set the damaged ones aside.

        Returns a line for each, none if all is well. The indices of the episodes behind a damaged one move up. It reads
        at the speed of the disk; commands that go through a whole store do so first.
        """
        wanted = range(len(self)) if indices is None else indices
        found = self._missing(self.entries[index] for index in wanted)
        for index in wanted:
            entry = self.entries[index]
            self._sound.discard(entry)
            if entry in found:
                continue
            try:
                self.episode(index)
            except DataError:
                found[entry] = "wrong checksum"
        before = len(self.damaged)
        self._set_aside(found, 0)
        return self.damaged[before:]

    # ------------------------------------------------------------------------------------------------- the folder

    @property
    def _frame_bytes(self) -> int:
        return int(np.prod(self.spec.frame_shape))

    def _file(self, shard: int, kind: str) -> Path:
        return self.path / f"shard-{shard:05d}.{kind}"

    def _describe(self, entry: Entry) -> str:
        return f"episode {entry.episode} in {self._file(entry.shard, 'frames')}"

    def _map(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        frames: np.ndarray = np.memmap(self._file(shard, "frames"), np.uint8, "r")
        whole = len(frames) // self._frame_bytes
        frames = frames[: whole * self._frame_bytes].reshape(whole, *self.spec.frame_shape)
        return frames.view(np.ndarray), np.fromfile(self._file(shard, "steps"), STEP)

    def _load(self) -> None:
        """Read the index; leave out the entries whose bytes are not all there."""
        index = self.path / "index.jsonl"
        raw = index.read_bytes() if index.exists() else b""
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw) and self._lock is not None:  # a line cut by a crash: its episode was never there
            os.truncate(index, whole)
        self.entries, unreadable = parse_index(raw[:whole])
        aside = self.path / ASIDE
        lost = len(aside.read_bytes().splitlines()) if aside.exists() else 0
        known = max((entry.episode + 1 for entry in self.entries), default=0)
        self._next_number = max(known, len(self.entries) + len(unreadable) + lost)
        self._set_aside(self._missing(self.entries), len(unreadable))

    def _missing(self, entries: Iterable[Entry]) -> dict[Entry, str]:
        """Those whose bytes are not all there, and why, from the sizes of their files alone: one look at each file."""
        found: dict[Entry, str] = {}
        frames: dict[tuple[int, str], int] = {}  # how many are whole in each file; -1 where there is none
        sizes = {"frames": self._frame_bytes, "steps": STEP.itemsize}
        for entry in entries:
            for kind, size in sizes.items():
                if (place := (entry.shard, kind)) not in frames:
                    file = self._file(*place)
                    frames[place] = file.stat().st_size // size if file.exists() else -1
                if frames[place] < entry.end:
                    how = "missing" if frames[place] < 0 else "cut off"
                    found.setdefault(entry, f"{self._file(*place).name} is {how}")
        return found

    def _set_aside(self, found: dict[Entry, str], unreadable: int) -> None:
        """Leave damaged entries out, say so, and move their lines to damaged.jsonl where the folder lets us."""
        if not found and not unreadable:
            return
        reports = [f"{self._describe(entry)}: {reason}" for entry, reason in found.items()]
        if unreadable:
            reports.append(f"{self.path / 'index.jsonl'}: unreadable lines: {unreadable}")
        for report in reports[:MOST_NAMED]:
            log.warning("damaged data left out: %s", report)
        if len(reports) > MOST_NAMED:
            log.warning("damaged data left out: %d more; %s lists them", len(reports) - MOST_NAMED, self.path / ASIDE)
        self.damaged += reports
        self.entries = [entry for entry in self.entries if entry not in found]
        with contextlib.suppress(OSError):  # a folder that may only be read stays as it is
            lock = self._lock or take_lock(self.path)
            if lock is None:  # someone is writing: the next writer sets them aside
                return
            try:
                self._move_lines(found)
            finally:
                if lock is not self._lock:
                    lock.close()

    def _move_lines(self, found: dict[Entry, str]) -> None:
        """Under the lock: the index as it is now, without the damaged entries, which go to damaged.jsonl first."""
        index = self.path / "index.jsonl"
        entries, unreadable = parse_index(index.read_bytes())
        lines = [
            json.dumps({**dataclasses.asdict(entry), "reason": found[entry]}) for entry in entries if entry in found
        ]
        lines += [json.dumps({"line": line, "reason": "unreadable"}) for line in unreadable]
        if lines:
            append_line(self.path / ASIDE, "\n".join(lines))
            kept = [entry.to_line() + "\n" for entry in entries if entry not in found]
            replace_text(index, "".join(kept))

    def _place(self, size: int) -> tuple[int, int]:
        """Shard and offset (in frames) for ``size`` bytes of frames: behind the last episode, or in a new shard."""
        if not self.entries:
            return 0, 0
        last = self.entries[-1]
        if last.end * self._frame_bytes + size > SHARD_BYTES:
            return last.shard + 1, 0
        return last.shard, last.end


def _read_spec(path: Path) -> Spec:
    file = path / "spec.json"
    remedy = f"copy {file.name} from a run that was trained on it, or choose another folder with data=…"
    if not file.exists() and (path / "index.jsonl").exists():
        raise DataError(f"{file} is missing; {remedy}")
    if not file.exists():
        raise DataError(f"no data at {path}; python -m worldmodel.collect data={path} records some")
    try:
        return Spec.from_json(file.read_text())
    except (DataError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is damaged: {error}; {remedy}") from error


def _check_same(path: Path, there: Spec, wanted: Spec) -> None:
    """Raises :class:`DataError` naming the first field in which two Specs differ."""
    for field in dataclasses.fields(Spec):
        old, new = (json.loads(spec.to_json())[field.name] for spec in (there, wanted))
        if old != new:
            raise DataError(
                f"{path} holds data with {field.name} {short(old)}, not {short(new)}; choose another folder with data=…"
            )
