"""Log-F0: how high a voice is, how much it moves, and how far a converted one has moved.

A track is (T,) F0 in Hz, 0 or NaN where unvoiced, of whatever tracker and rate. All figures are differences of natural
logarithms; :data:`SEMITONE` is one semitone of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

SEMITONE = math.log(2) / 12


def voiced(track: np.ndarray) -> np.ndarray:
    """(T,) bool: where a track has an F0. Raises ``ValueError`` for another shape or for negative frequencies."""
    track = np.asarray(track)
    if track.ndim != 1:
        raise ValueError(f"a track of F0 is (T,) Hz, got {track.shape}")
    if (track < 0).any() or np.isinf(track).any():
        raise ValueError("a track of F0 has values that are no frequency")
    return np.nan_to_num(track) > 0


def log_f0(track: np.ndarray) -> np.ndarray:
    """Natural logarithms of the F0 of the voiced frames, (V,) float64."""
    return np.log(np.asarray(track, dtype=np.float64)[voiced(track)])


@dataclasses.dataclass(frozen=True)
class Pitch:
    """Log-F0 of a voice or an utterance."""

    mean: float  # ln Hz
    std: float  # ln Hz
    frames: int  # voiced ones
    share: float  # of frames that are voiced

    @property
    def hertz(self) -> float:
        """The geometric mean of F0."""
        return math.exp(self.mean)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "hertz": self.hertz}


def pitch(tracks: Sequence[np.ndarray]) -> Pitch:
    """Mean and deviation of log-F0 over all voiced frames of the tracks. Raises ``ValueError`` where none is voiced."""
    values = np.concatenate([log_f0(track) for track in tracks]) if len(tracks) else np.empty(0)
    if not len(values):
        raise ValueError("no frame is voiced: there is no F0 to speak of")
    frames = sum(len(track) for track in tracks)
    return Pitch(float(values.mean()), float(values.std()), len(values), len(values) / frames)


@dataclasses.dataclass(frozen=True)
class Contour:
    """Two aligned tracks compared where both are voiced; None where too few frames are for it."""

    rmse: float | None  # ln Hz
    correlation: float | None
    moved: float | None  # ln Hz, the mean of the second less that of the first
    frames: int  # voiced in both
    voicing_error: float  # share of frames voiced in one only

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def contour(reference: np.ndarray, track: np.ndarray, path: np.ndarray | None = None) -> Contour:
    """Compare tracks frame by frame, or along a path (L, 2) of :func:`worldmodel.speech.scores.alignment.dtw`.

    The correlation (Pearson) says whether the intonation is kept where the voice is another: a converted voice may be
    an octave off the source in ``rmse`` and follow it exactly. Raises ``ValueError`` for tracks of different lengths.
    """
    one, other = np.asarray(reference, dtype=np.float64), np.asarray(track, dtype=np.float64)
    if path is not None:
        one, other = one[path[:, 0]], other[path[:, 1]]
    first, second = voiced(one), voiced(other)
    if len(one) != len(other) or not len(one):
        raise ValueError(f"tracks of {len(one)} and {len(other)} frames are not aligned")
    both = first & second
    count = int(both.sum())
    a, b = np.log(one[both]), np.log(other[both])
    spread = a.std() * b.std() if count > 1 else 0.0
    return Contour(
        float(np.sqrt(np.square(a - b).mean())) if count else None,
        float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread else None,
        float((b - a).mean()) if count else None,
        count,
        float((first != second).mean()),
    )


def pitch_distances(converted: Sequence[np.ndarray], source: Pitch, target: Pitch) -> dict[str, float]:
    """How far the mean log-F0 of converted speech is from the target's and the source's; absolute, ln Hz.

    ``share``: how much of the way from the source to the target it went, 1 for all of it (nonsense where both voices
    are equally high, so it comes with the ``way``).
    """
    mean = pitch(converted).mean
    way = target.mean - source.mean
    return {
        "to_target": abs(mean - target.mean),
        "to_source": abs(mean - source.mean),
        "way": abs(way),
        "share": (mean - source.mean) / way if way else math.nan,
    }
