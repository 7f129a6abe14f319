"""Stores on object storage, such as ``s3://bucket/folder``, read through fsspec; nothing is written there.

Index, specification and records are copied to a folder of this machine when a store is opened, and shards of frames
when they are first needed. The least recently used shards are removed when all of them exceed ``WORLDMODEL_CACHE_GB``
(default 100). The folder is ``WORLDMODEL_CACHE`` (default ``~/.cache/worldmodel``); processes of a machine share it.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.records import Entry, Index, Shards, checksum, read_spec
from worldmodel.errors import DataError
from worldmodel.util.files import expanded, take_lock, whole

DOWNLOADS = 4  # shards that are copied at once

log = logging.getLogger(__name__)


def is_remote(path: str | Path) -> bool:
    """Whether a path is that of a store on object storage."""
    return "://" in str(path)


@contextlib.contextmanager
def reported(url: str) -> Iterator[None]:
    """Turns what fsspec and its packages raise into a :class:`DataError` of one line."""
    try:
        yield
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"{url} needs a package that is not installed: pip install -e '.[s3]' ({error})") from error
    except FileNotFoundError as error:
        raise DataError(f"{url}: there is no such bucket or folder; choose another one with data=…") from error
    except PermissionError as error:
        raise DataError(f"{url}: access is denied ({error}); check the credentials and their rights") from error
    except Exception as error:  # of botocore, aiohttp and others, which share no class
        name, text = type(error).__name__, " ".join(str(error).split())
        if "Credential" in name or "Credential" in text:
            keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            raise DataError(f"{url}: no credentials; set {keys}") from error
        raise DataError(f"{url} cannot be read: {name}: {text}") from error


class RemoteShards(Shards):
    """The shards of a remote store, copied to the folder ``path`` when they are needed."""

    def __init__(self, url: str, path: Path, limit: float):
        self.url, self.limit = url, limit
        with reported(url):
            from fsspec.core import url_to_fs

            self.fs, self.root = url_to_fs(url)
            found: list[dict[str, Any]] = self.fs.ls(self.root, detail=True, refresh=True)
        self.sizes = {str(each["name"]).rpartition("/")[2]: int(each["size"] or 0) for each in found}
        if "spec.json" not in self.sizes:
            raise DataError(f"{url} holds no store (spec.json is missing); choose another folder with data=…")
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        for name, size in self.sizes.items():
            if name in ("spec.json", "index.jsonl") or (name.endswith(".steps") and not self._is_here(name, size)):
                self._copy(name)
        self.spec = read_spec(path)
        super().__init__(path, self.spec.frame_shape)
        self.entries: dict[int, list[Entry]] = {}
        for entry in Index(path).read(writing=False)[0]:
            self.entries.setdefault(entry.shard, []).append(entry)
        self.count = sum(name.endswith(".frames") for name in self.sizes)
        total = sum(size for name, size in self.sizes.items() if name.endswith(".frames"))
        if total > self.limit:
            log.warning("%s has %.1f GB of frames and the cache holds %.1f GB, so that shards are copied repeatedly; "
                        "set WORLDMODEL_CACHE_GB", self.url, total / 1e9, self.limit / 1e9)  # fmt: skip

    def size(self, shard: int, kind: str) -> int | None:
        return self.sizes.get(self.file(shard, kind).name)

    def prefetch(self, shards: Iterable[int]) -> None:
        if len(self._maps) == self.count:
            return
        missing = sorted({shard for shard in shards if shard not in self._maps})
        if len(missing) > 1:
            with ThreadPoolExecutor(min(DOWNLOADS, len(missing))) as pool:
                list(pool.map(self._fetch, missing))

    def _map_frames(self, shard: int) -> np.ndarray:
        self._fetch(shard)
        return super()._map_frames(shard)

    def _is_here(self, name: str, size: int) -> bool:
        file = self.path / name
        return file.is_file() and file.stat().st_size == size

    def _copy(self, name: str) -> None:
        with reported(f"{self.url}/{name}"), whole(self.path / name) as part:
            self.fs.get_file(f"{self.root}/{name}", str(part))

    def _fetch(self, shard: int) -> None:
        """Copy a shard of frames unless it is here, and compare the checksums of its episodes."""
        file = self.file(shard, "frames")
        folder = self.path / file.stem
        folder.mkdir(exist_ok=True)
        with take_lock(folder, wait=True) or contextlib.nullcontext():  # one process of a machine copies it
            if not self._is_here(file.name, self.sizes[file.name]):
                self._make_room(self.sizes[file.name], file)
                self._copy(file.name)
                self._check(shard)
        with contextlib.suppress(FileNotFoundError):  # another process may have removed it
            os.utime(file)

    def _check(self, shard: int) -> None:
        frames = super()._map_frames(shard)
        for entry in self.entries.get(shard, ()):
            if checksum(frames[entry.offset : entry.end], self.records(entry)) != entry.crc:
                self.file(shard, "frames").unlink()
                raise DataError(f"{self.url}: episode {entry.episode} is damaged (wrong checksum); "
                                "copy the store from its source again")  # fmt: skip

    def _make_room(self, size: int, file: Path) -> None:
        """Remove the least recently used shards of all stores until ``size`` bytes fit. Maps of them remain valid."""
        files = []
        for each in self.path.parent.glob("*/shard-*.frames"):
            with contextlib.suppress(FileNotFoundError):
                files.append((each.stat().st_mtime_ns, each.stat().st_size, each))
        used = sum(length for _, length, _ in files)
        for _, length, each in sorted(files):
            if used + size <= self.limit:
                return
            each.unlink(missing_ok=True)
            used -= length
            if each.parent == self.path:
                self._maps.pop(int(each.stem.rpartition("-")[2]), None)


def open_remote(url: str) -> RemoteShards:
    """The shards of a remote store, and its copied index. Raises :class:`DataError`."""
    cache = expanded(os.environ.get("WORLDMODEL_CACHE", "~/.cache/worldmodel"))
    text = os.environ.get("WORLDMODEL_CACHE_GB", "100")
    try:
        limit = float(text) * 1e9
    except ValueError:
        raise DataError(f"WORLDMODEL_CACHE_GB must be a number of gigabytes, not {text!r}") from None
    url = url.rstrip("/")
    name = hashlib.sha256(f"{url} {os.environ.get('AWS_ENDPOINT_URL', '')}".encode()).hexdigest()[:16]
    return RemoteShards(url, cache / name, limit)
