"""Ranges of settings, to annotate the parameters and fields that they set: ``width: Count``.

They are pydantic's constraints, checked by :mod:`worldmodel.config.checks`. Where none of these fits, annotate the
parameter with :mod:`annotated_types`: ``num_codes: Annotated[int, Ge(2)]``.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Len, Lt

MOST = 10**12  # more is taken for a typing error
MOST_FPS = 1e6


@dataclass(frozen=True)
class Parsed:
    """Marks a type whose values a function reads. It raises ValueError with the end of the sentence."""

    read: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core.core_schema import no_info_plain_validator_function

        return no_info_plain_validator_function(self.read)


@dataclass(frozen=True)
class PassedTo:
    """Marks a mapping, or ``**`` parameters, that are passed on as keyword arguments.

    ``target``: what receives them, as a callable or its dotted name; or, for ``by_id``, nothing: the constructor of the
    gymnasium environment whose id is beside the mapping.
    """

    target: Any = None
    by_id: bool = False


def _text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # a folder may be called 7
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("it must be a text that is not empty")
    return value


Text = Annotated[str, Parsed(_text)]
FilePath = Annotated[str, Parsed(lambda value: os.path.expanduser(_text(value)))]
Count = Annotated[int, Ge(1), Le(MOST)]
Whole = Annotated[int, Ge(0), Le(MOST)]
NumCodes = Annotated[int, Ge(2), Le(MOST)]
Seed = Annotated[int, Ge(0), Lt(2**63)]
Pixels = Annotated[int, Ge(1), Le(4096)]
Positive = Annotated[float, Gt(0)]
Temperature = Annotated[float, Gt(0), Le(1e6)]
NonNegative = Annotated[float, Ge(0)]
FramesPerSecond = Annotated[float, Gt(0), Le(MOST_FPS)]
Share = Annotated[float, Ge(0), Le(1)]
ShareBelowOne = Annotated[float, Ge(0), Lt(1)]
Weights = Mapping[str, NonNegative]
Counts = Annotated[Sequence[Count], Len(1)]
Wholes = Annotated[Sequence[Whole], Len(1)]
Levels = Annotated[Sequence[Counts], Len(1)]
Names = Annotated[Sequence[Text], Len(1)]
