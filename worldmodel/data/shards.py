"""The binary files of a store: consecutive frames and records of episodes, read through memory maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from worldmodel.data.index import Entry
from worldmodel.data.records import STEP, joined
from worldmodel.util.files import write_at

SHARD_BYTES = 512 * 2**20


class Shards:
    """The files ``shard-NNNNN.frames`` and ``shard-NNNNN.steps`` of a folder. Offsets are counted in frames."""

    def __init__(self, path: Path, frame_shape: tuple[int, ...]):
        self.path, self.frame_shape = path, frame_shape
        self.frame_bytes = int(np.prod(frame_shape))
        self._maps: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def file(self, shard: int, kind: str) -> Path:
        return self.path / f"shard-{shard:05d}.{kind}"

    def read(self, entry: Entry, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames ``first`` to ``last`` (excluded) of an episode and their records, as views of the memory map."""
        maps = self._maps.get(entry.shard)
        if maps is None:
            maps = self._maps[entry.shard] = self._map(entry.shard)
        part = slice(entry.offset + first, entry.offset + last)
        return maps[0][part], maps[1][part]

    def write(self, shard: int, offset: int, frames: list[np.ndarray], records: list[np.ndarray]) -> None:
        """Write consecutive episodes, starting at ``offset``."""
        write_at(self.file(shard, "frames"), offset * self.frame_bytes, joined(frames))
        write_at(self.file(shard, "steps"), offset * STEP.itemsize, joined(records))

    def forget(self, shard: int) -> None:
        """Map a shard again at the next read, because an older map may cover overwritten bytes."""
        self._maps.pop(shard, None)

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
        sizes = {"frames": self.frame_bytes, "steps": STEP.itemsize}
        for entry in entries:
            for kind, size in sizes.items():
                if (place := (entry.shard, kind)) not in frames:
                    file = self.file(*place)
                    frames[place] = file.stat().st_size // size if file.exists() else -1
                if frames[place] < entry.end:
                    how = "missing" if frames[place] < 0 else "cut off"
                    missing.setdefault(entry, f"{self.file(*place).name} is {how}")
        return missing

    def _map(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        frames: np.ndarray = np.memmap(self.file(shard, "frames"), np.uint8, "r")
        whole = len(frames) // self.frame_bytes
        frames = frames[: whole * self.frame_bytes].reshape(whole, *self.frame_shape)
        return frames.view(np.ndarray), np.fromfile(self.file(shard, "steps"), STEP)
