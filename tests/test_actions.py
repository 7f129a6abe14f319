"""Action scripts: what they mean, how they fill a horizon, and what is said of a bad one."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.dreaming.actions import MAX_STEPS, REPEAT, parse_script
from worldmodel.errors import ConfigError, UnknownActionError
from worldmodel.types import Spec

SPEC = Spec("test", (3, 8, 8), ("noop", "forward", "left", "right"), rate=10.0)
NOOP, FORWARD, LEFT, RIGHT = range(4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("forward*3,left*2", [FORWARD] * 3 + [LEFT] * 2),
        ("forward*2,left", [FORWARD] * 2 + [LEFT]),  # one count is enough to play as written
        (" forward * 2 , noop*1", [FORWARD] * 2 + [NOOP]),
        ("forward,left", [FORWARD] * REPEAT + [LEFT] * REPEAT),
        ("right", [RIGHT] * REPEAT),
    ],
)
def test_a_script_is_played_once_without_a_horizon(text: str, expected: list[int]) -> None:
    played = parse_script(text, SPEC).play()
    assert played.tolist() == expected
    assert played.dtype == np.int64


@pytest.mark.parametrize(
    ("text", "horizon", "expected"),
    [
        ("forward*2,left", 7, [FORWARD, FORWARD, LEFT, FORWARD, FORWARD, LEFT, FORWARD]),
        ("forward*9", 2, [FORWARD] * 2),
        ("forward,left", REPEAT + 1, [FORWARD] * REPEAT + [LEFT]),
        ("left,right", 2 * REPEAT + 3, [LEFT] * REPEAT + [RIGHT] * REPEAT + [LEFT] * 3),
    ],
)
def test_a_script_is_repeated_and_cut_to_the_horizon(text: str, horizon: int, expected: list[int]) -> None:
    assert parse_script(text, SPEC).play(horizon).tolist() == expected


def test_an_unknown_action_lists_the_known_ones() -> None:
    with pytest.raises(UnknownActionError, match=r"'forwards'.*noop, forward, left, right"):
        parse_script("left,forwards*3", SPEC)


EMPTY = ["", "  ", ",", "forward,,left", "forward,", "*3"]
MISCOUNTED = [
    "forward*",
    "forward*0",
    "forward*-1",
    "forward*2.5",
    "forward*x",
    "forward*2*3",
    "forward*²",
    f"left*{10**12}",
]


@pytest.mark.parametrize("text", EMPTY + MISCOUNTED)
def test_a_malformed_script_is_named(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_script(text, SPEC)


@pytest.mark.parametrize("horizon", [0, -1, MAX_STEPS + 1])
def test_a_horizon_must_be_a_sensible_number_of_steps(horizon: int) -> None:
    with pytest.raises(ConfigError, match=f"horizon {horizon}"):
        parse_script("forward", SPEC).play(horizon)


def test_a_script_may_not_outgrow_memory() -> None:
    with pytest.raises(ConfigError, match="longest"):
        parse_script(f"forward*{MAX_STEPS},left*1", SPEC)


def test_names_take_the_place_of_a_spec() -> None:
    assert parse_script("b*2,a", ("a", "b")).play().tolist() == [1, 1, 0]
    with pytest.raises(UnknownActionError, match="unknown action 'c'; choose a, b"):
        parse_script("c", ["a", "b"])
