"""Converts any action space to numbered, named actions: numbers are recorded, the environment gets the values.

==============  ================================================================================================
Discrete        its numbers
MultiDiscrete   all combinations, up to :data:`MOST_COMBINED`, else one part at a time with the others at 0
MultiBinary     the same with parts of 0 and 1
Box             ``bins`` evenly spaced values per axis from its lowest to its highest; combinations as above, else
                one axis at a time with the others at rest: at 0 if possible, else in the middle
any             named values: ``{left: [-1, 0], right: [1, 0]}``, or ``{up: 2, down: 3}`` to choose from numbers
==============  ================================================================================================

The first action is ``noop``, with all parts at rest. Combinations are named by the indices of their parts' values
(``0_2_1``, counted from the lowest), single parts by axis and index (``axis1_2``).
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space

from worldmodel.data.validate import MOST_ACTIONS
from worldmodel.errors import EnvError

MOST_COMBINED = 32  # combinations; above it, every action changes one part
MOST_SINGLE = 512  # actions that change one part
BINS = 3
WIDEST = 1e9  # a wider Box, for example with the largest float as bound, counts as unbounded
_NAMED = "env.actions={left: [-1, 0], right: [1, 0]} names the actions"
_CHOSEN = "env.actions={up: 2, down: 3} chooses some of them"


@dataclasses.dataclass(frozen=True)
class Actions:
    """Numbered actions: the value that the environment gets for each, and its default name."""

    values: tuple[Any, ...]
    names: tuple[str, ...]
    native: bool  # the numbers are those of the environment, so its action names apply

    def __len__(self) -> int:
        return len(self.values)


def discrete(space: Space[Any], requested: Mapping[str, Any] | None, env_id: str) -> Actions:
    """The actions of a space: ``requested`` is None, ``{"bins": n}`` for a Box, or values by name.

    Raises :class:`EnvError` for another kind of space, a Box without bounds, values outside the space, and too many
    actions.
    """
    bins = BINS
    if requested is not None:
        if set(requested) != {"bins"} or not isinstance(requested["bins"], int):
            return _named(space, requested, env_id)
        bins = requested["bins"]
        if not isinstance(space, Box) or bins < 2:
            raise EnvError(f"env.actions.bins={bins}: a Box is cut into 2 or more; {env_id} has {_shown(space)}")
    if isinstance(space, Discrete):
        if space.n > MOST_ACTIONS:
            raise EnvError(f"{env_id} has {_shown(space)}, more than {MOST_ACTIONS:,} actions; {_CHOSEN}")
        values = tuple(range(int(space.start), int(space.start + space.n)))
        return Actions(values, tuple(map(str, values)), native=True)
    parts = _parts(space, bins, env_id)
    rest = tuple(0 if part[0] <= 0 <= part[-1] else part[len(part) // 2] for part in parts)
    if math.prod(map(len, parts)) <= MOST_COMBINED:
        chosen = {
            "_".join(str(index) for index, _ in each): tuple(value for _, value in each)
            for each in itertools.product(*map(enumerate, parts))
        }
    else:
        chosen = {
            f"axis{axis}_{index}": (*rest[:axis], value, *rest[axis + 1 :])
            for axis, part in enumerate(parts)
            for index, value in enumerate(part)
        }
    chosen = {"noop": rest} | {name: each for name, each in chosen.items() if each != rest}
    if len(chosen) > MOST_SINGLE:
        raise EnvError(f"{env_id} has actions {_shown(space)}, {len(chosen):,} one at a time; {_NAMED}")
    return Actions(tuple(_value(space, each) for each in chosen.values()), tuple(chosen), native=False)


def _parts(space: Space[Any], bins: int, env_id: str) -> list[list[float]]:
    """The values of every part of a space, in ascending order."""
    if isinstance(space, MultiBinary):
        return [[0, 1]] * math.prod(space.shape)
    if isinstance(space, MultiDiscrete):
        starts, counts = np.ravel(space.start).tolist(), np.ravel(space.nvec).tolist()
        return [list(range(start, start + count)) for start, count in zip(starts, counts, strict=True)]
    if not isinstance(space, Box):
        raise EnvError(f"{env_id} has actions {_shown(space)}; wrap it so that they are Discrete, MultiDiscrete, "
                       "MultiBinary or Box")  # fmt: skip
    low, high = np.ravel(space.low).astype(float), np.ravel(space.high).astype(float)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (high - low < WIDEST).all()):
        raise EnvError(f"{env_id} has actions without bounds, {_shown(space)}, which cannot be cut into bins; {_NAMED}")
    whole = np.issubdtype(space.dtype, np.integer)
    cuts = [np.linspace(least, most, bins) for least, most in zip(low, high, strict=True)]
    return [(np.unique(np.round(cut)) if whole else cut).tolist() for cut in cuts]


def _named(space: Space[Any], requested: Mapping[str, Any], env_id: str) -> Actions:
    values = tuple(_value(space, value) for value in requested.values())
    for name, value in zip(requested, values, strict=True):
        if value is None or not space.contains(value):
            raise EnvError(f"env.actions.{name}={requested[name]} is none of {env_id}'s actions {_shown(space)}")
    if not values:
        raise EnvError(f"env.actions names no action; {env_id} has {_shown(space)}; {_NAMED}")
    return Actions(values, tuple(map(str, requested)), native=False)


def _value(space: Space[Any], value: Any) -> Any:
    """The value for the environment: a number for a Discrete space, else an array of its shape; None if invalid."""
    try:
        if isinstance(space, Discrete):
            return value if isinstance(value, int) else None
        array = np.asarray(value, np.float64).reshape(space.shape)
        return array.astype(space.dtype) if np.allclose(array, array.astype(space.dtype)) else None
    except (TypeError, ValueError):
        return None


def _shown(space: Space[Any]) -> str:
    return " ".join(str(space).split())[:160]
