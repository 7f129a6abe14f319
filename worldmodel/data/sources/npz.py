"""Recordings as npz files: pictures, actions, rewards and ends of one or several episodes, in sequence."""

import dataclasses
import functools
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from worldmodel.data.pictures import frame_shape, to_frames
from worldmodel.data.records import Item
from worldmodel.data.sources.base import Source, check_folder, files_below, recorded_spec
from worldmodel.data.sources.npz_file import KEYS, FrameStream, Key, Recording, damage, look
from worldmodel.errors import DataError
from worldmodel.types import Episode, Spec
from worldmodel.util.files import expanded
from worldmodel.util.ranges import Count, FramesPerSecond, Names, Pixels, Text

SPEC = "spec.json"  # next to the files of an export
FRAMES_AT_ONCE = 64  # that are read and resized


@dataclasses.dataclass(frozen=True)
class _Piece:
    """An episode within a file."""

    first: int  # frame before the first step
    steps: slice
    terminated: bool
    truncated: bool
    repeated: bool = False  # the frame after the last step is missing and the one before it is repeated

    def __len__(self) -> int:
        return int(self.steps.stop - self.steps.start)

    @property
    def recorded(self) -> int:
        """Frames that are in the file."""
        return len(self) + (not self.repeated)


class Arrays(Source):
    """The episodes of an npz file, or of all npz files below a folder.

    For files with as many actions as frames, ``observed`` states whether ``obs[t]`` is the frame after or before
    ``action[t]``. *After*: the first action and reward of an episode have no frame before them and are left out.
    *Before*: the frame after the last action is missing; if the episode ended there, the last frame is repeated to keep
    the end and its reward, else the last action and its reward are left out. A file with one frame more than actions is
    one complete episode.

    With ``life_loss``, a lost life ends an episode. Episodes of more than ``longest`` steps are cut and flagged as
    truncated; the frame at the cut belongs to both parts. Unreadable files are reported. Raises :class:`DataError` when
    no file can be read, :class:`ConfigError` for invalid settings.
    """

    def __init__(
        self,
        path: Text,
        name: Text = "npz",
        size: Pixels | None = None,
        observed: Literal["after", "before"] = "after",
        life_loss: bool = False,
        longest: Count | None = None,
        action_names: Names | None = None,
        fps: FramesPerSecond | None = None,
        keys: Mapping[Key, Text] | None = None,
    ):
        called: dict[str, str] = {key: (keys or {}).get(key, key) for key in KEYS}
        root, files = _find(path)
        self._items: list[tuple[Recording, _Piece] | str] = []  # or why the file cannot be read
        self.keys = []
        found: list[Recording] = []
        for file in files:
            key = "/".join((root.name, *file.relative_to(root).with_suffix("").parts))
            try:
                recording = look(file, called)
                if found and recording.shape != found[0].shape:
                    raise DataError(f"{file} has frames {recording.shape}, {found[0].file.name} has {found[0].shape}")
                pieces = list(_pieces(recording, observed, life_loss, longest))
            except DataError as error:
                self._items.append(str(error))
                self.keys.append(key)
                continue
            found.append(recording)
            self._items += [(recording, piece) for piece in pieces]
            self.keys += [f"{key}/{piece.first}-{piece.first + piece.recorded - 1}" for piece in pieces]
        if not found:
            raise DataError(next(reason for reason in self._items if isinstance(reason, str)))
        if not any(isinstance(item, tuple) for item in self._items):
            raise DataError(f"no step of an episode is in {path}")
        shape = frame_shape(found[0].shape, size)
        assert shape is not None  # a file of no pictures is not among them
        actions = 1 + max(int(recording.actions.max(initial=0)) for recording in found)
        self.spec = recorded_spec(name, shape, actions, _own_spec(root), action_names, fps)
        self._size, self._name = size, called["obs"]
        self._streams = threading.local()  # one per thread, read from start to end
        self._damage = functools.cache(damage)
        self._lock = threading.Lock()

    def read(self, index: int) -> Item:
        item = self._items[index]
        if isinstance(item, str):
            raise DataError(item)
        recording, piece = item
        actions, rewards = recording.actions[piece.steps], recording.rewards[piece.steps]
        frames, ends = self._frames(recording, piece), (piece.terminated, piece.truncated)
        episode = Episode.from_steps(frames, actions, rewards, *ends, recording.condition)
        return Item(episode, recording.held_out, self.keys[index])

    def _frames(self, recording: Recording, piece: _Piece) -> np.ndarray:
        """(T, C, H, W) uint8 of an episode. Raises :class:`DataError` when the file is damaged, wherever it is."""
        with self._lock:  # a frame is only known to be right after the checksum of the whole file
            if reason := self._damage(recording.file):
                raise DataError(reason)
        stream: FrameStream | None = getattr(self._streams, "open", None)
        if stream is None or stream.file != recording.file:
            if stream is not None:
                stream.close()
            stream = self._streams.open = FrameStream(recording.file, self._name)
        frames = np.empty((len(piece) + 1, *self.spec.frame_shape), np.uint8)
        for at in range(0, piece.recorded, FRAMES_AT_ONCE):
            count = min(FRAMES_AT_ONCE, piece.recorded - at)
            frames[at : at + count] = to_frames(stream.read(piece.first + at, count), self._size)
        frames[piece.recorded :] = frames[piece.recorded - 1]
        return frames


def _find(path: str) -> tuple[Path, list[Path]]:
    """The folder and the files in it."""
    file = expanded(path).resolve()
    if file.is_file():
        return file.parent, [file]
    folder = check_folder(path, "an npz file, or a folder of them")
    files = sorted(files_below(folder, (".npz",)))
    if not files:
        raise DataError(f"there is no npz file in or below {folder}; source.path=… names one, or a folder of them")
    return folder, files


def _own_spec(folder: Path) -> Spec | None:
    """The Spec of an export."""
    if not (file := folder / SPEC).is_file():
        return None
    try:
        return Spec.from_json(file.read_text(encoding="utf-8"))
    except (DataError, ValueError) as error:
        raise DataError(f"{file} is damaged or of something else ({error}); restore it or move it away") from error


def _pieces(recording: Recording, observed: str, life_loss: bool, longest: int | None) -> Iterator[_Piece]:
    """The episodes of a file that have a step, cut where they are too long."""
    count = len(recording.actions)
    whole = recording.frames == count + 1
    after = observed == "after" and not whole
    ends = recording.terminated | recording.truncated
    if whole and ends[:-1].any():
        end = f"but an end at step {int(ends.argmax())}"
        reason = f"{recording.file} has one frame more than actions, as one episode has, {end}"
        raise DataError(f"{reason}; save one file an episode, or as many frames as actions")
    stops = set(np.flatnonzero(ends | recording.lost if life_loss else ends).tolist()) | {count - 1}
    begin = 0
    for stop in sorted(stops):
        terminated = bool(recording.terminated[stop] or (life_loss and recording.lost[stop])) if count else False
        # For "before", the frame after an end belongs to the next episode.
        lacking = not whole and not after and (bool(ends[stop]) or stop == count - 1)
        repeated = lacking and (terminated or bool(recording.truncated[stop]))
        first, last = begin + after, stop + 1 - (lacking and not repeated)
        begin = stop + 1
        for at in range(first, last, longest or max(last - first, 1)):
            until = min(at + (longest or last), last)
            final = until == last
            truncated = bool(recording.truncated[stop]) if final else True
            yield _Piece(at - after, slice(at, until), final and terminated, truncated, final and repeated)
