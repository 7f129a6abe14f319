"""Metrics: similarity of frames, use of codes, detection of rare events, and bootstrap intervals."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PEAK = 255.0  # data range of uint8 frames
MSE_FLOOR = 1 / 12
"""Lower limit of mean squared errors, the variance of rounding to 8 bits. It limits the PSNR of
identical frames to 58.92 dB."""

RESAMPLES, CONFIDENCE = 1000, 0.95  # of the bootstrap

SSIM_WINDOW, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03


def mse(frames: Tensor, others: Tensor) -> Tensor:
    """Mean squared error of each frame: two (..., C, H, W) uint8 → (...) float64 in squared intensity values."""
    return (frames.float() - others.float()).square().flatten(-3).mean(-1).double()


def decibels(error: Tensor | np.ndarray | float) -> np.ndarray:
    """PSNR in dB of mean squared errors in squared intensity values: 10 log₁₀(255² / MSE), with :data:`MSE_FLOOR`."""
    return 10 * np.log10(PEAK**2 / np.maximum(np.asarray(error, dtype=np.float64), MSE_FLOOR))


def psnr(frames: Tensor, others: Tensor) -> np.ndarray:
    """PSNR of each frame: two (..., C, H, W) uint8 → (...) dB."""
    return decibels(mse(frames, others))


def ssim(frames: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of each frame: two (..., C, H, W) uint8 → (...) float64 in [-1, 1].

    Wang, Bovik, Sheikh, Simoncelli, *Image quality assessment: from error visibility to structural similarity*, 2004:
    Gaussian window 11 × 11 with σ = 1.5, K1 = 0.01, K2 = 0.03, data range 255, mean over the positions of the window
    inside the frame and over channels. In smaller frames, the window is as large as the frame.
    """
    lead, (channels, height, width) = frames.shape[:-3], frames.shape[-3:]
    x = frames.reshape(-1, height, width).float() / PEAK
    y = others.reshape(-1, height, width).float() / PEAK
    # In chunks, to limit memory.
    values = [_ssim_planes(*planes) for planes in zip(x.split(256), y.split(256), strict=True)]
    return torch.cat(values).reshape(*lead, channels).mean(-1)


def _window(extent: int, device: torch.device) -> Tensor:
    """(extent, positions): the Gaussian window along one axis as a matrix, which is faster than a convolution."""
    size = min(extent, SSIM_WINDOW)
    offsets = torch.arange(extent, device=device)[:, None] - torch.arange(extent - size + 1, device=device)
    weights = torch.exp(-(offsets - (size - 1) / 2).square() / (2 * SSIM_SIGMA**2))
    weights = weights.masked_fill((offsets < 0) | (offsets >= size), 0.0)
    return weights / weights[:, :1].sum()


def _ssim_planes(x: Tensor, y: Tensor) -> Tensor:
    """(P, H, W) float in [0, 1], twice → (P,) float64."""
    down, across = _window(x.shape[1], x.device), _window(x.shape[2], x.device)
    moments = down.T @ torch.cat([x, y, x * x, y * y, x * y]) @ across
    mean_x, mean_y, square_x, square_y, product = moments.chunk(5)
    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    covariance = product - mean_x * mean_y
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    value = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    value = value / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return value.double().mean((1, 2))


@dataclasses.dataclass(frozen=True)
class CodeUsage:
    """Counts of each code."""

    counts: np.ndarray  # (K,) int64

    @property
    def used(self) -> int:
        """Codes that occurred at least once."""
        return int((self.counts > 0).sum())

    @property
    def perplexity(self) -> float:
        """exp of the entropy of the codes' frequencies: the number of equally frequent codes with that entropy."""
        shares = self.counts[self.counts > 0] / max(1, self.counts.sum())
        return float(np.exp(-(shares * np.log(shares)).sum()))

    def to_json(self) -> dict[str, Any]:
        counts = sorted(self.counts.tolist(), reverse=True)
        used = {"used": self.used, "of": len(counts), "share": self.used / len(counts)}
        return {**used, "perplexity": self.perplexity, "counts_sorted": counts}


def usage_of(books: Sequence[CodeUsage]) -> dict[str, Any]:
    """Use of several codebooks: means and the figures of each."""
    return {
        "share": float(np.mean([book.used / len(book.counts) for book in books])),
        "perplexity": float(np.mean([book.perplexity for book in books])),
        "books": [book.to_json() for book in books],
    }


def jensen_shannon(counts: np.ndarray, others: np.ndarray) -> float:
    """Jensen-Shannon divergence (Lin 1991) in bits of two histograms (K,) of counts: 0 if their shares are equal, 1 if
    nothing occurs in both."""
    shares = np.stack([counts / counts.sum(), others / others.sum()])

    def entropy(p: np.ndarray) -> float:
        return float(-(p[p > 0] * np.log2(p[p > 0])).sum())

    return max(0.0, entropy(shares.mean(0)) - (entropy(shares[0]) + entropy(shares[1])) / 2)


def bits(nats: np.ndarray) -> np.ndarray:
    """Nats → bits."""
    return nats / math.log(2)


def auroc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Probability that a positive scores above a negative, ties counted half (Mann-Whitney), or None."""
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return None
    from scipy.stats import rankdata  # takes a second to import

    return float((rankdata(scores)[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Area under precision over recall as a step function, Σ (Rₙ - Rₙ₋₁) Pₙ over thresholds; None without positives.

    Chance level is the share of positives.
    """
    positives = int(labels.sum())
    if not positives:
        return None
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    hits, seen = hits[last_of_tie], (np.arange(len(scores)) + 1)[last_of_tie]
    return float((np.diff(hits, prepend=0) / positives * hits / seen).sum())


def detection(scores: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, Any]:
    """Precision, recall and ranking metrics of ``scores > threshold``, with the number of positives."""
    chosen = scores > threshold
    hits = int((chosen & labels).sum())
    return {
        "positives": int(labels.sum()),
        "of": len(labels),
        "threshold": threshold,
        "precision": hits / int(chosen.sum()) if chosen.any() else None,
        "recall": hits / int(labels.sum()) if labels.any() else None,
        "auroc": auroc(scores, labels),
        "average_precision": average_precision(scores, labels),
    }


@dataclasses.dataclass(frozen=True)
class Interval:
    """A statistic with a percentile interval; three arrays of the shape of the statistic."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    samples: int  # number of resampled units: windows, episodes or pairs

    def to_json(self) -> dict[str, Any]:
        low, high = self.low.tolist(), self.high.tolist()
        return {"value": self.value.tolist(), "low": low, "high": high, "samples": self.samples}


def resampled(draw: Callable[[np.random.Generator], Any], value: Any, samples: int, seed: int = 0) -> Interval:
    """Percentile bootstrap (Efron 1979): ``draw`` computes the statistic of one resample, ``value`` is that of the
    data. Resamples in which the statistic is not defined (NaN) are left out."""
    generator = np.random.default_rng(seed)
    draws = np.stack([np.asarray(draw(generator), dtype=np.float64) for _ in range(RESAMPLES)])
    quantile = np.nanquantile if np.isnan(draws).any() else np.quantile
    low, high = quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return Interval(np.asarray(value, dtype=np.float64), np.asarray(low), np.asarray(high), samples)


def bootstrap(statistic: Callable[..., Any], *samples: np.ndarray, paired: bool = True, seed: int = 0) -> Interval:
    """Interval of ``statistic(*samples)``, resampling along the first axis of each sample.

    ``paired``: the samples share their first axis and are resampled together, as for a difference on the same windows.
    """

    def draw(generator: np.random.Generator) -> Any:
        first, *others = samples
        rows = generator.integers(len(first), size=len(first))
        drawn = (other[rows if paired else generator.integers(len(other), size=len(other))] for other in others)
        return statistic(first[rows], *drawn)

    return resampled(draw, statistic(*samples), len(samples[0]), seed)


def mean_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """Mean over the first axis with its bootstrap interval."""
    return bootstrap(lambda rows: rows.mean(0), values, seed=seed)


def ratio_of_sums(sums: np.ndarray, counts: np.ndarray, seed: int = 0) -> Interval:
    """Mean of values in clusters (episodes) of unequal size, resampling whole clusters.

    ``sums``, ``counts``: (n,) sum of the values and number of values in each cluster.
    """
    return bootstrap(lambda s, c: s.sum() / c.sum(), sums, counts, seed=seed)


def ratio_of_means(values: np.ndarray, others: np.ndarray, paired: bool = True, seed: int = 0) -> Interval:
    """Mean of values over that of others."""
    return bootstrap(lambda v, o: v.mean() / max(o.mean(), 1e-9), values, others, paired=paired, seed=seed)
