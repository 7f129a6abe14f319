"""Doom's buttons as named actions: one per button, and combinations of buttons that are pressed together."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from vizdoom import Button

from worldmodel.errors import EnvError

MOST_ACTIONS = 64  # combinations for ``combine=True``

TURN = Button.TURN_LEFT_RIGHT_DELTA
_TURNS = {"TURN_LEFT": ("left", -1), "TURN_RIGHT": ("right", +1), TURN.name: ("", 0)}
_NAMES = {"MOVE_FORWARD": "forward", "MOVE_BACKWARD": "backward"}
_OPPOSITES = (("left", "right"), ("forward", "backward"), ("move_left", "move_right"))


@dataclasses.dataclass(frozen=True)
class ButtonActions:
    """Actions and the values of all used buttons for one tic. The first action presses no button."""

    names: tuple[str, ...]
    buttons: list[Button]
    values: list[list[float]]  # one list per action, one value per button


def make_actions(names: Sequence[str], turn: float, combine: bool | Sequence[Sequence[str]] | None) -> ButtonActions:
    """The actions of buttons, given by ViZDoom's names.

    Doom's TURN_LEFT accelerates over consecutive tics, which is a hidden state; with ``turn`` > 0 (degrees per tic)
    turns use a button that takes an angle. ``combine`` adds actions that press several buttons, named
    like ``forward+attack``: those listed, or with True all without opposites. Raises :class:`EnvError` for unknown
    names, combined opposites, and more than :data:`MOST_ACTIONS` combinations.
    """
    single, action_of = _single_actions(names, turn)
    if not single:
        raise EnvError(f"no discrete action among the buttons {', '.join(names)}")
    chosen: dict[str, tuple[str, ...]] = {name: (name,) for name in single}
    if combine:
        listed = [] if combine is True else [_combination(entry, action_of) for entry in combine]
        chosen |= {"+".join(pressed): tuple(pressed) for pressed in listed or _all_combinations(list(single))}
    used = list(dict.fromkeys(button for button, _ in single.values()))
    values = [
        [sum((value for button, value in map(single.__getitem__, pressed) if button is key), 0.0) for key in used]
        for pressed in chosen.values()
    ]
    return ButtonActions(("noop", *chosen), used, [[0.0] * len(used), *values])


def _single_actions(names: Sequence[str], turn: float) -> tuple[dict[str, tuple[Button, float]], dict[str, str]]:
    """Action → its button and the value of it; and the name of a button or an action → action."""
    single: dict[str, tuple[Button, float]] = {}
    action_of: dict[str, str] = {}
    for name in names:
        if name not in Button.__members__:
            raise EnvError(f"unknown ViZDoom button {name!r}; see vizdoom.Button for the names, such as MOVE_FORWARD")
        if turn > 0 and name in _TURNS:
            for side, sign in [_TURNS[name]] if _TURNS[name][0] else [_TURNS["TURN_LEFT"], _TURNS["TURN_RIGHT"]]:
                single.setdefault(side, (TURN, sign * turn))
                action_of[f"TURN_{side.upper()}"] = side
        elif not name.endswith("_DELTA"):  # the other deltas are continuous
            action = _TURNS[name][0] if name in _TURNS else _NAMES.get(name, name.lower())
            single.setdefault(action, (Button.__members__[name], 1.0))
            action_of[name] = action
    return single, action_of | {action: action for action in single}


def _axis(name: str) -> str:
    """The group of actions that exclude each other: opposite moves, or the choices of a weapon."""
    pair = next((pair for pair in _OPPOSITES if name in pair), None)
    return "/".join(pair) if pair else "select" if name.startswith("select_") else name


def _all_combinations(names: Sequence[str]) -> list[list[str]]:
    """All combinations of two or more actions that do not exclude each other, the smallest first."""
    axes: dict[str, list[str | None]] = {}
    for name in names:
        axes.setdefault(_axis(name), [None]).append(name)
    count = math.prod(map(len, axes.values()))
    if count > MOST_ACTIONS:
        reason = f"combine=true makes {count} actions of {', '.join(names)}, more than {MOST_ACTIONS}"
        raise EnvError(f"{reason}; choose fewer buttons, or list the combinations: combine=[[MOVE_FORWARD,ATTACK]]")
    pressed = ([name for name in choice if name] for choice in itertools.product(*axes.values()))
    return sorted((each for each in pressed if len(each) > 1), key=len)


def _combination(entry: Sequence[str], action_of: Mapping[str, str]) -> list[str]:
    for name in entry:
        if name not in action_of:
            raise EnvError(f"combine: there is no button {name!r} in use; choose {', '.join(action_of)}")
    pressed = [action_of[name] for name in entry]
    if len({_axis(name) for name in pressed}) < len(pressed):
        raise EnvError(f"combine: {' and '.join(pressed)} cannot be pressed together")
    return pressed
