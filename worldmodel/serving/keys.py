"""Keys for actions, from the names of the actions.

Directions are the arrows and W, A, S, D; firing and using are the space bar; a combined action (``UPRIGHTFIRE``,
``forward+attack``) is its keys together; an action that does nothing is the absence of keys. Other actions get digits,
and letters when there are no digits left.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from worldmodel.media.draw import DIRECTIONS, FIRE, known_words
from worldmodel.types import Spec

# Keys are called by their position, as KeyboardEvent.code does, so that W, A, S, D lie together on every keyboard.
KEYS = {
    "up": ("ArrowUp", "KeyW"),
    "down": ("ArrowDown", "KeyS"),
    "left": ("ArrowLeft", "KeyA"),
    "right": ("ArrowRight", "KeyD"),
    "fire": ("Space",),
}
SIDEWAYS = {"move left": ("KeyA",), "move right": ("KeyD",)}
"""Where an environment has both turns and moves to the side, turns are the arrows, and moves the letters."""
USE = ("do", "use", "toggle", "interact", "jump")  # the first such action gets the space bar, if nothing is fired
OTHERS = (*(f"Digit{digit}" for digit in "1234567890"), *(f"Key{letter}" for letter in "BCEFHIJOQTVXYZ"))
"""In this order; the remaining letters are the page's own shortcuts."""
SYMBOLS = {
    frozenset({"up"}): "↑", frozenset({"down"}): "↓", frozenset({"left"}): "←", frozenset({"right"}): "→",
    frozenset({"up", "left"}): "↖", frozenset({"up", "right"}): "↗",
    frozenset({"down", "left"}): "↙", frozenset({"down", "right"}): "↘",
}  # fmt: skip
AXES = {(0, -1): "up", (0, 1): "down", (-1, 0): "left", (1, 0): "right"}


class ActionKeys(NamedTuple):
    """How an action is chosen: one key of each group is pressed."""

    name: str
    keys: tuple[tuple[str, ...], ...]  # groups of keys that mean the same; () for none
    noop: bool  # whether it is taken when no key is pressed
    symbol: str  # what a button shows beside the name, "" for nothing


def page_facts(run: str, spec: Spec, **offered: Any) -> dict[str, Any]:
    """What the page is built from; ``offered``: what it can do."""
    actions = [key._asdict() for key in action_keys(spec.action_names)]
    return {"run": run, "environment": spec.env_id, "rate": spec.rate, **offered, "actions": actions}


def action_keys(names: Sequence[str]) -> tuple[ActionKeys, ...]:
    """The keys of each action, in their order; no two actions have the same."""
    parts = [_parts(name) for name in names]
    single = {next(iter(part)) for part in parts if part is not None and len(part) == 1}
    sideways = {word for word in SIDEWAYS if word in single and word.removeprefix("move ") in single}
    free = iter(OTHERS)
    fires = "fire" in single
    counts: Counter[frozenset[str]] = Counter()
    result = []
    for name, part in zip(names, parts, strict=True):
        if part is None and not fires and name.lower() in USE:
            part, fires = frozenset({"fire"}), True
        if part is not None:
            part = frozenset(word if word in sideways else word.removeprefix("move ") for word in part)
            counts[part] += 1
        if part is None or counts[part] > 1:
            key = next(free, None)
            result.append(ActionKeys(name, ((key,),) if key else (), False, ""))
            continue
        groups = tuple(_keys(word, sideways) for word in sorted(part))
        result.append(ActionKeys(name, groups, not part, _symbol(part)))
    return tuple(result)


def _keys(word: str, sideways: set[str]) -> tuple[str, ...]:
    if word in SIDEWAYS:
        return SIDEWAYS[word]
    return KEYS[word][:1] if f"move {word}" in sideways else KEYS[word]


def _symbol(part: frozenset[str]) -> str:
    plain = frozenset(word.removeprefix("move ") for word in part)
    arrow = SYMBOLS.get(plain - {"fire"}, "")
    return arrow + "●" * ("fire" in plain) if part else "·"


def _parts(name: str) -> frozenset[str] | None:
    """The directions of an action and ``fire``; none for an action that does nothing, None for an unknown name."""
    result: set[str] = set()
    for piece in name.split("+"):
        words = known_words(piece)
        if words is None:
            return None
        aside = re.match(r"(?i)(move|strafe|step)[\W_]*(left|right)$", piece.strip())
        for word in words:
            if word in FIRE:
                result.add("fire")
            elif word in DIRECTIONS:
                direction = AXES[DIRECTIONS[word]]
                result.add(f"move {direction}" if aside else direction)
    return frozenset(result)
