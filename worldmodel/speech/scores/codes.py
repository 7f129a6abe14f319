"""Information in codes: about the speaker, by probes, and about phonemes, by a mapping; k-means as a baseline.

**Leakage** is the accuracy of small probes that predict the speaker from about a second of codes.

**Phonemes**: each code is mapped to its most frequent phoneme, as in van den Oord, Vinyals, Kavukcuoglu, *Neural
Discrete Representation Learning*, 2017, but on other speakers and sentences than it is scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.evaluation.metrics import bootstrap, mean_interval, ratio_of_sums
from worldmodel.evaluation.openloop import silent
from worldmodel.speech.scores.classifiers import Budget, fit, repeated, speaker_labels, windows
from worldmodel.speech.scores.waves import as_integers
from worldmodel.speech.sources import NO_PHONE

Rows = Sequence[np.ndarray]
"""One (T,) integer array an utterance."""


class Histogram(nn.Module):
    """Logistic regression on how often each code occurs, (B, W, S) → (B, speakers); square roots reduce the
    weight of frequent codes."""

    def __init__(self, vocabulary: int, slots: int, speakers: int):
        super().__init__()
        self.vocabulary = vocabulary
        self.head = nn.Linear(slots * vocabulary, speakers)
        self.drop = nn.Dropout(0.3)

    def forward(self, codes: Tensor) -> Tensor:
        counts = torch.zeros(len(codes), codes.shape[2], self.vocabulary)
        counts.scatter_add_(2, codes.transpose(1, 2), torch.ones(codes.transpose(1, 2).shape))
        return self.head(self.drop((counts / codes.shape[1]).sqrt().flatten(1) * self.vocabulary**0.5))


class Embedded(nn.Module):
    """Embedded codes, a convolution over five neighbours, then mean and maximum: (B, W, S) → (B, speakers)."""

    def __init__(self, vocabulary: int, slots: int, speakers: int, width: int = 48):
        super().__init__()
        self.embed = nn.ModuleList(nn.Embedding(vocabulary, width) for _ in range(slots))
        self.body = nn.Sequential(nn.Dropout(0.2), nn.Conv1d(width, width, 5, padding=2), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * width, speakers))

    def forward(self, codes: Tensor) -> Tensor:
        vectors = torch.stack([embed(codes[:, :, slot]) for slot, embed in enumerate(self.embed)]).sum(0)
        hidden = self.body(vectors.transpose(1, 2))
        return self.head(torch.cat([hidden.mean(2), hidden.amax(2)], 1))


PROBES: dict[str, Callable[[int, int, int], nn.Module]] = {"histogram": Histogram, "embedded": Embedded}


def leakage(
    codes: Rows,
    speakers: Sequence[int] | np.ndarray,
    held_codes: Rows,
    held_speakers: Sequence[int] | np.ndarray,
    vocabulary: int,
    window: int,
    steps: int = 300,
    seed: int = 0,
) -> dict[str, Any]:
    """Train each probe of :data:`PROBES` on the training utterances' codes, score it on the held-out ones'.

    ``codes``: per utterance (T,) or (T, S) integers in [0, K); ``window``: codes in about a second, 250 at hop 64, 25
    at hop 640. Speakers are integers in [0, S), each with a training utterance. Returns for each probe the share of an
    utterance's windows that are classified correctly, the mean over utterances with an interval, and ``chance``, the
    accuracy of always predicting the most frequent speaker. Report the better probe.

    Raises ``ValueError`` for codes and speakers that do not fit.
    """
    rows, held = (
        [as_integers(row, np.shape(row), 0, vocabulary, "codes").reshape(len(row), -1) for row in part]
        for part in (codes, held_codes)
    )
    labels, count = speaker_labels(speakers, len(rows))
    wanted = as_integers(held_speakers, (len(held),), 0, count, "held-out speakers")
    if window < 1 or len({row.shape[1] for row in rows + held}) > 1:
        raise ValueError("a window is at least one code, and all utterances have as many slots")
    # One row of codes per speaker; a window may span two utterances.
    own = [[row for row, label in zip(rows, labels.tolist(), strict=True) if label == s] for s in range(count)]
    long = [repeated(torch.cat(parts), window) for parts in own]
    budget = Budget(steps, batch=64, rate=5e-3, weight_decay=0.1)

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        """On random windows, each speaker equally often."""
        chosen = torch.randint(count, (budget.batch,), generator=generator)
        starts = [int(torch.randint(len(long[s]) - window + 1, (), generator=generator)) for s in chosen]
        batch = torch.stack([long[s][start : start + window] for s, start in zip(chosen, starts, strict=True)])
        return F.cross_entropy(model(batch), chosen)

    figures: dict[str, Any] = {"chance": float(torch.bincount(wanted).max() / len(wanted))}
    for name, make in PROBES.items():
        model = fit(partial(make, vocabulary, rows[0].shape[1], count), loss, budget, seed, name, silent)
        with torch.inference_mode():
            predicted = [model(windows(repeated(row, window), window)).argmax(-1) for row in held]
        rates = [float((own == speaker).double().mean()) for own, speaker in zip(predicted, wanted, strict=True)]
        figures[name] = mean_interval(np.array(rates)).to_json()
    return figures


@dataclasses.dataclass(frozen=True)
class Mapped:
    """Frames of n utterances whose phoneme a mapping predicts."""

    counts: np.ndarray  # (n, 3) int64: frames that the code's phoneme predicts, that the most frequent one does, all
    unseen: int  # frames whose code does not occur in the counted half
    phonemes: int  # number of phonemes that codes are mapped to

    def to_json(self) -> dict[str, Any]:
        """Accuracy, that of the most frequent phoneme of the counted half, and their ratio, over utterances."""
        right, baseline, frames = self.counts.T
        ratio = bootstrap(lambda own, base: own.sum() / max(base.sum(), 1), right, baseline)
        return {
            "accuracy": ratio_of_sums(right, frames).to_json(),
            "most_frequent": ratio_of_sums(baseline, frames).to_json(),
            "times_baseline": ratio.to_json(),
            "frames": int(frames.sum()),
            "unseen": self.unseen,
            "phonemes": self.phonemes,
        }


def joined(first: Mapped, second: Mapped) -> Mapped:
    """The score of both directions together."""
    counts = np.concatenate([first.counts, second.counts])
    return Mapped(counts, first.unseen + second.unseen, max(first.phonemes, second.phonemes))


def _labelled(codes: Rows, labels: Rows, vocabulary: int, leave_out: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The codes and labels of each utterance where there is a label other than ``leave_out``."""
    pairs = []
    for code, label in zip(codes, labels, strict=True):
        c = as_integers(code, (len(code),), 0, vocabulary, "codes").numpy()
        p = as_integers(label, c.shape, NO_PHONE, np.inf, "phonemes").numpy()
        known = (p != NO_PHONE) & (p != leave_out)
        pairs.append((c[known], p[known]))
    return pairs


def phoneme_mapping(
    codes_a: Rows, labels_a: Rows, codes_b: Rows, labels_b: Rows, vocabulary: int, leave_out: int = NO_PHONE
) -> Mapped:
    """Map each code to its most frequent phoneme in half A and score half B. Codes that do not occur in A are mapped to
    the most frequent phoneme of A; ties go to the lowest number.

    Frames with the label :data:`NO_PHONE` or ``leave_out``, such as silence, are neither counted nor scored. Raises
    ``ValueError`` for codes and labels that do not fit, and when no frame has a label. See :func:`both_ways` for
    disjoint halves.
    """
    counted, scored = (_labelled(*half, vocabulary, leave_out) for half in ((codes_a, labels_a), (codes_b, labels_b)))
    c, p = (np.concatenate(parts) for parts in zip(*counted, strict=True))
    if not len(c) or not any(len(own) for own, _ in scored):
        raise ValueError(f"no frame to {'score' if len(c) else 'count'} has a label")
    counts = np.zeros((vocabulary, p.max() + 1), np.int64)
    np.add.at(counts, (c, p), 1)
    common, seen = int(counts.sum(0).argmax()), counts.sum(1) > 0
    mapping = np.where(seen, counts.argmax(1), common)
    rows = [((mapping[c] == p).sum(), (p == common).sum(), len(p)) for c, p in scored]
    return Mapped(np.array(rows), sum(int((~seen[c]).sum()) for c, _ in scored), len(set(mapping[seen].tolist())))


def both_ways(
    codes: Rows,
    labels: Rows,
    halves: Sequence[int],
    sentences: Sequence[str],
    vocabulary: int,
    leave_out: int = NO_PHONE,
) -> tuple[Mapped, Mapped]:
    """Count on A and score B, and vice versa; :func:`joined` combines the two.

    ``halves``: (n,) 0 for A or 1 for B, disjoint in speakers. Utterances of sentences in both halves, such as TIMIT's
    sa1, are counted but not scored. Raises ``ValueError`` when a half is empty.
    """
    sentences_of = [{s for s, half in zip(sentences, halves, strict=True) if half == side} for side in (0, 1)]
    if not all(sentences_of):
        raise ValueError("every utterance has a half, 0 or 1, and both are present")

    def scored(side: int) -> Mapped:
        a = [i for i, half in enumerate(halves) if half == side]
        b = [i for i, half in enumerate(halves) if half != side and sentences[i] not in sentences_of[side]]
        codes_a, labels_a, codes_b, labels_b = ([rows[i] for i in part] for part in (a, b) for rows in (codes, labels))
        return phoneme_mapping(codes_a, labels_a, codes_b, labels_b, vocabulary, leave_out)

    return scored(0), scored(1)


def shuffled(codes: Rows, seed: int = 0) -> list[np.ndarray]:
    """All codes of all utterances in random order, with the original lengths: a baseline without information."""
    generator = np.random.default_rng(seed)
    return np.split(generator.permutation(np.concatenate(codes)), np.cumsum([len(row) for row in codes])[:-1])


def kmeans_codes(features: Sequence[Tensor], clusters: int, fit_on: Sequence[bool], seed: int = 0) -> list[np.ndarray]:
    """Codes of n utterances of (T, D) features by k-means, (T,) each: codes without a network, a baseline for a
    tokenizer with as many codes at the same rate.

    The centres are fitted to the utterances that ``fit_on`` selects: the best of four results of Lloyd's algorithm.
    Log-mels pooled to the rate of the codes are the features of the paper; their :func:`mel_cepstrum` with the mean
    over the utterance subtracted is stronger. Raises ``ValueError`` for fewer vectors than clusters.
    """
    from sklearn.cluster import KMeans  # takes a second to import

    points = torch.cat([row for row, fit in zip(features, fit_on, strict=True) if fit])
    generator = torch.Generator().manual_seed(seed)
    seeds = [_kmeans_seeds(points, clusters, generator).numpy() for _ in range(4)]
    fitted = [KMeans(clusters, init=each, n_init=1, max_iter=100, tol=0).fit(points.numpy()) for each in seeds]
    centres = min(fitted, key=lambda each: each.inertia_)
    return [centres.predict(row.numpy()) for row in features]


def _kmeans_seeds(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): each further centre a point drawn in proportion to its squared
    distance from the nearest centre so far."""
    chosen = [int(torch.randint(len(points), (), generator=generator))]
    distance = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < clusters:
        chosen.append(int(torch.multinomial(distance + 1e-12, 1, generator=generator)))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen]
