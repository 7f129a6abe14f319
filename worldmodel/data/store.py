"""Episodes on disk, as raw memory-mapped shards that survive being killed at any moment.

A store is a folder::

    spec.json            the Spec of the data
    shard-00000.frames   uint8 frames of all episodes of the shard, one after another: T + 1 of each
    shard-00000.steps    one record a frame: the action that led to it (-1 at the first) and the reward on arriving
    index.jsonl          one line an episode: where it lies, its length, flags and checksum; written last
    damaged.jsonl        index lines that were set aside, with the reason
    lock                 held by the one writer

An episode exists when its index line does. Bytes behind the last indexed episode are the leftover of a crash and are
overwritten by the next append, so an interruption costs at most the episode then being written.

Whether an episode is held out follows from its own checksum, about one in ten, and is written into its line: nothing
that happens to other episodes moves it, and a copy in another store is held out there too. Only where this would leave
a store of three episodes or more with none, the one being appended is held out whatever its checksum.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import numpy as np

from worldmodel.data.index import HELD_OUT_EVERY, Entry, parse_index
from worldmodel.errors import DataError
from worldmodel.files import append_line, as_bytes, replace_text, take_lock, write_at
from worldmodel.types import NO_ACTION, Episode, Spec

STEP = np.dtype([("action", "<i4"), ("reward", "<f4")])
SHARD_BYTES = 512 * 2**20
ASIDE = "damaged.jsonl"
MOST_NAMED = 10  # damaged episodes at once, one line each; a lost shard may hold a thousand
HELD_OUT_FROM = 3  # episodes from which on at least one is held out
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

        Raises :class:`DataError` when the store there holds data of another Spec, or another process is writing.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise DataError(f"{path} is no folder, where episodes could be kept; choose another with data=…")
        path.mkdir(parents=True, exist_ok=True)
        lock = take_lock(path)
        if lock is None:
            raise DataError(f"another process is writing to {path}; wait for it or choose another folder with data=…")
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
    def lengths(self) -> np.ndarray:
        """(E,) int64: steps T of every episode; an episode has one frame more."""
        return np.array([entry.length for entry in self.entries], np.int64)

    @property
    def steps(self) -> int:
        """Steps in all episodes together."""
        return sum(entry.length for entry in self.entries)

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
        frames, records = self.read(index, 0, entry.length + 1)
        if entry not in self._sound:
            if _checksum(frames, records) != entry.crc:
                raise DataError(
                    f"{self._describe(entry)} is damaged (wrong checksum); EpisodeStore.verify sets it aside"
                )
            self._sound.add(entry)
        return Episode(
            frames=frames,
            actions=records["action"][1:].astype(np.int64),
            rewards=records["reward"][1:].copy(),
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

    def append(self, episode: Episode) -> int:
        """Write one episode; returns its index. After any error nothing earlier is lost and appending may go on.

        Raises :class:`DataError` for an episode that does not fit the Spec, OSError as the system raises it.
        """
        if self._lock is None:
            raise DataError(f"{self.path} is open for reading; EpisodeStore.writer opens it for writing")
        _check_fits(episode, self.spec)
        length = len(episode)
        frames = np.ascontiguousarray(episode.frames)
        records = np.empty(length + 1, STEP)
        records["action"] = np.concatenate([[NO_ACTION], episode.actions])
        records["reward"] = np.concatenate([[0.0], episode.rewards])
        shard, offset = self._place(frames.nbytes)
        write_at(self._file(shard, "frames"), offset * self._frame_bytes, frames)
        write_at(self._file(shard, "steps"), offset * STEP.itemsize, records)
        crc = _checksum(frames, records)
        entry = Entry(
            episode=self._next_number,
            shard=shard,
            offset=offset,
            length=length,
            terminated=episode.terminated,
            truncated=episode.truncated,
            crc=crc,
            held_out=crc % HELD_OUT_EVERY == 0 or self._lacks_held_out(),
        )
        append_line(self.path / "index.jsonl", json.dumps(dataclasses.asdict(entry)))
        self._maps.pop(shard, None)  # an older map may cover bytes that were a crash's leftover until now
        self.entries.append(entry)
        self._next_number += 1
        return len(self) - 1

    def verify(self, indices: Sequence[int] | None = None) -> list[str]:
        """Check sizes and checksums, of all episodes or of some; set the damaged ones aside.

        Returns a line for each, none if all is well. The indices of the episodes behind a damaged one move up. It reads
        at the speed of the disk; commands that go through a whole store do so first.
        """
        found: dict[Entry, str] = {}
        for index in range(len(self)) if indices is None else indices:
            entry = self.entries[index]
            self._sound.discard(entry)
            if reason := self._missing(entry):
                found[entry] = reason
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
        found = {entry: reason for entry in self.entries if (reason := self._missing(entry))}
        self._set_aside(found, len(unreadable))

    def _missing(self, entry: Entry) -> str | None:
        """Why the bytes of an entry cannot be read, from the sizes of its files alone; None if they are there."""
        for kind, size in (("frames", self._frame_bytes), ("steps", STEP.itemsize)):
            file = self._file(entry.shard, kind)
            if not file.exists():
                return f"{file.name} is missing"
            if file.stat().st_size < entry.end * size:
                return f"{file.name} is cut off"
        return None

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
            kept = [json.dumps(dataclasses.asdict(entry)) + "\n" for entry in entries if entry not in found]
            replace_text(index, "".join(kept))

    def _lacks_held_out(self) -> bool:
        """Whether the next episode has to be held out, because none is."""
        return len(self) + 1 >= HELD_OUT_FROM and not any(entry.held_out for entry in self.entries)

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
                f"{path} holds data with {field.name} {_short(old)}, not {_short(new)}; "
                "choose another folder with data=…"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "…"


def _check_fits(episode: Episode, spec: Spec) -> None:
    length = len(episode)
    expected = (length + 1, *spec.frame_shape)
    if length < 1 or episode.frames.shape != expected or episode.frames.dtype != np.uint8:
        raise DataError(
            f"an episode of {length} steps needs uint8 frames {expected} and at least one step; "
            f"got {episode.frames.dtype} {episode.frames.shape}"
        )
    if len(episode.rewards) != length:
        raise DataError(f"an episode of {length} steps has {len(episode.rewards)} rewards")
    if episode.actions.min() < 0 or episode.actions.max() >= len(spec.action_names):
        raise DataError(f"actions must be in [0, {len(spec.action_names)}), one of {', '.join(spec.action_names)}")


def _checksum(frames: np.ndarray, records: np.ndarray) -> int:
    return zlib.crc32(as_bytes(records), zlib.crc32(as_bytes(frames)))
