"""One npz file of a recording: its steps, and its frames as a stream."""

import contextlib
import dataclasses
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from worldmodel.data.pictures import frame_shape
from worldmodel.data.validate import MOST_ACTIONS, READABLE, described, first
from worldmodel.errors import DataError
from worldmodel.types import NO_ACTION
from worldmodel.util.files import as_bytes
from worldmodel.util.formats import unreadable

Key = Literal["obs", "action", "reward", "done", "terminated", "truncated", "life_loss", "held_out", "condition"]
KEYS: tuple[Key, ...] = get_args(Key)
"""The default names of the arrays. ``done`` is a terminal state; in a file with only one of ``terminated`` and
``truncated``, it is an end of either kind. ``held_out`` and ``condition`` are one value per file, as exports have."""

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError,
           tokenize.TokenError)  # fmt: skip
"""Errors of reading a damaged file or one that is no npz."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """A file but for its frames."""

    file: Path
    frames: int  # how many there are, S or S + 1 of S steps
    shape: tuple[int, ...]  # of each
    actions: np.ndarray  # (S,) int64: actions[t] was taken at the frame before the one that it led to
    rewards: np.ndarray  # (S,) float32
    terminated: np.ndarray  # (S,) bool
    truncated: np.ndarray  # (S,) bool
    lost: np.ndarray  # (S,) bool, a life
    held_out: bool | None
    condition: int


@contextlib.contextmanager
def readable(file: Path) -> Iterator[None]:
    """Convert errors of a file that is damaged, or intact and not supported, to one that names it and says which."""
    again = "save it again with numpy.savez_compressed"
    try:
        yield
    except _BROKEN as error:
        if str(error).startswith("Object arrays"):
            reason = "holds an array of objects, such as one array per episode; save one array of numbers with all "
            raise DataError(f"{file} {reason}steps, or one file per episode") from error
        if isinstance(error, NotImplementedError) or "password" in str(error):
            reason = f"is compressed or encrypted in a way that is not supported ({error})"
            raise DataError(f"{file} {reason}; {again}") from error
        raise DataError(f"{file} {unreadable(file, error, (), again)}") from error


def look(file: Path, called: Mapping[str, str]) -> Recording:
    """The steps of a file whose arrays are ``called`` so, by :data:`KEYS`. Raises :class:`DataError`, naming it."""
    with readable(file):
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is no npz")
        with archive, zipfile.ZipFile(file) as members:
            for name in members.namelist():  # a damaged name would hide an array that need not be there
                members.open(name).close()
            there = {key: name for key, name in called.items() if name in archive.files}
            if lacking := [called[key] for key in ("obs", "action", "reward") if key not in there]:
                reason = f"{file} has no {lacking[0]}, but {', '.join(archive.files) or 'nothing'}"
                raise DataError(f"{reason}; source.keys={{obs: …, action: …, reward: …, done: …}} names its arrays")
            arrays = {key: archive[name] for key, name in there.items() if key != "obs"}
        stream = FrameStream(file, called["obs"])
        stream.close()
    steps = _steps(arrays, file)
    count = len(steps["actions"])
    if stream.frames not in (count, count + 1):
        raise DataError(f"{file} has {count} actions and {stream.frames} frames; it needs as many, or one frame more")
    single = {
        key: arrays[key].item()
        for key in ("held_out", "condition")  # others may use these names for something else
        if key in arrays and arrays[key].shape == () and arrays[key].dtype.kind in "biu"
    }
    held_out = bool(single["held_out"]) if "held_out" in single else None
    condition = single.get("condition", NO_ACTION)
    return Recording(file, stream.frames, stream.shape, held_out=held_out, condition=condition, **steps)


def _steps(arrays: Mapping[str, np.ndarray], file: Path) -> dict[str, np.ndarray]:
    """Actions, rewards and ends, each (S,). Raises :class:`DataError` where they are not."""
    flat = {}
    for key, array in arrays.items():
        if key in ("held_out", "condition"):
            continue
        flat[key] = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
        if flat[key].ndim != 1 or len(flat[key]) != len(arrays["action"]) or array.dtype.kind not in "biuf":
            raise DataError(f"{file} holds {array.dtype} {array.shape} for {key}; it needs one number a step")
    if not {"done", "terminated", "truncated"} & set(flat):
        raise DataError(f"{file} has no done, and no terminated and truncated; source.keys={{done: …}} names it")
    actions, rewards = flat["action"], flat["reward"].astype(np.float32)
    if actions.dtype.kind not in "iu" or actions.min(initial=0) < 0:
        raise DataError(f"{file} holds actions that are no whole numbers from 0 on; only discrete ones can be read")
    if actions.max(initial=0) >= MOST_ACTIONS:
        raise DataError(f"{file} holds the action {actions.max():,}; they are numbered from 0 to {MOST_ACTIONS - 1:,}")
    if (wrong := first(~np.isfinite(rewards))) is not None:
        raise DataError(f"{file} holds rewards that are no finite numbers, first {rewards[wrong]} at index {wrong}")
    for key in {"done", "terminated", "truncated"} & set(flat):
        if not np.isin(flat[key], (0, 1)).all():
            raise DataError(f"{file} holds {described(flat[key])} for {key}; it needs true or false for each step")
    none = np.zeros(len(actions), bool)
    ends = {key: flat[key].astype(bool) for key in ("done", "terminated", "truncated", "life_loss") if key in flat}
    done = ends.get("done", none)
    terminated = ends.get("terminated", done & ~ends.get("truncated", none))
    return {
        "actions": actions.astype(np.int64),
        "rewards": rewards,
        "terminated": terminated,
        "truncated": ends.get("truncated", done & ~terminated),
        "lost": ends.get("life_loss", none),
    }


class FrameStream:
    """The frames of a file in their order. For one thread; raises :class:`DataError` for a damaged file."""

    def __init__(self, file: Path, name: str):
        self.file = file
        with readable(file):
            self._archive = zipfile.ZipFile(file)
            self._stream: Any = self._archive.open(f"{name}.npy")
            version = np.lib.format.read_magic(self._stream)
            if version not in _HEADERS:
                raise ValueError(f"{name} is of version {version} of numpy's format")
            shape, fortran, dtype = _HEADERS[version](self._stream)
            self._start = self._stream.tell()
        self.frames, self.shape = (shape[0] if shape else 0), shape[1:]
        self.at = 0  # the next frame
        self._last: np.ndarray | None = None  # the one before it, where it was read
        if dtype != np.uint8 or frame_shape(self.shape) is None:
            raise DataError(f"{file} holds {dtype} {shape} for {name}; each of its frames must be an {READABLE}")
        stated, held = math.prod(shape), self._archive.getinfo(f"{name}.npy").file_size - self._start
        if stated != held:
            reason = f"{name} states {shape}, {stated:,} bytes, and holds {held:,}"
            raise DataError(f"{file}: {reason}; its header is incorrect or it is cut off, save it again")
        if fortran and len(shape) > 1:
            raise DataError(f"{file} holds {name} column by column; save it again after numpy.ascontiguousarray")

    def read(self, first: int, count: int) -> np.ndarray:
        """Frames from ``first`` on: (count, *shape) uint8. Fast when they follow those of the last call."""
        block = np.empty((count, *self.shape), np.uint8)
        rest, at = block, first
        if first == self.at - 1 and self._last is not None:  # two parts of a cut episode share a frame
            block[0], rest, at = self._last, block[1:], self.at
        with readable(self.file):
            self._stream.seek(self._start + at * int(np.prod(self.shape)))
            view = as_bytes(rest)
            while view:
                got = self._stream.readinto(view)
                if not got:
                    raise EOFError("it is cut off")
                view = view[got:]
        self.at, self._last = first + count, block[-1].copy()
        return block

    def close(self) -> None:
        self._stream.close()
        self._archive.close()


def damage(file: Path) -> str:
    """Why a file cannot be read completely; empty if all its checksums are right."""
    try:
        with readable(file), zipfile.ZipFile(file) as archive:
            if broken := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {broken} is wrong")
    except DataError as error:
        return str(error)
    return ""
