"""Statistics of the phones of generated speech: how well its pairs of consecutive phones predict held-out speech.

A bigram model of phones is estimated from one set of utterances, and its cross-entropy is measured on held-out ones.
The scale has two ends: the model of real speech, and the model of the same speech with its phones in random order,
which has the frequencies of the phones but not their order. A generator that repeats a few phones scores badly, because
the model must predict all of held-out speech.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from worldmodel.evaluation.metrics import bootstrap, ratio_of_sums
from worldmodel.speech.scores.classifiers import PhoneClassifier
from worldmodel.speech.scores.waves import Wave

SHORTEST = 3  # frames of 10 ms; the classifier returns shorter runs at transitions between two phones
PRIOR_COUNT = 5.0  # weight, in observations, of the frequencies of single phones in those of pairs


def phone_sequence(model: PhoneClassifier, wave: Wave) -> np.ndarray:
    """The phones of a wave (n,) in their order, (S,) int64: consecutive frames of one phone count once."""
    return without_repeats(model.read(wave).argmax(-1).numpy(), SHORTEST)


def without_repeats(labels: np.ndarray, shortest: int = 1) -> np.ndarray:
    """Labels (T,) → one label for each run (S,); runs shorter than ``shortest`` are left out."""
    if not len(labels):
        return labels
    starts = np.flatnonzero(np.append(True, labels[1:] != labels[:-1]))
    lengths = np.diff(np.append(starts, len(labels)))
    kept = labels[starts[lengths >= shortest]]
    return kept if shortest == 1 else without_repeats(kept)


def bigram_model(sequences: Sequence[np.ndarray], phones: int) -> np.ndarray:
    """(phones, phones): log₂ p(next phone | phone), smoothed by the frequencies of single phones."""
    pairs = np.zeros((phones, phones))
    for sequence in sequences:
        np.add.at(pairs, (sequence[:-1], sequence[1:]), 1)
    single = (pairs.sum(0) + 1) / (pairs.sum() + phones)
    probabilities: np.ndarray = (pairs + PRIOR_COUNT * single) / (pairs.sum(1, keepdims=True) + PRIOR_COUNT)
    return np.log2(probabilities)


def bigram_figures(
    real: Sequence[np.ndarray],
    others: Mapping[str, Sequence[np.ndarray]],
    held_out: Sequence[np.ndarray],
    phones: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Bits per phone of held-out sequences under bigram models of ``real`` sequences, of these in random order
    (``shuffled``), and of each of ``others``, whose ``place`` between the two is 0 for real and 1 for shuffled ones
    (left out if these two are equal).

    All models are estimated from the same number of phones, that of the smallest set, since they improve with it.
    """
    generator = np.random.default_rng(seed)
    shuffled = [without_repeats(generator.permutation(each)) for each in real]
    sets = {"real": real, "shuffled": shuffled, **others}
    count = min(sum(map(len, each)) for each in sets.values())
    tables = {name: bigram_model(_first(each, count), phones) for name, each in sets.items()}
    tested = [each for each in held_out if len(each) > 1]
    pairs = np.array([len(each) - 1 for each in tested])
    bits = {name: np.array([-table[each[:-1], each[1:]].sum() for each in tested]) for name, table in tables.items()}

    def place(own: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
        """Sums over utterances → where the first lies between the others; NaN where these are equal."""
        width = high.sum() - low.sum()
        return float((own.sum() - low.sum()) / width) if width else math.nan

    defined = bits["real"].sum() != bits["shuffled"].sum()
    return {
        "phones": count,
        "bits": {name: ratio_of_sums(own, pairs, seed).to_json() for name, own in bits.items()},
        "place": {
            name: bootstrap(place, bits[name], bits["real"], bits["shuffled"], seed=seed).to_json()
            for name in others
            if defined
        },
    }


def _first(sequences: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """The first sequences, cut after ``count`` phones in all."""
    before = np.cumsum([0, *map(len, sequences)])[:-1]
    return [each[: count - start] for each, start in zip(sequences, before, strict=True) if start < count]
