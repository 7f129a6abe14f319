"""Episodes of an evaluation that is not finished, on disk: one that was interrupted goes on where it stopped."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from agents.playing import Played
from worldmodel.data.store import EpisodeStore
from worldmodel.files import replace_text
from worldmodel.types import Spec


class Kept:
    """The finished episodes of an evaluation, in a folder of their own until :meth:`discard`.

    Args:
        folder: where they lie. spec: of the environment.
        terms: what was played, by whom and under which seed, as JSON. Episodes kept under other terms are removed.

    Raises :class:`DataError` when another process plays for the same folder.
    """

    def __init__(self, folder: Path, spec: Spec, terms: dict[str, Any]):
        self.folder = folder
        said, path = json.dumps(terms, sort_keys=True, indent=1), folder / "terms.json"
        if path.is_file() and path.read_text() != said:
            shutil.rmtree(folder)
        self._store = EpisodeStore.writer(folder, spec)
        replace_text(path, said)

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
        self._store.close()
        shutil.rmtree(self.folder)
