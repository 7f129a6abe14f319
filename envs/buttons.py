"""Doom's buttons as named actions: one a button, and combinations of buttons that are held together."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from vizdoom import Button

from worldmodel.errors import EnvError

MOST_ACTIONS = 64
"""More combinations than this are for the user to choose from."""

TURN = Button.TURN_LEFT_RIGHT_DELTA
_TURNS = {"TURN_LEFT": ("left", -1), "TURN_RIGHT": ("right", +1), TURN.name: ("", 0)}
_NAMES = {"MOVE_FORWARD": "forward", "MOVE_BACKWARD": "backward"}
_OPPOSITES = (("left", "right"), ("forward", "backward"), ("move_left", "move_right"))


@dataclasses.dataclass(frozen=True)
class Presses:
    """Actions, and for each what every button that is used gets for one tic. The first action presses nothing."""

    names: tuple[str, ...]
    buttons: list[Button]
    values: list[list[float]]  # one list an action, one value a button


def presses(names: Sequence[str], turn: float, combine: bool | Sequence[Sequence[str]] | None) -> Presses:
    """The actions of some buttons, by ViZDoom's names of them.

    Doom's TURN_LEFT speeds up over consecutive tics, a hidden state; with ``turn`` > 0 (degrees a tic) the turns go
    through a button that takes an angle. ``combine`` adds actions that hold several buttons, called
    ``forward+attack``: those listed, or with True all that do not hold opposites. Raises :class:`EnvError` for unknown
    names, opposites that are to be held together, and more than :data:`MOST_ACTIONS` combinations.
    """
    single, called = _singles(names, turn)
    if not single:
        raise EnvError(f"no discrete action among the buttons {', '.join(names)}")
    chosen: dict[str, tuple[str, ...]] = {name: (name,) for name in single}
    if combine:
        sets = _all_sets(list(single)) if combine is True else [_one_set(entry, called) for entry in combine]
        chosen |= {"+".join(held): tuple(held) for held in sets}
    used = list(dict.fromkeys(button for button, _ in single.values()))
    values = [
        [sum((value for button, value in map(single.__getitem__, held) if button is key), 0.0) for key in used]
        for held in chosen.values()
    ]
    return Presses(("noop", *chosen), used, [[0.0] * len(used), *values])


def _singles(names: Sequence[str], turn: float) -> tuple[dict[str, tuple[Button, float]], dict[str, str]]:
    """Action → its button and what that gets; and how each name of a button or an action is called as an action."""
    single: dict[str, tuple[Button, float]] = {}
    called: dict[str, str] = {}
    for name in names:
        if name not in Button.__members__:
            raise EnvError(f"unknown ViZDoom button {name!r}; see vizdoom.Button for the names, such as MOVE_FORWARD")
        if turn > 0 and name in _TURNS:
            for side, sign in [_TURNS[name]] if _TURNS[name][0] else [_TURNS["TURN_LEFT"], _TURNS["TURN_RIGHT"]]:
                single.setdefault(side, (TURN, sign * turn))
                called[f"TURN_{side.upper()}"] = side
        elif not name.endswith("_DELTA"):  # the other deltas are continuous; they have no single step
            plain = _TURNS[name][0] if name in _TURNS else _NAMES.get(name, name.lower())
            single.setdefault(plain, (Button.__members__[name], 1.0))
            called[name] = plain
    return single, called | {plain: plain for plain in single}


def _axis(name: str) -> str:
    """What only one can be held of: opposite moves, and the choices of a weapon."""
    pair = next((pair for pair in _OPPOSITES if name in pair), None)
    return "/".join(pair) if pair else "select" if name.startswith("select_") else name


def _all_sets(names: Sequence[str]) -> list[list[str]]:
    """Every two or more actions that can be held together, the smallest sets first."""
    axes: dict[str, list[str | None]] = {}
    for name in names:
        axes.setdefault(_axis(name), [None]).append(name)
    count = 1
    for choices in axes.values():
        count *= len(choices)
    if count > MOST_ACTIONS:
        raise EnvError(
            f"combine=true makes {count} actions of {', '.join(names)}, more than {MOST_ACTIONS}; "
            "choose fewer buttons, or list what to hold together: combine=[[MOVE_FORWARD,ATTACK]]"
        )
    held = ([name for name in choice if name] for choice in itertools.product(*axes.values()))
    return sorted((each for each in held if len(each) > 1), key=len)


def _one_set(entry: Sequence[str], called: Mapping[str, str]) -> list[str]:
    for name in entry:
        if name not in called:
            raise EnvError(f"combine: there is no button {name!r} in use; choose {', '.join(called)}")
    held = [called[name] for name in entry]
    if len({_axis(name) for name in held}) < len(held):
        raise EnvError(f"combine: {' and '.join(held)} cannot be held together")
    return held
