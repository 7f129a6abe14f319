"""The text files of a store: its index, with a JSON line per episode, and its Spec."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from worldmodel.data.records import short
from worldmodel.errors import DataError
from worldmodel.types import Spec

HELD_OUT_EVERY = 10
"""One episode in so many is held out, on average."""


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
        fields = {name: getattr(self, name) for name in _FIELDS}
        if self.key is None:
            del fields["key"]
        return json.dumps(fields)

    @classmethod
    def from_line(cls, line: str) -> Entry:
        """Raises ValueError, KeyError or TypeError for an invalid line."""
        raw = json.loads(line)
        # Stores without this field held out every tenth episode.
        raw.setdefault("held_out", raw["episode"] % HELD_OUT_EVERY == HELD_OUT_EVERY - 1)
        raw.setdefault("key", None)
        entry = cls(**{name: raw[name] for name in _FIELDS})
        numbers = (entry.episode, entry.shard, entry.offset, entry.length, entry.crc)
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("a number is missing or negative")
        if not isinstance(entry.held_out, bool):
            raise ValueError("held_out is neither true nor false")
        if not isinstance(entry.key, (str, type(None))):
            raise ValueError("the key is not a text")
        return entry


_FIELDS = tuple(field.name for field in dataclasses.fields(Entry))


def parse_index(index: bytes) -> tuple[list[Entry], list[str]]:
    """The entries of an index, and its invalid lines."""
    entries: list[Entry] = []
    unreadable: list[str] = []
    for line in index.decode("utf-8", "replace").splitlines():
        try:
            entries.append(Entry.from_line(line))
        except (ValueError, KeyError, TypeError):
            unreadable.append(line)
    return entries, unreadable


def read_spec(path: Path) -> Spec:
    """The Spec of the store in a folder. Raises :class:`DataError` when it is missing or damaged."""
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


def check_same_spec(path: Path, there: Spec, wanted: Spec) -> None:
    """Raises :class:`DataError` naming the first field in which two Specs differ."""
    for field in dataclasses.fields(Spec):
        old, new = (json.loads(spec.to_json())[field.name] for spec in (there, wanted))
        if old != new:
            raise DataError(
                f"{path} holds data with {field.name} {short(old)}, not {short(new)}; choose another folder with data=…"
            )
