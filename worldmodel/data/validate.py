"""The checks of everything that enters a store: from environments, from sources of recordings, and by the Python API.

``where`` names the origin in messages: a file, or an environment with its episode and step. It is formatted only then.
"""

import json
from typing import Any

import numpy as np

from worldmodel.errors import DataError
from worldmodel.types import NO_ACTION, Episode, Spec

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = 16
"""Minimum size of an image in pixels; it has fewer channels than that, so that no axis can be taken for another.
Smaller arrays are encodings of a state (MiniGrid's 7×7×3), not images."""

MOST_ACTIONS = 10_000  # which all have names

SHAPES = "(H, W), (H, W, C) or (C, H, W)"
READABLE = f"image of 8-bit pixels, {SMALLEST}×{SMALLEST} or more, with 1 to {SMALLEST - 1} channels, as uint8 {SHAPES}"


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of the channels in the shape of an image: 0, 2, or -1 for (H, W); None for what is no image."""
    if len(shape) == 2 and min(shape) >= SMALLEST:
        return -1
    if len(shape) != 3:
        return None
    return next((axis for axis in (0, 2) if 1 <= shape[axis] < SMALLEST <= min(shape[1], shape[2 - axis])), None)


def pixels(value: Any, where: object, what: str = "the image is") -> np.ndarray:
    """An image or several as uint8. Integers from 0 to 255 of other types are converted. Raises :class:`DataError` for
    anything else: floats are not scaled, because their range cannot be known from one image."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.empty(0, object)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind in "iu" and array.size and 0 <= array.min() <= array.max() <= 255:
        return array.astype(np.uint8)
    example = "(255 * image).round().astype(numpy.uint8)"
    remedy = f"; scale, round and cast it, for example {example}" if array.dtype.kind in "fiu" else ""
    raise DataError(f"{where}: {what} {described(value)}; an image needs integers from 0 to 255 (uint8){remedy}")


def reward(value: Any, where: object) -> float:
    """A reward as a float; an array of one number is one. Raises :class:`DataError` unless it is finite in float32."""
    number = value if type(value) is float else _number(value, where, "reward")
    if -LARGEST <= number <= LARGEST:
        return number
    raise DataError(f"{where}: the reward is {number}; it must be a finite number, at most {LARGEST:.1g} in size")


def flag(value: Any, where: object, name: str) -> bool:
    """``terminated`` or ``truncated`` as a bool; an array of one value is one. Raises :class:`DataError`."""
    if value is True or value is False:
        return value
    number = _number(value, where, name)
    if number in (0, 1):
        return bool(number)
    raise DataError(f"{where}: {name} is {described(value)}; it must be true or false")


def check_episode(episode: Episode, spec: Spec, where: object) -> None:
    """Raises :class:`DataError` for an episode that is not one of this Spec; it names the step."""
    frames, shape = episode.frames, spec.frame_shape
    if not isinstance(frames, np.ndarray) or frames.shape[1:] != shape or not len(frames) or frames.dtype != np.uint8:
        expected = ", ".join(map(str, ("T", *shape)))
        raise DataError(f"{where}: an episode needs uint8 frames ({expected}); got {described(frames)}")
    for name, kinds, meaning in (
        ("actions", "iu", "the action that led to it, as a number"),
        ("rewards", "biuf", "the reward received on arriving"),
    ):
        array = np.asarray(getattr(episode, name))
        if array.shape != (len(frames),) or array.dtype.kind not in kinds:
            wanted = f"({len(frames)},), for each frame {meaning}"
            raise DataError(f"{where}: {name} of an episode are {described(array)}; give {wanted}")
    actions, count = np.asarray(episode.actions), len(spec.action_names)
    if (wrong := first((actions[1:] < 0) | (actions[1:] >= count))) is not None:
        names = short(", ".join(spec.action_names))
        wrong += 1
        raise DataError(f"{where}, step {wrong}: the action is {actions[wrong]}; actions are in [0, {count}): {names}")
    if not NO_ACTION <= actions[0] < count:
        raise DataError(f"{where}: the condition is {actions[0]}; it is {NO_ACTION} for none, or in [0, {count})")
    if (wrong := first(~(np.abs(np.asarray(episode.rewards, np.float64)) <= LARGEST))) is not None:
        reward(float(episode.rewards[wrong]), f"{where}, step {wrong}")
    for name in ("terminated", "truncated"):
        flag(getattr(episode, name), where, name)


def action_name(name: object) -> str:
    """The name of an action as its user gave it. Raises :class:`DataError` for one that action scripts cannot hold."""
    text = str(name)
    if text != text.strip() or not text or {",", "*"} & set(text):
        raise DataError(f"the action name {text!r} is empty, or has a comma, a * or spaces at its ends; choose another")
    return text


def first(wrong: np.ndarray) -> int | None:
    """The index of the first true value, or None."""
    return int(wrong.argmax()) if wrong.any() else None


def described(value: Any) -> str:
    """A value in an error message: shape, type and range of an array; type and length, or text, of others."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value)
        known = array.size and array.dtype.kind in "biuf"
        return f"{array.dtype} {array.shape}" + (f" from {array.min():.4g} to {array.max():.4g}" if known else "")
    if isinstance(value, (tuple, list, dict)):
        return f"a {type(value).__name__} of {len(value)} value{'s' * (len(value) != 1)}"
    return short(repr(value))


def short(value: Any) -> str:
    """A value or a text, shortened for error messages."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "…"


def _number(value: Any, where: object, name: str) -> float:
    try:
        array = np.asarray(value)
        if array.size == 1 and array.dtype.kind in "biuf":
            return float(array.item())
    except (TypeError, ValueError):
        pass
    raise DataError(f"{where}: {name} is {described(value)}; one number is needed")
