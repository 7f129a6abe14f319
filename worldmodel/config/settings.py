"""Which values the settings may have, stated once: for the command line, its flags and the optimisation loop."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from worldmodel.errors import ConfigError

MISSING = "???"
"""How a setting that has to be given and was not yet looks; whoever needs it says so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule(abc.ABC):
    """What a value must be."""

    optional: bool = False  # null will do
    required: bool = True  # the setting must be there; others belong to one choice of a group

    def check(self, name: str, value: Any) -> Any:
        """The value in its plain form (1e3 → 1000). Raises :class:`ConfigError`, naming the setting and the choices."""
        if value is None and self.optional:
            return None
        try:
            return self._plain(value)
        except (ValueError, ConfigError) as error:
            shown = "null" if value is None else repr(value) if isinstance(value, str) else str(value)
            raise ConfigError(f"{name} is {shown[:60]}{'…' * (len(shown) > 60)}; {error}") from None

    @abc.abstractmethod
    def _plain(self, value: Any) -> Any:
        """Raises ValueError with the end of the sentence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number(Rule):
    """A finite number within bounds."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    whole: bool = False

    def _plain(self, value: Any) -> int | float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"it must be a {'whole' if self.whole else 'finite'} number")
        if self.whole and value != int(value):
            raise ValueError("it must be a whole number")
        for right, word, bound in (
            (value >= self.least, "at least", self.least),
            (value > self.above, "above", self.above),
            (value <= self.most, "at most", self.most),
            (value < self.below, "below", self.below),
        ):
            if not right:
                raise ValueError(f"it must be {word} {bound}")
        return int(value) if self.whole else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Rule):
    """Some characters. A number is taken for its digits: a folder may be called 7."""

    def _plain(self, value: Any) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise ValueError("it must be a text that is not empty")
        return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(Rule):
    """One of a few words."""

    words: tuple[str, ...]

    def _plain(self, value: Any) -> str:
        if value not in self.words:
            raise ValueError(f"choose {', '.join(self.words)}")
        return str(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag(Rule):
    """Yes or no."""

    def _plain(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("choose true, false")
        return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Many(Rule):
    """A list of values of one kind."""

    each: Rule
    least: int = 1  # how many
    most: int | None = None

    def _plain(self, value: Any) -> list[Any]:
        if not isinstance(value, (list, tuple)) or len(value) < self.least:
            raise ValueError(f"it must be a list of at least {self.least}, written [a,b]")
        if self.most is not None and len(value) > self.most:
            raise ValueError(f"it must be a list of at most {self.most}")
        return [self.each.check("an entry", item) for item in value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nested(Rule):
    """A list of values of one kind, or a list of such lists: one for each level of a hierarchy."""

    each: Rule

    def _plain(self, value: Any) -> list[Any]:
        levels = isinstance(value, (list, tuple)) and bool(value) and all(isinstance(v, (list, tuple)) for v in value)
        rule = Many(each=Many(each=self.each)) if levels else Many(each=self.each)
        return rule._plain(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights(Rule):
    """A number for each of some names."""

    def _plain(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError("it must be numbers by name, such as {a: 0.5}")
        return {str(name): Number(least=0).check(f"the weight of {name}", item) for name, item in value.items()}


COUNT = Number(least=1, most=10**12, whole=True)  # more is a slip of the finger
SHARE = Number(least=0, most=1)
SEED = Number(least=0, below=2**63, whole=True)


RULES: dict[str, Rule] = {
    "data": Text(),
    "runs": Text(),
    "run": Text(optional=True),
    "device": Text(),
    "seed": SEED,
    "source.name": Text(),
    "steps": Number(least=0, most=10**12, whole=True),
    "episodes": COUNT,
    "collect.steps": COUNT,
    "collect.workers": Number(least=1, most=1024, whole=True),
    "collect.longest": COUNT,
    "collect.timeout": Number(above=0),
}
"""By dotted name. What is not named here is judged by what is built from it."""


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The values, by dotted name, that should be replaced by their plain form.

    Raises :class:`ConfigError` in one line for the first that may not stand, or that is missing.
    """
    plain = {}
    for name, rule in RULES.items():
        there, value = _look_up(settings, name)
        if not there and rule.required:
            raise ConfigError(f"the setting {name} is missing; it cannot be left out")
        if there and value != MISSING:
            checked = rule.check(name, value)
            if type(checked) is not type(value):
                plain[name] = checked
    return plain


def _look_up(settings: Any, name: str) -> tuple[bool, Any]:
    """Whether there is a setting of a dotted name, and its value."""
    for part in name.split("."):
        if not isinstance(settings, Mapping) or part not in settings:
            return False, None
        settings = settings[part]
    return True, settings
