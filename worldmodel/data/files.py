"""Writing files so that a crash or a full disk leaves the old state or the new one, never a mixture."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

import numpy as np


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def take_lock(path: Path) -> IO[str] | None:
    """The writer's lock of a folder, or None when another process holds it."""
    file = open(path / "lock", "w")  # noqa: SIM115 (it stays open as long as the lock is held)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def write_at(path: Path, position: int, array: np.ndarray) -> None:
    """Put the bytes of an array at a position of a file, cut what lies behind, and see them on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        file.seek(position)
        data = as_bytes(array)
        while data:
            data = data[file.write(data) :]
        file.truncate()
        os.fsync(file.fileno())


def append_line(path: Path, line: str) -> None:
    """Append a line or nothing: a write that fails half-way (a full disk) is taken back."""
    with open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        data = memoryview(line.encode() + b"\n")
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(before)
            raise


def replace_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
