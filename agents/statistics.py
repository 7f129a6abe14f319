"""How sure returns are: the interquartile mean, chances to be better, and intervals over runs and their episodes.

A score sheet is a list with an array for each training run (each seed) of an agent: the returns of its episodes.
Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, 2021, is where the figures are
from. Their runs have one score a task; here a run has a score an episode, so intervals know of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from worldmodel.evaluation.metrics import Interval

Scores = Sequence[np.ndarray]  # for each run, the returns of its episodes (E,)
RESAMPLES, LEVEL = 1000, 0.95


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half: of n values the ⌊n / 4⌋ lowest and as many of the highest are left out."""
    values = np.sort(np.asarray(scores, np.float64).ravel())
    cut = len(values) // 4
    return float(values[cut : len(values) - cut].mean())


def probability_of_improvement(scores: np.ndarray, others: np.ndarray) -> float:
    """P(X > Y) + P(X = Y) / 2 for X one of ``scores`` and Y one of ``others`` (Mann and Whitney's U over its most)."""
    ordered = np.sort(np.asarray(others).ravel())
    values = np.asarray(scores).ravel()
    below, upto = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(ordered)))


def stratified(statistic: Callable[..., float], *sheets: Scores, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Percentile bootstrap of ``statistic(pooled scores, …)``, one pool (n,) for each score sheet.

    Runs are drawn with replacement from those of their own sheet, and episodes from those of their own run: an agent
    whose seeds differ has a wide interval, however many episodes each of them played.
    """
    generator = np.random.default_rng(seed)
    draws = [statistic(*(_drawn(sheet, generator) for sheet in sheets)) for _ in range(resamples)]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = statistic(*(np.concatenate(sheet) for sheet in sheets))
    return Interval(np.float64(value), low, high, sum(len(run) for run in sheets[0]))  # type: ignore[arg-type]


def _drawn(sheet: Scores, generator: np.random.Generator) -> np.ndarray:
    runs = generator.integers(len(sheet), size=len(sheet))
    return np.concatenate([sheet[run][generator.integers(len(sheet[run]), size=len(sheet[run]))] for run in runs])


def apart(one: Interval, other: Interval) -> bool:
    """Whether two intervals have no value in common."""
    return bool(one.low > other.high or other.low > one.high)


def ranks(values: np.ndarray) -> np.ndarray:
    """(n,) → ranks from 1 on, the mean rank within ties."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return found


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's ρ: the correlation of the ranks; NaN where all values of either are alike."""
    x, y = (ranks(values) - (len(values) + 1) / 2 for values in (one, other))
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
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])
        draws.append(rank_correlation(one[rows], other[rows]))
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(np.float64(value), low, high, len(members))  # type: ignore[arg-type]
