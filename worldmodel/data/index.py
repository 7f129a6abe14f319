"""The index of a store, one line for each episode, and the choice of the episodes that are held out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from worldmodel.data.records import HELD_OUT_EVERY, Entry, Item
from worldmodel.util.files import append_line, replace_text

HELD_OUT_FROM = 3  # number of episodes from which at least one is held out


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
