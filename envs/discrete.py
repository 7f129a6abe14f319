"""Any action space as numbered, named actions: the number is recorded, the environment gets the value.

==============  ================================================================================================
Discrete        its numbers, from wherever they start
MultiDiscrete   all combinations where they are few (:data:`MOST_COMBINED`), else one part at a time, the others at 0
MultiBinary     the same with parts of 0 and 1
Box             ``bins`` evenly spaced values an axis from its lowest to its highest; combinations as above, else
                one axis at a time, the others at rest: at 0 where they can be, else in the middle
any             named values: ``{left: [-1, 0], right: [1, 0]}``, or ``{up: 2, down: 3}`` to choose from numbers
==============  ================================================================================================

The first action is the one at rest, ``noop``; combinations are called by the levels of their parts (``0_2_1``, counted
from the lowest), single parts by their place and level (``axis1_2``).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space

from worldmodel.errors import EnvError

MOST_COMBINED = 32
"""Most actions that combinations may make; past it the parts take turns."""
MOST_ACTIONS = 512
BINS = 3
WIDEST = 1e9
"""A Box that is wider, as of bounds that are the largest float, has none to speak of."""
_NAMED = "env.actions={left: [-1, 0], right: [1, 0]} names the actions that are wanted"


@dataclasses.dataclass(frozen=True)
class Actions:
    """Numbered actions: what each is to the environment, and what it is called where nobody says otherwise."""

    values: tuple[Any, ...]
    names: tuple[str, ...]
    own: bool  # the numbers are the environment's, whose names for them hold

    def __len__(self) -> int:
        return len(self.values)


def discrete(space: Space[Any], wanted: Mapping[str, Any] | None, env_id: str) -> Actions:
    """The actions of a space: ``wanted`` is None, ``{"bins": n}`` for a Box, or values by name.

    Raises :class:`EnvError` for a space of another kind, a Box without bounds, values outside of the space, and too
    many actions.
    """
    bins = BINS
    if wanted is not None:
        if set(wanted) != {"bins"} or not isinstance(wanted["bins"], int):
            return _named(space, wanted, env_id)
        bins = wanted["bins"]
        if not isinstance(space, Box) or bins < 2:
            raise EnvError(f"env.actions.bins={bins}: a Box is cut into 2 or more; {env_id} has {_shown(space)}")
    if isinstance(space, Discrete):
        values = tuple(range(int(space.start), int(space.start + space.n)))
        return Actions(values, tuple(map(str, values)), own=True)
    parts = _parts(space, bins, env_id)
    rest = tuple(_at_rest(levels) for levels in parts)
    if math.prod(map(len, parts)) <= MOST_COMBINED:
        chosen = {
            "_".join(str(level) for level, _ in each): tuple(value for _, value in each)
            for each in itertools.product(*map(enumerate, parts))
        }
    else:
        chosen = {
            f"axis{place}_{level}": (*rest[:place], value, *rest[place + 1 :])
            for place, levels in enumerate(parts)
            for level, value in enumerate(levels)
        }
    chosen = {"noop": rest} | {name: each for name, each in chosen.items() if each != rest}
    if len(chosen) > MOST_ACTIONS:
        raise EnvError(f"{env_id} has actions {_shown(space)}, {len(chosen):,} one at a time; {_NAMED}")
    return Actions(tuple(_value(space, each) for each in chosen.values()), tuple(chosen), own=False)


def _parts(space: Space[Any], bins: int, env_id: str) -> list[list[float]]:
    """The values of every part of a space, the lowest first."""
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


def _at_rest(levels: Sequence[float]) -> float:
    """0 where it lies within, else the level in the middle; what a part does while others act."""
    return 0 if levels[0] <= 0 <= levels[-1] else levels[len(levels) // 2]


def _named(space: Space[Any], wanted: Mapping[str, Any], env_id: str) -> Actions:
    values = tuple(_value(space, value) for value in wanted.values())
    for name, value in zip(wanted, values, strict=True):
        if value is None or not space.contains(value):
            raise EnvError(f"env.actions.{name}={wanted[name]} is none of {env_id}'s actions {_shown(space)}")
    if not values:
        raise EnvError(f"env.actions names no action; {env_id} has {_shown(space)}; {_NAMED}")
    return Actions(values, tuple(map(str, wanted)), own=False)


def _value(space: Space[Any], value: Any) -> Any:
    """What the environment is given: a number for a Discrete space, else an array of its shape; None if none fits."""
    try:
        if isinstance(space, Discrete):
            return value if isinstance(value, int) else None
        array = np.asarray(value, np.float64).reshape(space.shape)
        return array.astype(space.dtype) if np.allclose(array, array.astype(space.dtype)) else None
    except (TypeError, ValueError):
        return None


def _shown(space: Space[Any]) -> str:
    return " ".join(str(space).split())[:160]
