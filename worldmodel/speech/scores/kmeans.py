"""k-means: codes without a network, a baseline for learned codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from worldmodel.quantizers import nearest


def kmeans(points: Tensor, clusters: int, restarts: int = 4, iterations: int = 100, seed: int = 0) -> Tensor:
    """Centres (K, D) of points (N, D): Lloyd's algorithm from k-means++ seeds, the best of several restarts.

    A centre without points moves to the point farthest from its centre. Raises ``ValueError`` for fewer points
    than clusters.
    """
    points = points.float()
    if points.ndim != 2 or not 1 <= clusters <= len(points):
        raise ValueError(f"{clusters} clusters need as many points (N, D), got {tuple(points.shape)}")
    generator = torch.Generator().manual_seed(seed)
    results = [_lloyd(points, _seeded(points, clusters, generator), iterations) for _ in range(restarts)]
    return min(results, key=lambda centres: float(_distances(points, centres, nearest(points, centres)).mean()))


def _distances(points: Tensor, centres: Tensor, codes: Tensor) -> Tensor:
    return (points - centres[codes]).square().sum(1)


def _seeded(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): each further centre a point drawn in proportion to its squared
    distance from the nearest centre so far."""
    chosen = [int(torch.randint(len(points), (), generator=generator))]
    distance = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < clusters:
        chosen.append(int(torch.multinomial(distance + 1e-12, 1, generator=generator)))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen]


def _lloyd(points: Tensor, centres: Tensor, iterations: int) -> Tensor:
    before = None
    for _ in range(iterations):
        codes = nearest(points, centres)
        if before is not None and torch.equal(codes, before):
            break
        before = codes
        counts = torch.bincount(codes, minlength=len(centres))
        distance = _distances(points, centres, codes)
        centres = torch.zeros_like(centres).index_add_(0, codes, points) / counts.clamp(min=1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        centres[empty] = points[distance.topk(len(empty)).indices]
    return centres


def kmeans_codes(features: Sequence[Tensor], clusters: int, fit_on: Sequence[bool], seed: int = 0) -> list[np.ndarray]:
    """Codes of n utterances of (T, D) features, (T,) int64 each, by the centres of those that ``fit_on`` selects.

    A baseline for a tokenizer with as many codes at the same rate. Log-mels pooled to its rate are those of the
    paper; their :func:`mel_cepstrum` with the mean over the utterance subtracted is stronger.
    """
    chosen = [row for row, fit in zip(features, fit_on, strict=True) if fit]
    if not chosen:
        raise ValueError("no utterance to fit the centres to")
    centres = kmeans(torch.cat(chosen), clusters, seed=seed)
    return [nearest(row, centres).numpy() for row in features]
