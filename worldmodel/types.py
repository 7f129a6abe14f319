"""The data that the packages exchange, and the glossary of their shapes.

Letters used in every comment of this package:

====  =====================================================================
B     batch
T     frames of an episode or a segment (time)
C     channels of a frame;  *size* its extent, (H, W) for an image, (L,) for sound
grid  shape of one grid of codes, (h, w) or (n,);  N the number of its positions
K     size of the vocabulary of codes
A     number of named actions
D     width of a vector
====  =====================================================================

Alignment: everything at index ``t`` belongs to ``frames[t]``. ``actions[t]`` is the action that led to it,
``rewards[t]`` the reward received on arriving at it, and ``terminated[t]`` and ``truncated[t]`` state whether the
episode ended with it. At an episode's first frame the action is its condition (the class of an image, the speaker of a
recording) or :data:`NO_ACTION`, and the reward is 0. Environments and foreign files, where ``actions[t]`` is taken at
``frames[t]``, are converted when they are read (:meth:`Episode.from_steps`) and written.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from worldmodel.errors import DataError, UnknownActionError

if TYPE_CHECKING:  # the processes that record episodes need the types of this module but never torch
    import torch
    from torch import Tensor

Info = dict[str, Any]  # of a step of an environment, as in gymnasium
NO_ACTION = -1
"""The action of a frame that no known action led to, such as the first frame of an episode without a condition."""

POSE = "worldmodel_pose"
"""Key of an info: x and y in map units, heading in degrees. Other programs use "pose" for other things."""

DEFAULT_RATE = 15.0  # frames a second of environments and recordings that do not state a rate


@dataclasses.dataclass(frozen=True)
class Spec:
    """The properties of a source of data, which are stored with the data and with each run."""

    env_id: str  # the gymnasium id, or the name of the source
    frame_shape: tuple[int, ...]  # (C, *size)
    action_names: tuple[str, ...]  # A names, in the order of the indices; of images, those of their classes
    rate: float  # frames a second at which the data plays in real time
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)  # plain JSON values

    def action_index(self, name: str) -> int:
        """Index of an action name. Raises :class:`UnknownActionError`, which lists the names."""
        if name not in self.action_names:
            raise UnknownActionError(name, self.action_names)
        return self.action_names.index(name)

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        try:
            json.dumps(fields)
        except TypeError as error:
            raise DataError(f"the specification of {self.env_id} cannot be written as JSON: {error}") from error
        return json.dumps({**fields, "crc32": _checksum(fields)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Inverse of :meth:`to_json`. Raises :class:`DataError` when the text is not a Spec."""
        try:
            raw = json.loads(text)
            # A wrong digit of a shape would make all data appear damaged. Older files have no checksum.
            if (crc := raw.pop("crc32", None)) is not None and crc != _checksum(raw):
                raise ValueError("wrong checksum; if you edited it, remove its line crc32")
            if unknown := set(raw) - {field.name for field in dataclasses.fields(cls)}:
                raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
            env_id = re.sub(r"^envs:", "worldmodel.envs:", str(raw["env_id"]))  # as versions before 0.2 wrote it
            shape, names = tuple(map(int, raw["frame_shape"])), tuple(map(str, raw["action_names"]))
            spec = cls(env_id, shape, names, float(raw["rate"]), dict(raw.get("env_kwargs", {})))
            if len(spec.frame_shape) < 2 or min(spec.frame_shape) < 1 or not spec.action_names or not spec.rate > 0:
                raise ValueError(f"{spec.frame_shape}, {len(spec.action_names)} actions, {spec.rate} frames a second")
            if len(set(spec.action_names)) < len(spec.action_names):
                raise ValueError("two actions have the same name")
            return spec
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not a data specification: {error!r}") from error


def _checksum(fields: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(fields).encode()):08x}"


@dataclasses.dataclass(frozen=True)
class Episode:
    """One recorded episode of T frames, T ≥ 1, on the host; an image is an episode of one frame."""

    frames: np.ndarray  # (T, C, *size) uint8
    actions: np.ndarray  # (T,) int64 in [0, A): the action that led to each frame; index 0: the condition or NO_ACTION
    rewards: np.ndarray  # (T,) float32, received on arriving at each frame; 0 at index 0
    terminated: bool  # the last frame is a terminal state of the environment
    truncated: bool  # the episode was cut off at the last frame, by a time limit or an interruption

    @classmethod
    def from_steps(
        cls,
        frames: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminated: bool,
        truncated: bool,
        condition: int = NO_ACTION,
    ) -> Episode:
        """From T frames and T - 1 steps as environments count them: ``actions[t]`` was taken at ``frames[t]`` and led
        to ``frames[t + 1]`` with the reward ``rewards[t]``."""
        aligned_actions = np.concatenate([[condition], actions]).astype(np.int64)
        aligned_rewards = np.concatenate([[0], rewards]).astype(np.float32)
        return cls(frames, aligned_actions, aligned_rewards, terminated, truncated)

    @property
    def steps(self) -> int:
        """The number of actions taken, T - 1."""
        return len(self.frames) - 1

    @property
    def condition(self) -> int:
        """The class of an image or the speaker of a recording; NO_ACTION where there is none."""
        return int(self.actions[0])


@dataclasses.dataclass(frozen=True)
class Segment:
    """A batch of windows cut from episodes; a window never crosses an episode's end.

    Exactly one of ``frames`` and ``codes`` is given. Steps with ``valid`` false are padding, before the first
    step or after the last.
    """

    actions: Tensor  # (B, T) int64: the action that led to the frame; NO_ACTION where there was none
    rewards: Tensor  # (B, T) float32, received on arriving at the frame
    terminated: Tensor  # (B, T) bool: the frame is a terminal state
    truncated: Tensor  # (B, T) bool: the episode was cut off at the frame
    valid: Tensor  # (B, T) bool
    frames: Tensor | None = None  # (B, T, C, *size) uint8
    codes: Tensor | None = None  # (B, T, *grid) int64
    places: Tensor | None = None  # (M,) int64: where the valid steps are among all B · T, if another device needs them

    def to(self, device: torch.device | str) -> Segment:
        """The same segment on another device, with the places of the valid steps, which the host need not wait for."""
        places = self.places
        if places is None and self.valid.device.type == "cpu" and str(device) != "cpu":
            places = self.valid.flatten().nonzero()[:, 0]
        fields = {name: value for name, value in {**vars(self), "places": places}.items() if value is not None}
        large = {name: fields.pop(name).to(device, non_blocking=True) for name in ("frames", "codes") if name in fields}
        small = dict(zip(fields, _moved(list(fields.values()), device), strict=True))
        return dataclasses.replace(self, **large, **small)

    @property
    def padded(self) -> bool:
        """Whether some steps are padding."""
        return not self.valid.all() if self.places is None else len(self.places) < self.valid.numel()

    def steps_of(self, values: Tensor) -> Tensor:
        """Values (B, T, …) → those of the valid steps, (M, …)."""
        if self.places is None:
            return values[self.valid]
        return values.flatten(0, 1)[self.places] if self.padded else values.flatten(0, 1)


def _moved(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Small tensors on another device. Those of the host are copied as one block of bytes, since each copy takes
    time."""
    import torch  # only processes that have tensors come here

    if torch.device(device).type == "cpu" or any(tensor.device.type != "cpu" for tensor in tensors):
        return [tensor.to(device, non_blocking=True) for tensor in tensors]
    # In this order, each begins at a multiple of the size of its elements.
    ordered = sorted(tensors, key=lambda tensor: -tensor.element_size())
    block = torch.cat([tensor.flatten().view(torch.uint8) for tensor in ordered]).to(device, non_blocking=True)
    parts = block.split([tensor.nbytes for tensor in ordered])
    moved = {id(old): part.view(old.dtype).view(old.shape) for old, part in zip(ordered, parts, strict=True)}
    return [moved[id(tensor)] for tensor in tensors]


def to_float(frames: Tensor) -> Tensor:
    """uint8 frames in [0, 255] → float32 in [-1, 1]; the only place where frames are scaled."""
    return frames.float().mul_(2 / 255).sub_(1)


def to_uint8(frames: Tensor) -> Tensor:
    """Inverse of :func:`to_float`: clamps and rounds."""
    return frames.float().add(1).mul_(255 / 2).round_().clamp_(0, 255).byte()


def plain_name(text: str) -> str:
    """A text as an action name: spaces, commas and stars, which scripts use as separators, become underscores."""
    return re.sub(r"[\s,*]+", "_", text).strip("_")
