"""Accuracy of codes as phonemes: each code is mapped to its most frequent phoneme, as in van den Oord, Vinyals,
Kavukcuoglu, *Neural Discrete Representation Learning*, 2017, but on other speakers and sentences than it is scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from worldmodel.evaluation.metrics import Interval, bootstrap, ratio_of_sums

UNKNOWN = -1
"""Label of a frame without a phoneme, which is neither counted nor scored."""

Rows = Sequence[np.ndarray]
"""One (T,) integer array an utterance."""


@dataclasses.dataclass(frozen=True)
class Mapped:
    """Numbers of frames of n utterances whose phoneme a mapping predicts correctly."""

    right: np.ndarray  # (n,) int64, by the phoneme of the code
    baseline: np.ndarray  # (n,) int64, by the most frequent phoneme of the counted half
    frames: np.ndarray  # (n,) int64
    unseen: int  # frames whose code does not occur in the counted half
    phonemes: int  # number of phonemes that codes are mapped to

    def accuracy(self, seed: int = 0) -> Interval:
        """Share of the frames, with an interval over utterances."""
        return ratio_of_sums(self.right, self.frames, seed)

    def most_frequent(self, seed: int = 0) -> Interval:
        """The same of the baseline."""
        return ratio_of_sums(self.baseline, self.frames, seed)

    def times_baseline(self, seed: int = 0) -> Interval:
        """Accuracy over that of the baseline, on the same utterances."""
        return bootstrap(lambda right, base: right.sum() / max(base.sum(), 1), self.right, self.baseline, seed=seed)

    def to_json(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy().to_json(),
            "most_frequent": self.most_frequent().to_json(),
            "times_baseline": self.times_baseline().to_json(),
            "frames": int(self.frames.sum()),
            "unseen": self.unseen,
            "phonemes": self.phonemes,
        }


def joined(first: Mapped, second: Mapped) -> Mapped:
    """The score of both directions together."""
    return Mapped(
        np.concatenate([first.right, second.right]),
        np.concatenate([first.baseline, second.baseline]),
        np.concatenate([first.frames, second.frames]),
        first.unseen + second.unseen,
        max(first.phonemes, second.phonemes),
    )


def _checked(codes: Rows, labels: Rows, vocabulary: int) -> list[tuple[np.ndarray, np.ndarray]]:
    if len(codes) != len(labels) or not len(codes):
        raise ValueError(f"codes of {len(codes)} utterances and labels of {len(labels)} do not pair up")
    pairs = [(np.asarray(c), np.asarray(p)) for c, p in zip(codes, labels, strict=True)]
    for c, p in pairs:
        if c.ndim != 1 or c.shape != p.shape or c.dtype.kind not in "iu" or p.dtype.kind not in "iu":
            what = f"{c.shape} {c.dtype} and {p.shape} {p.dtype}"
            raise ValueError(f"an utterance has as many codes as labels, (T,) integers, got {what}")
        if len(c) and (c.min() < 0 or c.max() >= vocabulary or p.min() < UNKNOWN):
            what = f"codes {c.min()} to {c.max()} and labels from {p.min()} on"
            raise ValueError(f"codes are 0 to {vocabulary - 1} and labels -1 or more, got {what}")
    return pairs


def counted(codes: Rows, labels: Rows, vocabulary: int, phonemes: int, leave_out: int | None = None) -> np.ndarray:
    """n[code, phoneme], (K, P) int64, over all frames with a label other than ``leave_out``."""
    counts = np.zeros((vocabulary, phonemes), dtype=np.int64)
    for c, p in _checked(codes, labels, vocabulary):
        known = (p != UNKNOWN) & (p != (UNKNOWN if leave_out is None else leave_out))
        np.add.at(counts, (c[known], p[known]), 1)
    return counts


def phoneme_mapping(
    codes_a: Rows, labels_a: Rows, codes_b: Rows, labels_b: Rows, vocabulary: int, leave_out: int | None = None
) -> Mapped:
    """Map each code to its most frequent phoneme in half A and score half B. Codes that do not occur in A are mapped to
    the most frequent phoneme of A; ties go to the lowest number.

    ``leave_out``: a label, such as silence, whose frames are neither counted nor scored. Raises ``ValueError`` for
    codes and labels that do not fit, and when no frame has a label. See :func:`both_ways` for disjoint halves.
    """
    phonemes = 1 + max(int(np.max(p, initial=-1)) for p in (*labels_a, *labels_b))
    counts = counted(codes_a, labels_a, vocabulary, max(1, phonemes), leave_out)
    pairs = _checked(codes_b, labels_b, vocabulary)
    if not counts.sum():
        raise ValueError("no frame to count has a label")
    common = int(counts.sum(0).argmax())
    seen = counts.sum(1) > 0
    mapping = np.where(seen, counts.argmax(1), common)
    rows, unseen = [], 0
    for c, p in pairs:
        known = (p != UNKNOWN) & (p != (UNKNOWN if leave_out is None else leave_out))
        c, p = c[known], p[known]
        rows.append(((mapping[c] == p).sum(), (p == common).sum(), len(p)))
        unseen += int((~seen[c]).sum())
    right, baseline, frames = np.array(rows, dtype=np.int64).T
    if not frames.sum():
        raise ValueError("no frame to score has a label")
    return Mapped(right, baseline, frames, unseen, len(set(mapping[seen].tolist())))


def both_ways(
    codes: Rows,
    labels: Rows,
    halves: np.ndarray,
    sentences: Sequence[str],
    vocabulary: int,
    leave_out: int | None = None,
) -> tuple[Mapped, Mapped]:
    """Count on A and score B, and vice versa; :func:`joined` combines the two.

    ``halves``: (n,) 0 for A or 1 for B, disjoint in speakers. Utterances of sentences in both halves, such as TIMIT's
    sa1, are counted but not scored.
    """
    halves = np.asarray(halves)
    if not len(codes) == len(labels) == len(halves) == len(sentences) or set(halves.tolist()) != {0, 1}:
        raise ValueError("every utterance needs codes, labels, a half (0 or 1, both present) and a sentence")
    sentences_of = [{s for s, half in zip(sentences, halves, strict=True) if half == side} for side in (0, 1)]
    shared = sentences_of[0] & sentences_of[1]

    def scored(side: int) -> Mapped:
        a = [i for i, half in enumerate(halves) if half == side]
        b = [i for i, half in enumerate(halves) if half != side and sentences[i] not in shared]
        parts = ([rows[i] for i in part] for part in (a, b) for rows in (codes, labels))
        codes_a, labels_a, codes_b, labels_b = parts
        return phoneme_mapping(codes_a, labels_a, codes_b, labels_b, vocabulary, leave_out)

    return scored(0), scored(1)


def shuffled(codes: Rows, seed: int = 0) -> list[np.ndarray]:
    """All codes of all utterances in random order, with the original lengths: a baseline without information."""
    generator = np.random.default_rng(seed)
    return np.split(generator.permutation(np.concatenate(codes)), np.cumsum([len(row) for row in codes])[:-1])
