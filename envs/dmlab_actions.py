"""The actions of DeepMind Lab: named integer vectors with one number per axis of the level's ``action_spec()``.

The axes are look left/right and down/up (pixels per frame; negative looks left), strafe left/right, move back/forward,
fire, jump and crouch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from worldmodel.errors import EnvError

_MOVES = {
    "forward": (0, 0, 0, 1, 0, 0, 0),
    "backward": (0, 0, 0, -1, 0, 0, 0),
    "strafe_left": (0, 0, -1, 0, 0, 0, 0),
    "strafe_right": (0, 0, 1, 0, 0, 0, 0),
    "turn_left": (-20, 0, 0, 0, 0, 0, 0),
    "turn_right": (20, 0, 0, 0, 0, 0, 0),
    "forward_left": (-20, 0, 0, 1, 0, 0, 0),
    "forward_right": (20, 0, 0, 1, 0, 0, 0),
}
ACTION_SETS: dict[str, dict[str, tuple[int, ...]]] = {
    "recorded": {"noop": (0,) * 7, **_MOVES},  # of the recordings that source=dmlab imports, in their order
    "impala": {**_MOVES, "fire": (0, 0, 0, 0, 1, 0, 0)},  # Espeholt et al. 2018; fire is for laser tag
}


def checked_actions(actions: str | Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The vectors of a named set or of a mapping. Raises :class:`EnvError` for other values."""
    if isinstance(actions, str):
        if actions not in ACTION_SETS:
            raise EnvError(
                f"there is no set of actions {actions!r}; choose {', '.join(ACTION_SETS)}, or give vectors by name"
            )
        return ACTION_SETS[actions]
    if not actions:
        raise EnvError(
            f"actions is {actions!r}; it must be the name of a set, or {{forward: [0, 0, 0, 1, 0, 0, 0], …}}"
        )
    return {str(name): tuple(vector) for name, vector in actions.items()}


def vectors(actions: Mapping[str, tuple[int, ...]], spec: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """Each action clipped to the ranges of the level, (n,) np.intc. Raises :class:`EnvError` for another length.

    The arrays are contiguous, because Lab reads the memory after the first number.
    """
    for name, vector in actions.items():
        if len(vector) != len(spec):
            names = ", ".join(part["name"] for part in spec)
            raise EnvError(f"actions.{name} has {len(vector)} numbers; the level takes {len(spec)}: {names}")
    low, high = [part["min"] for part in spec], [part["max"] for part in spec]
    return [np.ascontiguousarray(np.clip(vector, low, high), np.intc) for vector in actions.values()]
