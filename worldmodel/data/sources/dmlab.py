"""Recorded episodes as videos: ``epNNNN.mp4`` with S + 1 frames, ``epNNNN.npz`` with S steps, and a ``meta.json``.

The ffmpeg of imageio-ffmpeg reads every stored frame, without repeating or dropping frames for a constant rate and
without conversion of RGB videos.
"""

import json
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from worldmodel.data.records import HELD_OUT_EVERY, Item
from worldmodel.data.sources.base import Source, check_folder, files_below, some_for_training
from worldmodel.data.sources.npz_file import readable
from worldmodel.errors import DataError
from worldmodel.types import Episode, Spec
from worldmodel.util.formats import unreadable
from worldmodel.util.ranges import Text

META = "meta.json"
ARRAYS = ("actions", "rewards", "terminated", "truncated")


class Recordings(Source):
    """The recordings of a folder with a ``meta.json``, or of all such folders below ``path``.

    Every tenth recording of a folder is held out, by its number.
    Raises :class:`DataError` when there is none, and when their actions, sizes or rates differ.
    """

    def __init__(self, path: Text, name: Text = "dmlab"):
        folder = check_folder(path, f"a folder of recordings: {META}, ep0000.mp4, ep0000.npz, …")
        folders = sorted(meta.parent for meta in files_below(folder, (META,)) if meta.name == META)
        if not folders:
            raise DataError(f"there is no {META} in or below {folder}; source.path=… names a folder of recordings")
        self.spec = _spec(folders[0] / META, name)
        for other in folders[1:]:
            if _spec(other / META, name) != self.spec:
                raise DataError(f"{folders[0]} and {other} differ in actions, size or rate; read them into two folders")
        self._videos = [video for folder in folders for video in sorted(folder.glob("ep*.mp4"))]
        if not self._videos:
            raise DataError(f"there is no recording ep0000.mp4 in {', '.join(map(str, folders))}")
        numbers = [int(re.sub(r"\D", "", video.stem) or index) for index, video in enumerate(self._videos)]
        self._held_out = some_for_training([number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 for number in numbers])
        # Keys include the name of the folder.
        self.keys = [f"{video.parent.name}/{video.stem}" for video in self._videos]
        if len(set(self.keys)) < len(self.keys):
            raise DataError(f"two folders of recordings below {folder} have the same name; read them one by one")

    def read(self, index: int) -> Item:
        return Item(read_episode(self._videos[index], self.spec), self._held_out[index], self.keys[index])


def _spec(meta: Path, name: str) -> Spec:
    try:
        raw = json.loads(meta.read_text(encoding="utf-8"))
        shape = (3, int(raw["height"]), int(raw["width"]))
        spec = Spec(name, shape, tuple(str(action) for action in raw["action_names"]), float(raw["agent_fps"]))
        return Spec.from_json(spec.to_json())  # which checks it
    except (ValueError, KeyError, TypeError, DataError) as error:
        fault = f"{meta} does not state width, height, action_names and agent_fps correctly"
        raise DataError(f"{fault} ({error!r})") from error


def read_episode(video: Path, spec: Spec) -> Episode:
    """A video and its steps. Raises :class:`DataError` when either is damaged or they do not fit together."""
    steps = _read_steps(video.with_suffix(".npz"))
    count = len(steps["actions"])
    frames = read_video(video, spec.frame_shape)
    if len(frames) != count + 1:
        raise DataError(f"{video} has {len(frames)} frames; its {count} steps need {count + 1}")
    if count and not 0 <= steps["actions"].min() <= steps["actions"].max() < len(spec.action_names):
        raise DataError(f"{video.with_suffix('.npz')} holds actions that {META} does not name")
    if (steps["terminated"].astype(bool) | steps["truncated"].astype(bool))[:-1].any():
        raise DataError(f"{video.with_suffix('.npz')} ends before its last step; save one file for each episode")
    terminated, truncated = (bool(steps[name][-1:].any()) for name in ("terminated", "truncated"))
    return Episode.from_steps(frames, steps["actions"], steps["rewards"], terminated, truncated)


def _read_steps(file: Path) -> dict[str, np.ndarray]:
    with readable(file), np.load(file, allow_pickle=False) as arrays:
        if lacking := [name for name in ARRAYS if name not in arrays]:
            raise DataError(f"{file} has no {', '.join(lacking)}; it should hold {', '.join(ARRAYS)}")
        steps = {name: arrays[name] for name in ARRAYS}
    if {array.shape for array in steps.values()} != {steps["actions"].shape} or steps["actions"].ndim != 1:
        raise DataError(f"{file} holds {', '.join(ARRAYS)} of different lengths")
    if steps["actions"].dtype.kind not in "iu" or any(steps[name].dtype.kind not in "biuf" for name in ARRAYS):
        raise DataError(f"{file} holds actions that are no whole numbers, or rewards or ends that are no numbers")
    return steps


def read_video(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """All frames of a video with frames of ``shape`` (3, H, W): (n, 3, H, W) uint8. Raises :class:`DataError`."""
    channels, height, width = shape
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-xerror", "-i", str(file), "-map", "0:v:0"]
    command += ["-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"ffmpeg {done.returncode}"]
        if b"matches no streams" in done.stderr:
            raise DataError(f"{file} holds no video")
        raise DataError(f"{file} {unreadable(file, reason[0], ('MP4', 'Matroska', 'AVI'), 'convert it to MP4')}")
    header = f"P6\n{width} {height}\n255\n".encode()  # before every frame
    size = len(header) + channels * height * width
    rows = np.frombuffer(done.stdout[: len(done.stdout) // size * size], np.uint8).reshape(-1, size)
    if len(done.stdout) % size or (rows[:, : len(header)] != np.frombuffer(header, np.uint8)).any():
        raise DataError(f"{file} has no frames of {width}×{height}, as {META} states")
    return np.ascontiguousarray(rows[:, len(header) :].reshape(-1, height, width, channels).transpose(0, 3, 1, 2))
