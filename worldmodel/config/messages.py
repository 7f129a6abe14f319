"""Errors of pydantic as one line of ours: the dotted setting, the value, and the choices or the range."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from worldmodel.util.ranges import MOST

REASONS = {
    "int_type": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_type": "it must be a finite number",
    "finite_number": "it must be a finite number",
    "bool_type": "choose true, false",
    "string_type": "it must be a text",
    "greater_than_equal": "it must be at least {ge}",
    "greater_than": "it must be above {gt}",
    "less_than_equal": "it must be at most {le}",
    "less_than": "it must be below {lt}",
    "too_short": "it must be a list of at least {min_length}, written [a,b]",
    "too_long": "it must be a list of at most {max_length}, written [a,b]",
    "sequence_str": "it must be a list, written [a,b]",
    "missing": "it must be a longer list",
    "multiple_of": "it must be a multiple of {multiple_of}",
    "none_required": "it must be null",
    "value_error": "{error}",
}
"""Pydantic's types of errors → the end of our sentence."""
LISTS = ("list_type", "tuple_type", "is_instance_of", "sequence_type")


def is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def message(name: str, value: Any, error: Any) -> str:
    """One line on the most specific error: of the types that are possible, the one that fits best."""
    errors = error.errors(include_url=False)
    worst = max(errors, key=lambda each: (len(each["loc"]), not each["type"].endswith(("_type", "_str"))))
    entry = False
    place: Any = value
    for step in worst["loc"]:  # which also names the members of unions
        if isinstance(place, Mapping) and step in place:
            name, place = (f"{name}.{step}", place[step])
            value = place
        elif is_list(place) and isinstance(step, int) and step < len(place):
            entry, place = True, place[step]
    if worst["loc"] and worst["loc"][-1] == "[key]":
        return f"there is no {name}; {_reason(worst)}"
    inner = f"an entry is {_shown(worst['input'])}; " if entry else ""
    return f"{name} is {_shown(value)}; {inner}{_reason(worst)}"


def _reason(error: Mapping[str, Any]) -> str:
    kind, context = error["type"], {name: _short(value) for name, value in error.get("ctx", {}).items()}
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
        return f"choose {', '.join(words)}"
    if kind in ("dict_type", "mapping_type"):
        return "it must be values by name, such as {a: 0.5}"
    if kind in LISTS and context.get("class", "Sequence") == "Sequence":
        return "it must be a list, written [a,b]"
    if kind in ("callable_type", "is_instance_of", "is_subclass_of"):
        return "it must be settings with a _target_"
    return REASONS[kind].format(**context) if kind in REASONS else f"{error['msg'][0].lower()}{error['msg'][1:]}"


def _shown(value: Any) -> str:
    shown = "null" if value is None else repr(value) if isinstance(value, str) else " ".join(str(value).split())
    return f"{shown[:60]}{'…' * (len(shown) > 60)}"


def _short(value: Any) -> Any:
    """1.0 → 1, as the bound was written."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < MOST else value
