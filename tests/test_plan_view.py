"""What is imagined next to the real frames: the right frames under the right actions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldmodel.agents.base import Plan
from worldmodel.agents.report import BLANK, lagged_strips, plan_strips, save_plan
from worldmodel.errors import ConfigError
from worldmodel.types import Episode

NAMES = ("stay", "left", "right")
STEPS, HORIZON = 6, 4


def level(number: int) -> np.ndarray:
    """(3, 8, 8) uint8: frame t is of the level t; that imagined for t is 100 brighter."""
    return np.full((3, 8, 8), number, np.uint8)


def plan_at(step: int) -> Plan:
    grids = step + 1 + np.arange(HORIZON)[:, None]
    actions = np.arange(step, step + HORIZON) % 3
    ends = np.zeros(HORIZON, np.float32)
    return Plan(actions, np.full(HORIZON, 0.5, np.float32), ends, 1.5, grids,
                lambda grids: np.stack([level(100 + int(grid[0])) for grid in grids]))  # fmt: skip


FRAMES = np.stack([level(t) for t in range(STEPS + 1)])
EPISODE = Episode.from_steps(FRAMES, np.arange(STEPS) % 3, np.arange(STEPS, dtype=np.float32), True, False)
PLANS = [plan_at(step) if step != 2 else None for step in range(STEPS)]  # an action was held at step 2


def levels(frames: np.ndarray) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in frames]


def test_a_plan_is_shown_next_to_the_real_frames() -> None:
    real, dream = plan_strips(EPISODE, PLANS, NAMES, 1)
    assert levels(real.frames) == [1, 2, 3, 4, 5] and levels(dream.frames) == [1, 102, 103, 104, 105]
    assert real.actions == dream.actions == (None, "left", "right", "stay", "left")
    assert real.caption == "real: reward 10.00" and dream.caption == "imagined: reward 2.00"
    real, dream = plan_strips(EPISODE, PLANS, NAMES, 4)  # the episode ends sooner than the plan
    assert levels(real.frames) == [4, 5, 6] and levels(dream.frames) == [4, 105, 106]
    assert real.caption == "real: reward 9.00" and dream.caption == "imagined: reward 1.00"


def test_an_episode_stands_beside_what_was_foreseen() -> None:
    real, one, four = lagged_strips(EPISODE, PLANS, NAMES, lags=(1, 4, 8))
    assert levels(real.frames) == list(range(7)) and real.actions == (None, *(NAMES[t % 3] for t in range(6)))
    assert levels(one.frames) == [BLANK, 101, 102, 103, 104, 105, 106]
    assert one.actions == (None, "stay", "left", "right", "stay", "left", "right")
    assert levels(four.frames) == [BLANK] * 4 + [104, 105, BLANK]
    nothing = [None, *PLANS[1:]]  # at first nothing was imagined
    real, one, *_ = lagged_strips(EPISODE, nothing, NAMES)
    assert levels(one.frames) == [BLANK, BLANK, 102, 103, 104, 105, 106]


def test_an_episode_may_be_shorter_than_the_plans() -> None:
    short = Episode.from_steps(FRAMES[:3], np.arange(2), np.zeros(2, np.float32), False, True)
    _, one, *rest = lagged_strips(short, PLANS[:2], NAMES, lags=(1, 4))
    assert levels(one.frames) == [BLANK, 101, 102] and not rest


def test_it_is_written(tmp_path: Path) -> None:
    for name, step in (("plan.png", 0), ("episode.png", None), ("episode.gif", None)):
        path = save_plan(tmp_path / name, EPISODE, PLANS, NAMES, 10.0, step)
        with Image.open(path) as picture:
            assert getattr(picture, "n_frames", 1) == (7 if name.endswith("gif") else 1)


@pytest.mark.parametrize(
    ("plans", "step", "message"),
    [
        (PLANS, 2, "there is no plan at step 2; some of the steps 0 to 5 have one"),
        (PLANS, 9, "there is no plan at step 9; some of the steps 0 to 5 have one"),
        ([None] * 6, 0, "there is no plan at step 0; this agent makes no plans"),
    ],
)
def test_a_step_without_a_plan_is_named(plans: list[Plan | None], step: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_strips(EPISODE, plans, NAMES, step)
