"""The formats of a store: binary shards of frames and records, the index with one line for each episode, and the Spec;
the choice of the episodes that are held out."""

import dataclasses
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from worldmodel.data.validate import short
from worldmodel.errors import DataError
from worldmodel.types import Episode, Spec
from worldmodel.util.files import append_line, as_bytes, replace_text, write_at

STEP = np.dtype([("action", "<i4"), ("reward", "<f4")])
"""The record of a frame: the action that led to it (at index 0 the condition) and the reward received on arriving."""

HELD_OUT_EVERY = 10  # one episode in so many is held out, on average
HELD_OUT_FROM = 3  # number of episodes from which at least one is held out
SHARD_BYTES = 512 * 2**20
CHECK = "check"  # field of an index line: the CRC-32 of the other fields


class Item(NamedTuple):
    """An episode to append, with its split and key."""

    episode: Episode
    held_out: bool | None = None  # None: depends on its checksum
    key: str | None = None  # in :attr:`EpisodeStore.keys`


def to_records(episode: Episode) -> np.ndarray:
    """(T,) of dtype :data:`STEP`."""
    records = np.zeros(len(episode.frames), STEP)
    records["action"], records["reward"] = episode.actions, episode.rewards
    return records


def checksum(frames: np.ndarray, records: np.ndarray) -> int:
    """CRC-32 of an episode's frames, then its records."""
    return zlib.crc32(as_bytes(records), zlib.crc32(as_bytes(frames)))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the index."""

    episode: int  # number of the episode, unique
    shard: int
    offset: int  # frames of the shard before this episode's first
    length: int  # steps, 0 for an image; the shard has length + 1 frames and records
    terminated: bool
    truncated: bool
    crc: int  # CRC-32 of the episode's frames, then its records
    held_out: bool  # not used for training; decided when the episode is written
    key: str | None = None  # in its source; None for recorded episodes

    @property
    def frames(self) -> int:
        """T, the number of frames of the episode."""
        return self.length + 1

    @property
    def end(self) -> int:
        """Offset in frames after this episode."""
        return self.offset + self.frames

    def to_line(self) -> str:
        """Inverse of :meth:`from_line`, without a line break."""
        fields = {name: value for name, value in vars(self).items() if (name, value) != ("key", None)}
        return json.dumps({**fields, CHECK: _check(fields)})

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Raises ValueError, KeyError or TypeError for an invalid line."""
        raw = json.loads(line)
        # Older lines have no checksum, and then no field that is not known here.
        if (check := raw.pop(CHECK, None)) is not None and check != _check(raw):
            raise ValueError("wrong checksum")
        # Stores without this field held out every tenth episode.
        raw.setdefault("held_out", raw["episode"] % HELD_OUT_EVERY == HELD_OUT_EVERY - 1)
        names = {field.name for field in dataclasses.fields(cls)}
        if check is None and set(raw) - names:
            raise ValueError("an unknown field")
        entry = cls(**{name: value for name, value in raw.items() if name in names})
        numbers = (entry.episode, entry.shard, entry.offset, entry.length, entry.crc)
        whole = all(isinstance(number, int) and number >= 0 for number in numbers)
        if not (whole and isinstance(entry.held_out, bool) and isinstance(entry.key, (str, type(None)))):
            raise ValueError("a field is of another type, or negative")
        return entry


def _check(fields: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(fields).encode())


def read_spec(path: Path, wanted: Spec | None = None) -> Spec:
    """The Spec of the store in a folder.

    Raises :class:`DataError` when it is missing or damaged, or, naming the first field, when it is not the one wanted.
    """
    file = path / "spec.json"
    remedy = f"copy {file.name} from a run that was trained on it, or choose another folder with data=…"
    if not file.exists() and (path / "index.jsonl").exists():
        raise DataError(f"{file} is missing; {remedy}")
    if not file.exists():
        raise DataError(f"no data at {path}; python -m worldmodel.collect data={path} records some")
    try:
        spec = Spec.from_json(file.read_text())
    except (DataError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is damaged: {error}; {remedy}") from error
    there, expected = (json.loads((each or spec).to_json()) for each in (spec, wanted))
    for name in (field.name for field in dataclasses.fields(Spec)):
        if there[name] != expected[name]:
            data = f"{path} holds data with {name} {short(there[name])}, not {short(expected[name])}"
            raise DataError(f"{data}; choose another folder with data=…")
    return spec


class Shards:
    """The files ``shard-NNNNN.frames`` and ``shard-NNNNN.steps`` of a folder. Offsets are counted in frames."""

    def __init__(self, path: Path, frame_shape: tuple[int, ...]):
        self.path, self.frame_shape = path, frame_shape
        self.frame_bytes = int(np.prod(frame_shape))
        self.item_bytes = {"frames": self.frame_bytes, "steps": STEP.itemsize}
        self._maps: dict[int, np.ndarray] = {}
        self._records: dict[int, np.ndarray] = {}

    def file(self, shard: int, kind: str) -> Path:
        return self.path / f"shard-{shard:05d}.{kind}"

    def read(self, entry: Entry, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames ``first`` to ``last`` (excluded) of an episode and their records, as views of the memory map."""
        if entry.shard not in self._maps:
            self._maps[entry.shard] = self._map_frames(entry.shard)
        rows = slice(entry.offset + first, entry.offset + last)
        return self._maps[entry.shard][rows], self.records(entry)[first:last]

    def records(self, entry: Entry) -> np.ndarray:
        """The records of an episode."""
        if entry.shard not in self._records:
            self._records[entry.shard] = np.fromfile(self.file(entry.shard, "steps"), STEP)
        return self._records[entry.shard][entry.offset : entry.end]

    def prefetch(self, shards: Iterable[int]) -> None:
        """Prepare shards that will be read together; those of a folder need nothing."""

    def size(self, shard: int, kind: str) -> int | None:
        """Bytes of a file, or None if it is missing."""
        file = self.file(shard, kind)
        return file.stat().st_size if file.exists() else None

    def write(self, shard: int, offset: int, frames: list[np.ndarray], records: list[np.ndarray]) -> None:
        """Write consecutive episodes, starting at ``offset``."""
        for kind, arrays in (("frames", frames), ("steps", records)):
            joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)  # a single one is not copied
            write_at(self.file(shard, kind), offset * self.item_bytes[kind], joined)
        self._maps.pop(shard, None)  # an older map may cover overwritten bytes
        self._records.pop(shard, None)

    def place(self, last: Entry | None, sizes: Sequence[int]) -> tuple[int, int, int]:
        """Shard and offset for episodes of ``sizes`` bytes of frames, and how many of them fit there, at least one.

        They follow the ``last`` episode of the store, or begin a new shard if the first one does not fit.
        """
        shard, offset = (0, 0) if last is None else (last.shard, last.end)
        if last is not None and offset * self.frame_bytes + sizes[0] > SHARD_BYTES:
            shard, offset = last.shard + 1, 0
        ends = offset * self.frame_bytes + np.cumsum(sizes)
        return shard, offset, max(1, int(np.searchsorted(ends, SHARD_BYTES, side="right")))

    def missing(self, entries: Iterable[Entry]) -> dict[Entry, str]:
        """Entries whose files are missing or too short, with the reason."""
        missing: dict[Entry, str] = {}
        frames: dict[tuple[int, str], int] = {}  # number in each file; -1 for a missing file
        for entry in entries:
            for kind, size in self.item_bytes.items():
                if (place := (entry.shard, kind)) not in frames:
                    length = self.size(*place)
                    frames[place] = -1 if length is None else length // size
                if frames[place] < entry.end:
                    how = "missing" if frames[place] < 0 else "cut off"
                    missing.setdefault(entry, f"{self.file(*place).name} is {how}")
        return missing

    def goes_on_behind(self, last: Entry | None) -> bool:
        """Whether there are bytes behind the ``last`` episode of a store; None: it has none."""
        shard, end = (0, 0) if last is None else (last.shard, last.end)
        longer = (self.size(shard, "frames") or 0) > end * self.frame_bytes
        return longer or self.file(shard + 1, "frames").exists()

    def _map_frames(self, shard: int) -> np.ndarray:
        frames: np.ndarray = np.memmap(self.file(shard, "frames"), np.uint8, "r")
        whole = len(frames) // self.frame_bytes
        frames = frames[: whole * self.frame_bytes].reshape(whole, *self.frame_shape)
        return frames.view(np.ndarray)


class Index:
    """``index.jsonl`` of a folder, and ``damaged.jsonl``, to which lines of damaged episodes are moved."""

    def __init__(self, path: Path):
        self.file, self.aside = path / "index.jsonl", path / "damaged.jsonl"

    def read(self, writing: bool) -> tuple[list[Entry], int, int]:
        """The entries, the number of unreadable lines, and the number of the next episode.

        If ``writing``, a last line without a line break, which was cut by a crash, is removed; else it is ignored.
        """
        raw = self.file.read_bytes() if self.file.exists() else b""
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw) and writing:
            os.truncate(self.file, whole)
        entries, unreadable = _parse(raw[:whole])
        lost = len(self.aside.read_bytes().splitlines()) if self.aside.exists() else 0
        after_last = max((entry.episode + 1 for entry in entries), default=0)
        return entries, len(unreadable), max(after_last, len(entries) + len(unreadable) + lost)

    def append(self, entries: Sequence[Entry]) -> None:
        """Append the lines of new episodes, or none of them."""
        append_line(self.file, "\n".join(entry.to_line() for entry in entries))

    def set_aside(self, damaged: Mapping[Entry, str]) -> None:
        """Move the unreadable lines and those of damaged entries, with the reasons. Requires the writer's lock."""
        entries, unreadable = _parse(self.file.read_bytes())
        lines = [json.dumps({**vars(entry), "reason": damaged[entry]}) for entry in entries if entry in damaged]
        lines += [json.dumps({"line": line, "reason": "unreadable"}) for line in unreadable]
        if lines:
            append_line(self.aside, "\n".join(lines))
            kept = [entry.to_line() + "\n" for entry in entries if entry not in damaged]
            replace_text(self.file, "".join(kept))


def _parse(index: bytes) -> tuple[list[Entry], list[str]]:
    """The entries of an index, and its invalid lines."""
    entries: list[Entry] = []
    unreadable: list[str] = []
    for line in index.decode("utf-8", "replace").splitlines():
        try:
            entries.append(Entry.from_line(line))
        except (ValueError, KeyError, TypeError):
            unreadable.append(line)
    return entries, unreadable


def new_entries(
    before: Sequence[Entry], items: Sequence[Item], crcs: Sequence[int], first: int, shard: int, offset: int
) -> list[Entry]:
    """Entries of consecutive episodes in a shard, which are numbered from ``first`` and follow those ``before``."""
    entries: list[Entry] = []
    any_held_out = any(entry.held_out for entry in before)
    any_training = any(not entry.held_out for entry in before)
    for number, (item, crc) in enumerate(zip(items, crcs, strict=True)):
        needed = len(before) + number + 1 >= HELD_OUT_FROM and not any_held_out
        by_checksum = any_training and (crc % HELD_OUT_EVERY == 0 or needed)
        held_out = by_checksum if item.held_out is None else bool(item.held_out)
        any_held_out |= held_out
        any_training |= not held_out
        begin, episode = entries[-1].end if entries else offset, item.episode
        ends = bool(episode.terminated), bool(episode.truncated)
        entries.append(Entry(first + number, shard, begin, episode.steps, *ends, crc, held_out, item.key))
    return entries
