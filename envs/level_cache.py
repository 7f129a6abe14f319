"""Compiled maps of DeepMind Lab on disk: a level that compiles maps at its resets compiles each but once."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

log = logging.getLogger(__name__)


def default_folder() -> Path:
    """The user's cache: ``$XDG_CACHE_HOME/worldmodel/dmlab``, or ``~/.cache/worldmodel/dmlab``."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of XDG says to ignore a relative path.
    root = given if os.path.isabs(given) else os.path.expanduser("~/.cache")
    return Path(root, "worldmodel", "dmlab")


class LevelCache:
    """What ``deepmind_lab.Lab(level_cache=…)`` asks for: one file a key in ``folder``, which any process may share.

    A cache that cannot be read or written costs time, never an episode: an exception in here would come out of
    ``Lab.reset``. Files may be deleted at any moment.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._warned = False

    def fetch(self, key: str, path: str) -> bool:
        """Copy the map of a key to ``path``; False where there is none, or a damaged one."""
        kept = self._file(key)
        try:
            if not zipfile.is_zipfile(kept):  # a map is a pk3, which is a zip: half of one has no table of contents
                return False
            shutil.copyfile(kept, path)
            return True
        except OSError as error:
            self._warn(error)
            return False

    def write(self, key: str, path: str) -> None:
        """Keep the map at ``path`` under a key, whole or not at all."""
        part: str | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # A name of its own for every write: two environments of one process may compile the same map.
            descriptor, part = tempfile.mkstemp(prefix=".", suffix=".part", dir=self.folder)
            os.close(descriptor)
            shutil.copyfile(path, part)
            os.replace(part, self._file(key))
            part = None
        except OSError as error:
            self._warn(error)
        finally:
            if part is not None:
                Path(part).unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        # Keys are a map's name and a checksum. One that is no plain name must not lead out of the folder.
        plain = re.fullmatch(r"\w[\w.-]{0,200}", key, re.ASCII)
        return self.folder / (key if plain else hashlib.sha256(key.encode()).hexdigest())

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            log.warning("the level cache %s cannot be used: %s; maps are compiled again", self.folder, error)
        self._warned = True
