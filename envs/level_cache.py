"""A cache of the maps that DeepMind Lab compiles."""

import hashlib
import io
import logging
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path

log = logging.getLogger(__name__)


def default_folder() -> Path:
    """The user's cache: ``$XDG_CACHE_HOME/worldmodel/dmlab``, or ``~/.cache/worldmodel/dmlab``."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # According to the XDG specification, a relative path is ignored.
    return Path(given if os.path.isabs(given) else os.path.expanduser("~/.cache"), "worldmodel", "dmlab")


class LevelCache:
    """The interface of ``deepmind_lab.Lab(level_cache=…)``: one file per key in ``folder``, shared by all processes.

    A cache that cannot be read or written only costs time: no exception is raised, because it would end ``Lab.reset``.
    Files can be deleted at any time.
    """

    def __init__(self, folder: Path):
        self.folder, self._warned = folder, False

    def fetch(self, key: str, path: str) -> bool:
        """Copy the map of a key to ``path``; False if it is missing or damaged."""
        try:
            data = self._file(key).read_bytes()
            with zipfile.ZipFile(io.BytesIO(data)) as pack:  # a map is a pk3, a zip file
                if not pack.namelist() or pack.testzip() is not None:
                    return False
            Path(path).write_bytes(data)
            return True
        except FileNotFoundError:
            return False
        except OSError as error:
            self._warn(error)
            return False
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError):
            return False  # Lab would end the process

    def write(self, key: str, path: str) -> None:
        """Store the map at ``path`` under a key, atomically."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # A folder of its own for every write, because two environments of a process may compile the same map.
            with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=self.folder) as part:
                os.replace(shutil.copyfile(path, Path(part, "map")), self._file(key))
        except OSError as error:
            self._warn(error)

    def _file(self, key: str) -> Path:
        # A key is a map's name and a checksum. Other keys are hashed so that no file is outside the folder.
        plain = re.fullmatch(r"\w[\w.-]{0,200}", key, re.ASCII)
        return self.folder / (key if plain else hashlib.sha256(key.encode()).hexdigest())

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            log.warning("the level cache %s cannot be used: %s; maps are compiled again", self.folder, error)
        self._warned = True
