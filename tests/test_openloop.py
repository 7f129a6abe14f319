"""Open loop on a world whose right dream is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from moving_square import World, windows

from worldmodel.evaluation.metrics import MSE_FLOOR, decibels
from worldmodel.evaluation.openloop import OpenLoop, derangement, open_loop, summary

PERFECT = float(decibels(MSE_FLOOR))


@pytest.fixture(scope="module")
def result() -> OpenLoop:
    return open_loop(World(), windows(24, 14), 4, seed=1, batch=10, pictures=3)  # type: ignore[arg-type]


def test_a_derangement_moves_everything() -> None:
    for count in (2, 3, 17):
        order = derangement(count, torch.Generator().manual_seed(count))
        assert sorted(order.tolist()) == list(range(count))
        assert (order != torch.arange(count)).all()


def test_the_right_dream_is_perfect_and_the_others_are_not(result: OpenLoop) -> None:
    found = summary(result, (1, 5, 10))
    curves = {name: np.array(curve["psnr"]["value"]) for name, curve in found["curves"].items()}
    assert curves["reconstruction"] == pytest.approx(np.full(10, PERFECT))
    assert curves["dream"] == pytest.approx(np.full(10, PERFECT))  # an off-by-one in the actions would break this
    assert found["curves"]["dream"]["ssim"]["value"] == pytest.approx([1.0] * 10, abs=1e-6)
    assert (curves["shuffled"] < PERFECT - 3).all() and (curves["last_frame"] < PERFECT - 3).all()
    assert result.squared_error["dream"].shape == (24, 10)


def test_gains_are_the_differences_at_the_steps(result: OpenLoop) -> None:
    found = summary(result, (1, 5, 10, 30))
    assert found["steps"] == [1, 5, 10]  # 30 lies behind the horizon
    for rival in ("last_frame", "shuffled"):
        gain = found["gain_over"][rival]["psnr"]
        curve = np.array(found["curves"][rival]["psnr"]["value"])[[0, 4, 9]]
        assert gain["value"] == pytest.approx(PERFECT - curve)
        assert all(
            low <= value <= high for low, value, high in zip(gain["low"], gain["value"], gain["high"], strict=True)
        )
        assert min(gain["low"]) > 0


def test_last_frame_repeats_the_last_seen_frame(result: OpenLoop) -> None:
    assert torch.equal(result.pictures["last_frame"][:, 3], result.seen[:, -1])
    assert result.shown.tolist() == [0, 11, 23]
    assert torch.equal(result.truth, windows(24, 14).frames[[0, 11, 23], 4:])  # type: ignore[index]
    assert result.pictures["dream"].shape == (3, 10, 3, 16, 24)


def test_a_dream_that_ignores_its_actions_gains_nothing_by_true_ones() -> None:
    found = summary(open_loop(World(obedience=0.0), windows(24, 14), 4), (5,))  # type: ignore[arg-type]
    gain = found["gain_over"]["shuffled"]["psnr"]
    assert gain["low"][0] < 0 < gain["high"][0]


def test_the_mean_of_dreams_is_nearer_to_the_truth_than_one_of_them() -> None:
    """Half of the steps are random: with 32 dreams, the squared error is that of the expected frame plus 1/32 of the
    variance, where one dream has all of the variance."""
    found = open_loop(World(obedience=0.5), windows(24, 14), 4, samples=32, batch=64)  # type: ignore[arg-type]
    mean, sampled = (found.squared_error[name].mean() for name in ("dream_mean", "dream_sampled"))
    assert mean < 0.65 * sampled
    figures = summary(found, (1, 5))
    curves = {name: np.array(curve["psnr"]["value"])[[0, 4]] for name, curve in figures["curves"].items()}
    gain = figures["mean_gain_over_last_frame"]["psnr"]["value"]
    assert gain == pytest.approx(curves["dream_mean"] - curves["last_frame"])


def test_the_mean_of_equal_dreams_is_the_dream(result: OpenLoop) -> None:
    found = open_loop(World(), windows(24, 14), 4, samples=3, batch=10)  # type: ignore[arg-type]
    assert np.array_equal(found.squared_error["dream_mean"], found.squared_error["dream_sampled"])
    assert "dream_mean" not in result.squared_error and summary(result, (1,))["mean_gain_over_last_frame"] is None


def test_the_other_dreams_do_not_depend_on_the_mean() -> None:
    """Three batches, so that the noise of later ones would show it."""
    world = World(obedience=0.5)
    without, with_mean = (
        open_loop(world, windows(24, 14), 4, seed=2, batch=10, samples=samples)  # type: ignore[arg-type]
        for samples in (None, 4)
    )
    for name, errors in without.squared_error.items():
        assert np.array_equal(errors, with_mean.squared_error[name])


def test_one_window_cannot_be_shuffled() -> None:
    with pytest.raises(ValueError, match="two windows"):
        open_loop(World(), windows(1, 14), 4)  # type: ignore[arg-type]
