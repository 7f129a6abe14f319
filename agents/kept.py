"""Episodes of an evaluation that is not finished, on disk: one that was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from worldmodel.agents.playing import Played

from worldmodel.data.store import EpisodeStore
from worldmodel.errors import BusyError
from worldmodel.types import Spec

UNFINISHED = "unfinished"


class Kept:
    """The finished episodes of an evaluation, in a folder of their own until :meth:`discard`.

    Args:
        folder: where the evaluation will lie, ``<run>/agents/<name>``; they lie in ``<run>/unfinished/<name>-…``.
        spec: of the environment.
        terms: what is played, by whom and under which seed, as JSON. Under other terms there is another folder.

    Raises :class:`BusyError` when another process plays the same.
    """

    def __init__(self, folder: Path, spec: Spec, terms: dict[str, Any]):
        said = json.dumps([json.loads(spec.to_json()), terms], sort_keys=True)
        name = f"{folder.name}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
        self.folder = folder.parents[1] / UNFINISHED / name
        try:
            self._store = EpisodeStore.writer(self.folder, spec)
        except BusyError as error:
            raise BusyError(
                f"another process plays the same for {folder}; wait for it, or tell them apart by --name"
            ) from error
        self._store.verify()  # what is damaged is played again

    def __enter__(self) -> Kept:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()

    def __iter__(self) -> Iterator[Played]:
        """What is kept, in the order of :meth:`keep`."""
        for index, entry in enumerate(self._store.entries):
            if found := re.fullmatch(r"(\d+) in (\S+) s", entry.key or ""):
                yield Played(int(found[1]), self._store.episode(index), float(found[2]))

    def keep(self, played: Played) -> None:
        """Write an episode, so that it outlives this process."""
        self._store.append(played.episode, held_out=False, key=f"{played.number} in {played.seconds!r} s")

    def discard(self) -> None:
        """Remove all, when what it was kept for is written."""
        (self.folder / "index.jsonl").unlink(missing_ok=True)  # first: without it the rest is no store
        shutil.rmtree(self.folder, ignore_errors=True)
        self._store.close()
        if not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()
