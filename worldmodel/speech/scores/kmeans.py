"""k-means: the codes that no network is needed for, and so the least that learnt ones must beat."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CHUNK = 4096  # rows of distances at a time


@dataclasses.dataclass(frozen=True)
class KMeans:
    """A codebook of K centres."""

    centres: Tensor  # (K, D) float32
    inertia: float  # mean squared distance of the points it was fitted to

    def codes(self, points: Tensor) -> Tensor:
        """(N, D) → (N,) int64: the nearest centre of each point."""
        return nearest(points, self.centres)[1]


def nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D), (K, D) → squared distances (N,) to the nearest centres, and which those are (N,)."""
    if points.ndim != 2 or centres.ndim != 2 or points.shape[1] != centres.shape[1]:
        raise ValueError(f"points (N, D) need centres (K, D), got {tuple(points.shape)} and {tuple(centres.shape)}")
    middle = centres.mean(0)  # without it the difference of large squares loses the small distances
    centres = centres - middle
    found = []
    for part in points.split(CHUNK):
        rows = part - middle
        least = (centres.square().sum(1) - 2 * rows @ centres.T).min(1)
        found.append((least.values + rows.square().sum(1), least.indices))
    return torch.cat([d for d, _ in found]).clamp(min=0), torch.cat([i for _, i in found])


def _seeded(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): each further centre a point drawn in proportion to its squared
    distance from the nearest centre so far."""
    chosen = [int(torch.randint(len(points), (), generator=generator))]
    distance = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < clusters:
        chosen.append(int(torch.multinomial(distance + 1e-12, 1, generator=generator)))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen]


def kmeans(points: Tensor, clusters: int, restarts: int = 4, iterations: int = 100, seed: int = 0) -> KMeans:
    """Lloyd's algorithm from k-means++ seeds; the best of several restarts. ``points``: (N, D) float.

    A centre without points moves to the point that is farthest from its own. Raises ``ValueError`` for fewer points
    than clusters.
    """
    points = points.float()
    if points.ndim != 2 or not 1 <= clusters <= len(points):
        raise ValueError(f"{clusters} clusters need as many points (N, D), got {tuple(points.shape)}")
    generator = torch.Generator().manual_seed(seed)
    best: KMeans | None = None
    for _ in range(restarts):
        centres = _seeded(points, clusters, generator)
        before = None
        for _ in range(iterations):
            distance, codes = nearest(points, centres)
            if before is not None and torch.equal(codes, before):
                break
            before = codes
            counts = torch.bincount(codes, minlength=clusters)
            centres = torch.zeros_like(centres).index_add_(0, codes, points) / counts.clamp(min=1)[:, None]
            empty = (counts == 0).nonzero()[:, 0]
            centres[empty] = points[distance.topk(len(empty)).indices]
        inertia = float(nearest(points, centres)[0].mean())
        if best is None or inertia < best.inertia:
            best = KMeans(centres, inertia)
    assert best is not None
    return best


def kmeans_codes(
    features: Sequence[Tensor], clusters: int, fit_on: Sequence[bool] | None = None, **options: int
) -> list[np.ndarray]:
    """Codes of n utterances of (T, D) features, (T,) int64 each, by centres of those that ``fit_on`` names, or of all.

    The control of a tokenizer: K as many as it has codes, features as often. Log-mels pooled to its rate are the
    paper's neighbour; :func:`mel_cepstrum` of them, with the mean over the utterance removed, is the harder rival.
    """
    chosen = [row for i, row in enumerate(features) if fit_on is None or fit_on[i]]
    if not chosen:
        raise ValueError("no utterance to fit the centres to")
    found = kmeans(torch.cat(chosen), clusters, **options)
    return [found.codes(row.float()).numpy() for row in features]
