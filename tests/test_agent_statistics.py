"""Statistics of returns, against values worked out by hand and the definitions of Agarwal et al., 2021."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from worldmodel.agents.comparison import disjoint, interquartile_mean, probability_of_improvement, stratified
from worldmodel.agents.dreamt_returns import rank_correlation, rank_interval
from worldmodel.evaluation.metrics import Interval


@pytest.mark.parametrize(
    ("scores", "mean"),
    [
        ([8, 1, 2, 3, 4, 5, 6, 7], 4.5),  # 3, 4, 5, 6
        ([1, 2, 3, 4, 100], 3.0),  # ⌊5 / 4⌋ = 1 left out on either side
        ([1, 2, 30], 11.0),  # none left out
        ([[0, 9, 9, 9], [0, 0, 9, 1000]], 6.75),  # 0, 9, 9, 9
    ],
)
def test_interquartile_mean(scores: list, mean: float) -> None:
    assert interquartile_mean(np.array(scores)) == pytest.approx(mean)


def test_probability_of_improvement_counts_ties_by_half() -> None:
    assert probability_of_improvement(np.array([1, 2, 3]), np.array([2, 2])) == pytest.approx((0 + 0.5 + 1) / 3)
    assert probability_of_improvement(np.array([5.0]), np.array([1.0, 2.0])) == 1
    rng = np.random.default_rng(0)
    x, y = rng.integers(5, size=30), rng.integers(6, size=20)
    by_pairs = np.mean([(a > b) + 0.5 * (a == b) for a, b in itertools.product(x, y)])
    assert probability_of_improvement(x, y) == pytest.approx(by_pairs)
    assert probability_of_improvement(y, x) == pytest.approx(1 - by_pairs)


def test_intervals_know_of_seeds_as_well_as_of_episodes() -> None:
    good, bad = np.ones(50), np.zeros(50)
    found = stratified(np.mean, [good, bad])
    assert (found.value, found.low, found.high, found.samples) == (
        0.5,
        0,
        1,
        100,
    )  # the seeds may all be of either kind
    pooled = stratified(np.mean, [np.concatenate([good, bad])])
    assert pooled.value == 0.5 and 0.4 <= pooled.low <= 0.42 and 0.58 <= pooled.high <= 0.6  # ± 1.96 · 0.5 / 10
    uneven = stratified(np.mean, [np.array([1.0]), np.array([3.0, 3.0, 3.0])])
    assert (uneven.value, uneven.low, uneven.high) == (2.5, 1, 3)


def test_an_interval_of_two_sheets_draws_each_from_its_own() -> None:
    better = stratified(probability_of_improvement, [np.full(5, 2.0)], [np.full(3, 1.0), np.full(3, 1.5)])
    assert (better.value, better.low, better.high) == (1, 1, 1)
    again = [stratified(np.mean, [np.arange(9.0)], seed=seed) for seed in (0, 0, 1)]
    assert again[0] == again[1] and again[0] != again[2]


def test_intervals_apart() -> None:
    def interval(low: float, high: float) -> Interval:
        return Interval(np.array(low), np.array(low), np.array(high), 1)

    assert disjoint(interval(0, 1), interval(1.1, 2)) and disjoint(interval(1.1, 2), interval(0, 1))
    assert not disjoint(interval(0, 1), interval(1, 2)) and not disjoint(interval(0, 9), interval(1, 2))


def test_rank_correlation() -> None:
    assert rank_correlation(np.array([1, 2, 2, 4]), np.array([1, 3, 2, 4])) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    x = np.array([3.0, 1, 2, 9, 4])
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1) and rank_correlation(x, -(x**3)) == pytest.approx(-1)
    assert np.isnan(rank_correlation(x, np.ones(5)))


def test_its_interval_resamples_episodes_whole() -> None:
    rng = np.random.default_rng(0)
    x, episodes = rng.normal(size=40), np.repeat(np.arange(10), 4)
    loose = rank_interval(x, x + rng.normal(size=40), episodes)
    assert loose is not None and loose.low < loose.value < loose.high and loose.samples == 10
    one = rank_interval(x, x + rng.normal(size=40), np.zeros(40))
    assert one is not None and one.low == one.high == pytest.approx(
        float(one.value)
    )  # a single cluster is always drawn
    assert rank_interval(x, np.ones(40), episodes) is None
