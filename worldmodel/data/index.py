"""The index of a store: one JSON line an episode."""

from __future__ import annotations

import dataclasses
import json

HELD_OUT_EVERY = 10
"""One episode in so many is held out, on the average."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the index."""

    episode: int  # number of the episode, never given twice
    shard: int
    offset: int  # frames of the shard before this episode's first
    length: int  # T steps; the shard holds T + 1 frames and records of it
    terminated: bool
    truncated: bool
    crc: int  # CRC-32 of the episode's frames, then its records
    held_out: bool  # never trained on; decided once, when the episode is written

    @property
    def end(self) -> int:
        """Frames of the shard up to this episode's last, included."""
        return self.offset + self.length + 1

    @classmethod
    def from_line(cls, line: str) -> Entry:
        """Raises ValueError, KeyError or TypeError for a line that is not a whole entry."""
        raw = json.loads(line)
        # Stores without this field held out every tenth episode, and runs were trained on the others.
        raw.setdefault("held_out", raw["episode"] % HELD_OUT_EVERY == HELD_OUT_EVERY - 1)
        entry = cls(**{field.name: raw[field.name] for field in dataclasses.fields(cls)})
        numbers = (entry.episode, entry.shard, entry.offset, entry.length, entry.crc)
        if not all(isinstance(number, int) and number >= 0 for number in numbers) or entry.length < 1:
            raise ValueError("a number is missing or negative")
        if not isinstance(entry.held_out, bool):
            raise ValueError("held_out is neither true nor false")
        return entry


def parse_index(index: bytes) -> tuple[list[Entry], list[str]]:
    """The entries of an index, and the lines that are none."""
    entries: list[Entry] = []
    unreadable: list[str] = []
    for line in index.decode("utf-8", "replace").splitlines():
        try:
            entries.append(Entry.from_line(line))
        except (ValueError, KeyError, TypeError):
            unreadable.append(line)
    return entries, unreadable
