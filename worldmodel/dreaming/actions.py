"""The syntax of ``--actions``: ``forward,left`` or ``forward*12,left*4,forward*8``.

A script is a list of action names, separated by commas, each with an optional count ``*n``:

- if any count is given, a name without a count is one step;
- without counts, each action is repeated for :data:`REPEAT` steps: ``forward,left`` is 8 steps forward, then 8 left;
- with a horizon, the script is repeated or cut to the horizon.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from worldmodel.errors import ConfigError, UnknownActionError
from worldmodel.types import Spec

REPEAT = 8
"""Number of steps of each action in a script without counts."""

MAX_STEPS = 100_000
"""Maximum length of a script or horizon."""


@dataclasses.dataclass(frozen=True)
class Script:
    """A parsed script: actions and their numbers of steps, in order."""

    steps: tuple[tuple[int, int], ...]  # (index of the action, count >= 1)

    def __len__(self) -> int:
        """Number of steps of the script."""
        return sum(count for _, count in self.steps)

    def play(self, horizon: int | None = None) -> np.ndarray:
        """The actions step by step: (H,) int64, H = ``horizon``, or the script's own length.

        A script shorter than the horizon is repeated, a longer one is cut. Raises :class:`ConfigError` when the
        horizon is not between 1 and :data:`MAX_STEPS`.
        """
        once = np.concatenate([np.full(count, action, dtype=np.int64) for action, count in self.steps])
        if horizon is None:
            return once
        if not 1 <= horizon <= MAX_STEPS:
            raise ConfigError(f"horizon {horizon}; give a number of steps from 1 to {MAX_STEPS}")
        return np.resize(once, horizon)


def parse_script(text: str, actions: Spec | Sequence[str]) -> Script:
    """Parse an action script with the action names of a Spec, or with these names.

    Raises :class:`UnknownActionError` for a name that is not among them, :class:`ConfigError` for an empty script, an
    empty entry, or a count that is not a whole number of at least 1.
    """
    names = actions.action_names if isinstance(actions, Spec) else tuple(actions)
    if not text.strip():
        raise ConfigError(f"empty action script; give names such as {_example(names)}")
    entries = [_parse_entry(entry, text, names) for entry in text.split(",")]
    repeat = REPEAT if all(count is None for _, count in entries) else 1
    script = Script(tuple((action, repeat if count is None else count) for action, count in entries))
    if len(script) > MAX_STEPS:
        raise ConfigError(f"action script of {len(script)} steps; the longest is {MAX_STEPS}")
    return script


def _parse_entry(entry: str, text: str, names: tuple[str, ...]) -> tuple[int, int | None]:
    name, star, count = (part.strip() for part in entry.partition("*"))
    if not name:
        raise ConfigError(f"an action is missing in {text!r}; separate names by commas, such as {_example(names)}")
    if name not in names:
        raise UnknownActionError(name, names)
    if not star:
        return names.index(name), None
    if not (count.isascii() and count.isdecimal() and len(count) < 10 and int(count) > 0):
        raise ConfigError(f"count {count!r} in {entry.strip()!r}; write {name}*n with a whole n of at least 1")
    return names.index(name), int(count)


def _example(names: Sequence[str]) -> str:
    return repr(",".join(names[-2:]))
