"""Writing files so that a crash or a full disk leaves the old state or the new one, never a mixture."""

import contextlib
import fcntl
import fnmatch
import glob
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

STALE = 86_400.0  # age in seconds at which a temporary file is one that a killed process left


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def expanded(path: str | Path) -> Path:
    """A path in which a leading ``~`` stands for the home folder, as a shell reads it."""
    return Path(os.path.expanduser(path))


def check_writable(folder: Path) -> None:
    """Raises OSError unless files can be written to a folder, which need not exist yet; nothing is left there."""
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        error.filename = str(folder)  # and not that of the file that was tried
        raise


def take_lock(path: Path, wait: bool = False) -> IO[str] | None:
    """The writer's lock of a folder, or None when another process holds it and ``wait`` is false."""
    while True:
        file = open(path / "lock", "w")  # noqa: SIM115 (it stays open as long as the lock is held)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # meanwhile, its holder removed it


def lock_is_free(path: Path) -> bool:
    """Whether no process holds the writer's lock of a folder; also of one that cannot be written to."""
    with contextlib.suppress(OSError):
        lock = take_lock(path)
        if lock is None:
            return False
        lock.close()
    return True


class NewFiles:
    """What is made in a folder, and above it, from now on, so that it can be removed after a failure.

    ``patterns``: names of the files, in the order of their removal; all others stay.
    """

    def __init__(self, folder: Path, patterns: Sequence[str]):
        self._folder, self._patterns = folder, patterns
        self._before = set(self._files())
        self._missing = list(itertools.takewhile(lambda each: not each.exists(), (folder, *folder.parents)))

    def remove(self) -> None:
        """Remove the new files, then the new folders that are empty. What cannot be removed stays."""
        with contextlib.suppress(OSError):
            for file in self._files():
                if file not in self._before:
                    file.unlink(missing_ok=True)
            for folder in self._missing:
                folder.rmdir()

    def _files(self) -> list[Path]:
        names = os.listdir(self._folder) if self._folder.exists() else []
        return [self._folder / name for pattern in self._patterns for name in fnmatch.filter(names, pattern)]


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the name of the file to errors of the system without one: that of a failed write has a number only."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_at(path: Path, position: int, array: np.ndarray) -> None:
    """Put the bytes of an array at a position of a file, cut what lies behind, and flush them to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    with naming(path), os.fdopen(descriptor, "wb", buffering=0) as file:
        file.seek(position)
        data = as_bytes(array)
        while data:
            data = data[file.write(data) :]
        file.truncate()
        os.fsync(file.fileno())


def reserve(path: Path) -> None:
    """Allocate all of a file's size on the disk: a full disk is an OSError here, and a crash in a memory map."""
    with naming(path), open(path, "r+b", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def append_line(path: Path, line: str) -> None:
    """Append a line or nothing: a write that fails half-way (a full disk) is taken back."""
    with naming(path), open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        data = memoryview(line.encode() + b"\n")
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(before)
            raise


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name of the same suffix in the same folder, renamed to ``path`` when the block ends well.

    Missing folders are made; when the block fails, what stands under the temporary name is removed. What a killed
    process left under such a name is removed after a day.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    _remove_stale(path.parent, path.stem, path.suffix)
    try:
        with naming(path):
            yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _remove_stale(folder: Path, stem: str, suffix: str = "") -> None:
    """Remove temporary files or folders that a killed process left."""
    for old in folder.glob(f".{glob.escape(stem)}.*.part{glob.escape(suffix)}"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > STALE:
                shutil.rmtree(old) if old.is_dir() else old.unlink()


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder of a temporary name beside ``path``, which takes its place when the block ends well.

    Missing folders are made; when the block fails, what there was at ``path`` is as it was. What a killed process left
    is removed as by :func:`whole`.
    """
    path = path.resolve()  # of a symbolic link, the folder is replaced and not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    part, before = (path.with_name(f".{path.name}.{os.getpid()}.{word}") for word in ("part", "before"))
    _remove_stale(path.parent, path.name)
    shutil.rmtree(part, ignore_errors=True)  # of a killed process with the same id
    part.mkdir()
    try:
        with naming(path):
            yield part
        if path.exists():
            path.rename(before)
        try:
            part.rename(path)
        except BaseException:
            if before.exists():
                before.rename(path)
            raise
    finally:
        for folder in (part, before):
            shutil.rmtree(folder, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")
