"""Return dreamt against return obtained: an environment whose reward names its step tells every shift by one."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.agents.dreamt_returns import DREAMS_AT_ONCE, dream_returns
from worldmodel.agents.evaluation import EpisodeMeasurements, Settings
from worldmodel.agents.playing import play
from worldmodel.recording.recorder import Order
from worldmodel.types import NO_ACTION, Spec

SPEC = Spec("test:steps", (1, 4, 4), ("a", "b", "c"), 10.0)


class Steps:
    """Frame n shows n; the step from frame n on pays (n + 1)², so that no two stretches of equal length pay alike."""

    data_spec = SPEC

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.length = 3 + int(np.random.default_rng(seed).integers(20))
        self.now = 0
        return self._frame(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert action == self.now % 3
        self.now += 1
        return self._frame(), float(self.now**2), self.now == self.length, False, {}

    def _frame(self) -> np.ndarray:
        return np.full(SPEC.frame_shape, self.now, np.uint8)

    def close(self) -> None:
        pass


class InTurn:
    """Takes action n mod 3 at frame n."""

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        pass

    def act(self, frame: np.ndarray) -> int:
        return int(frame[0, 0, 0]) % 3


class Knower:
    """A world that knows the rewards, and refuses frames and actions that do not belong together."""

    def __init__(self, late: int = 0, end: int | None = None):
        self.late, self.end, self.calls = late, end, 0  # end: the frame that half of all episodes end with

    def imagine(
        self, frames: Tensor, actions: Tensor, *, seen_actions: Tensor, temperature: float, generator: Any
    ) -> SimpleNamespace:
        self.calls += 1
        numbers = frames[:, :, 0, 0, 0].long()
        now = numbers[:, -1:]
        assert len(frames) <= DREAMS_AT_ONCE and frames.dtype == torch.uint8
        assert (numbers.diff(dim=1) == 1).all() and seen_actions.shape == numbers.shape
        assert (seen_actions == torch.where(numbers > 0, (numbers - 1) % 3, NO_ACTION)).all()
        ahead = now + torch.arange(actions.shape[1])
        known = actions == ahead % 3
        lengths = known.long().cumprod(1).sum(1)  # behind an episode's end, the batch is padded
        assert (lengths >= 1).all() and (lengths == actions.shape[1]).any()
        rewards = ((ahead + 1 + self.late) ** 2).float()
        return SimpleNamespace(rewards=rewards, ends=0.5 * (ahead + 1).eq(-1 if self.end is None else self.end).float())


def played(context: int, horizon: int, starts: int = 4) -> EpisodeMeasurements:
    measurements = EpisodeMeasurements(Settings(None, horizon, starts, temperature=1.0, videos=3), 0, context)
    for one in play(Steps, InTurn(), [Order.episode(0, number, 1000) for number in range(30)]):
        measurements.add(one)
    return measurements


@pytest.mark.parametrize(("context", "horizon"), [(1, 5), (4, 5), (4, 1000)])
def test_a_world_that_knows_foresees_exactly(context: int, horizon: int) -> None:
    measurements, world = played(context, horizon), Knower()
    stretches = [window for number in range(30) for window in measurements.windows[number]]
    found = dream_returns(world, stretches)
    assert np.array_equal(found.dreamt, found.obtained)
    wanted = [sum((k + 1) ** 2 for k in range(w.start, w.start + len(w.actions))) for w in stretches]
    assert found.obtained.tolist() == wanted
    lengths = measurements.column("length")
    ends = np.minimum(lengths[found.episodes], found.starts + horizon)
    assert np.array_equal(found.starts + found.lengths, ends)  # to the end of the episode, or of the horizon
    assert world.calls < len(stretches) / 3  # many in one pass
    for late in (-1, 1):
        assert not np.array_equal(dream_returns(Knower(late), stretches).dreamt, found.obtained)


def test_nothing_is_earned_behind_an_end() -> None:
    measurements = played(1, 1000, starts=1)
    stretches = [measurements.windows[number][0] for number in range(30)]
    found = dream_returns(Knower(end=4), stretches)
    before = sum((k + 1) ** 2 for k in range(4))
    assert found.dreamt.tolist() == [
        min(before, found.obtained[row]) + 0.5 * max(0, found.obtained[row] - before) for row in range(30)
    ]
    assert any(found.obtained > before)


def test_every_episode_is_dreamt_from_its_beginning_and_from_elsewhere() -> None:
    measurements = played(4, 5, starts=6)
    found = dream_returns(Knower(), [window for number in range(30) for window in measurements.windows[number]])
    counts = np.minimum(measurements.column("length"), 6)  # a short episode has fewer frames to start from
    assert np.array_equal(np.bincount(found.episodes), counts) and (found.starts == 0).sum() == 30
    assert len(set(zip(found.episodes, found.starts, strict=True))) == len(found.starts)
    told = found.to_json(5)
    assert told["first"]["windows"] == 30 and told["first"]["rank_correlation"]["samples"] == 30
    assert told["all"]["rank_correlation"]["value"] == pytest.approx(1)
    assert told["full_length"]["windows"] == int((found.lengths == 5).sum()) < len(found.starts)


def test_nothing_to_rank_is_told_as_such() -> None:
    found = dream_returns(Knower(), played(1, 2).windows[0])
    constant = dream_returns(Knower(), [played(1, 2).windows[0][0]] * 3)
    assert found.to_json(2)["all"]["rank_correlation"] is not None
    assert constant.to_json(2)["all"]["rank_correlation"] is None
    assert constant.to_json(99)["full_length"] == {"windows": 0, "rank_correlation": None}
