"""One step ahead on a world whose likelihood, rewards and ends are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from moving_square import CERTAINTY, PLACES, World, record

from worldmodel.evaluation.onestep import OneStep, _tiles, one_step, reward_events, summary

CONTEXT, LENGTH = 4, 20
EPISODES = [record(seed) for seed in range(12)]


@pytest.fixture(scope="module")
def result() -> OneStep:
    return one_step(World(), EPISODES, CONTEXT, LENGTH, 10**6)  # type: ignore[arg-type]


def test_tiles_score_every_frame_once_with_the_context_before_it() -> None:
    for total in (1, 3, 4, 19, 20, 21, 36, 37, 71):
        tiles = list(_tiles(total, CONTEXT, LENGTH))
        scored = [frame for _, first, end in tiles for frame in range(first, end)]
        assert scored == list(range(total))
        assert len({end - start for start, _, end in tiles}) == 1
        assert all(first - start >= min(CONTEXT, first) and start >= 0 for start, first, _ in tiles)


def test_every_frame_of_every_episode_is_scored_in_order(result: OneStep) -> None:
    assert len(result.step) == sum(len(e.frames) for e in EPISODES)
    assert result.code_counts.sum() == len(result.step)
    assert np.array_equal(result.rewards[result.step == 1], [e.rewards[1] for e in EPISODES])
    assert (np.diff(result.window) >= 0).all()


def test_bits_are_those_of_the_known_likelihood(result: OneStep) -> None:
    prior = summary(result, CONTEXT, PLACES, 1)["prior"]
    assert prior["frames"] == sum(len(e.frames) - CONTEXT for e in EPISODES)
    # Each action is aligned with the frame that it led to, so every step is the likely one.
    assert prior["bits_per_code"]["value"] == pytest.approx(-math.log2(CERTAINTY))
    assert prior["bits_per_frame"]["value"] == prior["bits_per_code"]["value"]
    assert prior["bits_per_code_shuffled_actions"]["value"] > 3
    assert prior["bits_per_code_actions_are_worth"]["low"] > 2
    assert prior["bits_per_code_uniform"] == pytest.approx(math.log2(PLACES))


def test_reconstruction_of_an_exact_tokenizer(result: OneStep) -> None:
    picture = summary(result, CONTEXT, PLACES, 1)["reconstruction"]
    assert picture["psnr"]["value"] == picture["psnr_of_mean_mse"]["value"] == pytest.approx(58.92, abs=0.01)
    assert picture["ssim"]["value"] == pytest.approx(1.0)


def test_outcomes_are_aligned_with_the_frames_they_belong_to(result: OneStep) -> None:
    found = summary(result, CONTEXT, PLACES, 1)
    events = found["rewards"]["events"]
    assert found["rewards"]["mean_absolute_error"] == pytest.approx(0.0, abs=1e-6)
    assert found["rewards"]["usual_reward"] == pytest.approx(-0.01)
    assert events["positives"] == sum(int((e.rewards == 1).sum()) for e in EPISODES) > 5
    assert (events["precision"], events["recall"], events["auroc"]) == (1.0, 1.0, 1.0)
    ends = found["ends"]
    terminated = sum(e.terminated for e in EPISODES)
    assert ends["positives"] == terminated > 0 and ends["recall"] == 1.0
    assert ends["precision"] == pytest.approx(terminated / events["positives"])  # place 0 pays more often than it ends
    assert ends["truncated_episodes"] == len(EPISODES) - terminated > 0


def test_stops_after_the_frames_asked_for() -> None:
    result = one_step(World(), EPISODES, CONTEXT, LENGTH, 80)  # type: ignore[arg-type]
    assert (result.step == 0).sum() == 2  # the episode that passes the limit is finished


def test_no_episode_is_an_error() -> None:
    with pytest.raises(ValueError, match="no episode"):
        one_step(World(), [], CONTEXT, LENGTH, 80)  # type: ignore[arg-type]


def test_reward_events_are_what_is_not_usual() -> None:
    usual, events = reward_events(np.array([-0.0004, -0.0004, 1.0, -0.0004])) or (0, 0)
    assert usual == pytest.approx(-0.0004) and np.array_equal(events, [False, False, True, False])
    assert reward_events(np.arange(10.0)) is None
    nothing = reward_events(np.zeros(5))
    assert nothing is not None and not nothing[1].any()
