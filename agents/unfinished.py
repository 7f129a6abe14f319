"""Stores the finished episodes of an evaluation on disk, so that it can be resumed after an interruption."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from worldmodel.agents.playing import PlayedEpisode
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import BusyError
from worldmodel.types import Spec

UNFINISHED = "unfinished"


class UnfinishedEvaluation:
    """The finished episodes of an evaluation, in a separate folder until :meth:`discard`.

    Args:
        folder: of the evaluation, ``<run>/agents/<name>``; the episodes are in ``<run>/unfinished/<name>-…``.
        spec: of the environment.
        settings: environment, agent and seed, as JSON. Other settings have another folder.

    Raises :class:`BusyError` if another process runs the same evaluation.
    """

    def __init__(self, folder: Path, spec: Spec, settings: dict[str, Any]):
        text = json.dumps([json.loads(spec.to_json()), settings], sort_keys=True)
        name = f"{folder.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        self.folder = folder.parents[1] / UNFINISHED / name
        try:
            self._store = EpisodeStore.writer(self.folder, spec)
        except BusyError as error:
            raise BusyError(
                f"another process runs the same evaluation for {folder}; wait for it, or choose another --name"
            ) from error
        self._store.verify()  # damaged episodes are removed and played again

    def __enter__(self) -> UnfinishedEvaluation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()

    def __iter__(self) -> Iterator[PlayedEpisode]:
        """The stored episodes, in the order of :meth:`add`."""
        for index, entry in enumerate(self._store.entries):
            if match := re.fullmatch(r"(\d+) in (\S+) s", entry.key or ""):
                yield PlayedEpisode(int(match[1]), self._store.episode(index), float(match[2]))

    def add(self, played: PlayedEpisode) -> None:
        """Store an episode."""
        self._store.append(played.episode, held_out=False, key=f"{played.number} in {played.seconds!r} s")

    def discard(self) -> None:
        """Remove the folder after the evaluation has been written."""
        (self.folder / "index.jsonl").unlink(missing_ok=True)  # first, because a folder without it is not a store
        shutil.rmtree(self.folder, ignore_errors=True)
        self._store.close()
        if not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()
