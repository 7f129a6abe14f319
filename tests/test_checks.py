"""Settings are checked against the annotations of the parameters that they set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Le, Len

from worldmodel.config.checks import MISSING, build, check, check_value, checked, parameters, read
from worldmodel.errors import ConfigError
from worldmodel.util.ranges import Count, Counts, PassedTo, Positive, Share, ShareBelowOne, Text, Weights


class Inner:
    def __init__(self, width: Count, share: Share = 0.5):
        self.width, self.share = width, share


class Outer:
    def __init__(
        self,
        inner: Inner | Callable[..., Inner] | Sequence[Inner] | None = None,
        widths: Counts | Sequence[Counts] = (1,),
        mode: Literal["a", "b"] = "a",
        seconds: Positive | None = None,
        flag: bool = False,
        weights: Weights | None = None,
        passed: Annotated[Mapping[str, Any], PassedTo(Inner)] | None = None,
        **rest: Any,
    ):
        self.inner, self.widths, self.seconds, self.passed = inner, widths, seconds, passed


class Derived(Outer):
    def __init__(self, more: int = 3, **options: Any):
        super().__init__(**options)


@dataclasses.dataclass(frozen=True)
class Stage:
    steps: Count
    decay: ShareBelowOne = 0.5
    seed: int = 0


def node(target: type, **settings: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.{target.__name__}", **settings}


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (Count, 0, "x is 0; it must be at least 1"),
        (Count, 10**13, "x is 10000000000000; it must be at most 1000000000000"),
        (Count, True, "x is True; it must be a whole number"),
        (Count, "3", "x is '3'; it must be a whole number"),
        (Count, 2.5, "x is 2.5; it must be a whole number"),
        (Count, None, "x is null; it must be a whole number"),
        (Share, 2, "x is 2; it must be at most 1"),
        (Share, float("nan"), "x is nan; it must be a finite number"),
        (Share, float("inf"), "x is inf; it must be a finite number"),
        (Share, True, "x is True; it must be a finite number"),
        (ShareBelowOne, 1, "x is 1; it must be below 1"),
        (Positive, 0, "x is 0; it must be above 0"),
        (Positive | None, "no", "x is 'no'; it must be a finite number"),
        (Annotated[float, Le(1e30)], 1e300, "x is 1e+300; it must be at most 1e+30"),
        (bool, 1, "x is 1; choose true, false"),
        (Literal["a", "b"], "c", "x is 'c'; choose a, b"),
        (str, 3, "x is 3; it must be a text"),
        (Text, " ", "x is ' '; it must be a text that is not empty"),
        (Counts, 3, "x is 3; it must be a list, written [a,b]"),
        (Counts, "ab", "x is 'ab'; it must be a list, written [a,b]"),
        (Counts, [], "x is []; it must be a list of at least 1, written [a,b]"),
        (Counts, [32, 0], "x is [32, 0]; an entry is 0; it must be at least 1"),
        (Annotated[Sequence[float], Len(2, 2)], [1], "x is [1]; it must be a list of at least 2, written [a,b]"),
        (Counts | Sequence[Counts], [[1, 0], [2]], "x is [[1, 0], [2]]; an entry is 0; it must be at least 1"),
        (Weights, 3, "x is 3; it must be values by name, such as {a: 0.5}"),
        (Weights, {"end": -1}, "x.end is -1; it must be at least 0"),
        (Mapping[Literal["a"], int], {"b": 1}, "there is no x.b; choose a"),
        (Callable[..., Inner], 3, "x is 3; it must be settings with a _target_"),
        (Inner | None, 3, "x is 3; it must be settings with a _target_"),
        (str, "a" * 99, None),
        (str | None, None, None),
        (Counts, (1, 2), None),
        (Any, object(), None),
    ],
)  # fmt: skip
def test_values(annotation: Any, value: Any, message: str | None) -> None:
    if message is None:
        check_value("x", annotation, value)
        return
    with pytest.raises(ConfigError) as caught:
        check_value("x", annotation, value)
    assert str(caught.value) == message


def test_numbers_and_names_come_in_their_plain_form() -> None:
    assert repr(check_value("x", Count, 1e4)) == "10000"
    assert repr(check_value("x", Share, 1)) == "1.0"
    assert check_value("x", Text, 7) == "7"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (node(Outer, seconds=0), "o.seconds is 0; it must be above 0"),
        (node(Outer, inner=node(Inner, width=0)), "o.inner.width is 0; it must be at least 1"),
        (node(Outer, inner=[node(Inner, width=1), node(Inner, width=0)]), "o.inner[1].width is 0; it must be at least"),
        (node(Outer, inner=3), "o.inner is 3; it must be settings with a _target_"),
        (node(Outer, passed={"width": 0}), "o.passed.width is 0; it must be at least 1"),
        (node(Outer, passed={"wide": 1}), "there is no o.passed.wide; choose width, share"),
        (node(Inner, wide=1), "there is no o.wide; choose width, share"),
        (node(Derived, mode="c"), "o.mode is 'c'; choose a, b"),
        (node(Derived, more=1.5), "o.more is 1.5; it must be a whole number"),
        ({"deep": {"er": node(Inner, width=-1)}}, "o.deep.er.width is -1; it must be at least 1"),
        ({"_target_": "no.where"}, "o._target_ is 'no.where', which cannot be imported: "),
    ],
)
def test_nodes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(settings, "o")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_what_is_right_is_built() -> None:
    settings = node(Outer, inner=node(Inner, width=1e2, _partial_=True), widths=[[1], [2, 3]], passed={"width": 3}, x=1)
    made = build(settings, "o")
    assert made.inner().width == 100 and made.widths == [[1], [2, 3]] and made.passed == {"width": 3}
    assert check(node(Inner, width=MISSING), "o")["width"] == MISSING  # whoever needs it says so


def test_names_of_the_bases_are_known_where_they_are_passed_on() -> None:
    known = parameters(Derived)
    assert {"more", "mode", "seconds"} <= set(known.types) and known.open
    assert not parameters(Inner).open


def test_a_dataclass_is_read() -> None:
    assert read(Stage, {"steps": 1e3}, "s", seed=4) == Stage(1000, 0.5, 4)
    with pytest.raises(ConfigError, match=r"^the setting s\.steps is missing; it cannot be left out$"):
        read(Stage, None, "s")
    with pytest.raises(ConfigError, match=r"^s\.decay is 1; it must be below 1$"):
        read(Stage, {"steps": 1, "decay": 1}, "s")
    with pytest.raises(ConfigError, match=r"^there is no s\.stepz; choose steps, decay, seed$"):
        read(Stage, {"stepz": 1}, "s")


def test_a_constructor_that_is_called_directly_can_be_checked() -> None:
    @checked
    def make(width: Annotated[int, Ge(2)] = 2, *, name: Any = None) -> int:
        return width

    assert make() == 2 and make(3, name=object()) == 3
    with pytest.raises(ConfigError, match="width is 1; it must be at least 2"):
        make(1)
