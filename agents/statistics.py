"""How sure returns are: the interquartile mean, chances to be better, and intervals over runs and their episodes.

A score sheet is a list with an array for each training run (each seed) of an agent: the returns of its episodes.
Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, 2021, is where the figures are
from. Their runs have one score a task; here a run has a score an episode, so intervals know of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from worldmodel.evaluation.metrics import Interval, auroc, resampled

Scores = Sequence[np.ndarray]  # for each run, the returns of its episodes (E,)


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half: of n values the ⌊n / 4⌋ lowest and as many of the highest are left out."""
    values = np.sort(np.asarray(scores, np.float64).ravel())
    cut = len(values) // 4
    return float(values[cut : len(values) - cut].mean())


def probability_of_improvement(scores: np.ndarray, others: np.ndarray) -> float:
    """P(X > Y) + P(X = Y) / 2 for X one of ``scores`` and Y one of ``others``."""
    both = np.concatenate([np.ravel(scores), np.ravel(others)])
    chance = auroc(both, np.arange(len(both)) < np.size(scores))
    assert chance is not None
    return chance


def stratified(statistic: Callable[..., float], *sheets: Scores, seed: int = 0) -> Interval:
    """Bootstrap interval of ``statistic(pooled scores, …)``, one pool (n,) for each score sheet.

    Runs are drawn with replacement from those of their own sheet, and episodes from those of their own run: an agent
    whose seeds differ has a wide interval, however many episodes each of them played.
    """
    value = statistic(*(np.concatenate(sheet) for sheet in sheets))
    samples = sum(len(run) for run in sheets[0])
    return resampled(lambda rng: statistic(*(_drawn(sheet, rng) for sheet in sheets)), value, samples, seed)


def _drawn(sheet: Scores, generator: np.random.Generator) -> np.ndarray:
    runs = generator.integers(len(sheet), size=len(sheet))
    return np.concatenate([sheet[run][generator.integers(len(sheet[run]), size=len(sheet[run]))] for run in runs])


def apart(one: Interval, other: Interval) -> bool:
    """Whether two intervals have no value in common."""
    return bool(one.low > other.high or other.low > one.high)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's ρ: the correlation of the ranks; NaN where all values of either are alike."""
    from scipy.stats import rankdata  # takes a second to import

    x, y = (rankdata(values) - (len(values) + 1) / 2 for values in (one, other))
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else float("nan")


def rank_interval(one: np.ndarray, other: np.ndarray, clusters: np.ndarray, seed: int = 0) -> Interval | None:
    """Spearman's ρ of pairs (n,) with a bootstrap interval over clusters (n,), such as the episodes that pairs are of.

    None where all values of either are alike: there is nothing to rank.
    """
    value = rank_correlation(one, other)
    if np.isnan(value):
        return None
    members = [np.flatnonzero(clusters == cluster) for cluster in np.unique(clusters)]

    def draw(rng: np.random.Generator) -> float:
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        return rank_correlation(one[rows], other[rows])

    return resampled(draw, value, len(members), seed)
