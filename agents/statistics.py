"""Statistics of returns with confidence intervals over runs and their episodes.

They are those of Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, 2021. Their
runs have one score per task; here a run has one score per episode, and intervals account for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from worldmodel.evaluation.metrics import Interval, auroc, resampled

Scores = Sequence[np.ndarray]  # for each run, the returns of its episodes (E,)


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half: the ⌊n / 4⌋ lowest and the ⌊n / 4⌋ highest of n values are left out."""
    values = np.sort(np.asarray(scores, np.float64).ravel())
    cut = len(values) // 4
    return float(values[cut : len(values) - cut].mean())


def probability_of_improvement(scores: np.ndarray, others: np.ndarray) -> float:
    """P(X > Y) + P(X = Y) / 2 for X one of ``scores`` and Y one of ``others``."""
    pooled = np.concatenate([np.ravel(scores), np.ravel(others)])
    probability = auroc(pooled, np.arange(len(pooled)) < np.size(scores))
    assert probability is not None
    return probability


def stratified(statistic: Callable[..., float], *agents: Scores, seed: int = 0) -> Interval:
    """Bootstrap interval of ``statistic(scores, …)`` with the pooled scores (n,) of each agent.

    Runs are resampled within an agent and episodes within a run, so that an agent whose seeds differ has a wide
    interval regardless of the number of episodes.
    """
    value = statistic(*(np.concatenate(scores) for scores in agents))
    samples = sum(len(run) for run in agents[0])
    return resampled(lambda rng: statistic(*(_resample(scores, rng) for scores in agents)), value, samples, seed)


def _resample(scores: Scores, generator: np.random.Generator) -> np.ndarray:
    runs = generator.integers(len(scores), size=len(scores))
    return np.concatenate([scores[run][generator.integers(len(scores[run]), size=len(scores[run]))] for run in runs])


def disjoint(one: Interval, other: Interval) -> bool:
    """Whether two intervals have no value in common."""
    return bool(one.low > other.high or other.low > one.high)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's ρ: the correlation of the ranks; NaN if all values of one of them are equal."""
    from scipy.stats import rankdata  # takes a second to import

    x, y = (rankdata(values) - (len(values) + 1) / 2 for values in (one, other))
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else float("nan")


def rank_interval(one: np.ndarray, other: np.ndarray, clusters: np.ndarray, seed: int = 0) -> Interval | None:
    """Spearman's ρ of pairs (n,) with a bootstrap interval over clusters (n,), such as the episodes of the pairs.

    None if all values of one of them are equal.
    """
    value = rank_correlation(one, other)
    if np.isnan(value):
        return None
    members = [np.flatnonzero(clusters == cluster) for cluster in np.unique(clusters)]

    def draw(rng: np.random.Generator) -> float:
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        return rank_correlation(one[rows], other[rows])

    return resampled(draw, value, len(members), seed)
