"""How well the codes of a run predict the phonemes of TIMIT, compared with baselines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.evaluation.metrics import ratio_of_sums
from worldmodel.runs.folder import load_config
from worldmodel.runs.models import build_tokenizer
from worldmodel.speech.scores.classifiers import train_phone_classifier
from worldmodel.speech.scores.codes import Rows, both_ways, joined, kmeans_codes, shuffled
from worldmodel.speech.scores.features import HOP, log_mel, mel_cepstrum, normalised, pooled
from worldmodel.speech.sources import NO_PHONE, PHONEMES, SILENT, frame_phones, phone_files, read_phones
from worldmodel.speech.voice import Utterance, VoiceModel, flat_codes
from worldmodel.tokenizers import VQVAE, require_codes
from worldmodel.tokenizers.base import join

LEFT_OUT = {"all": NO_PHONE, "speech": PHONEMES.index(SILENT)}  # label that is not scored


def phoneme_figures(
    run: Path, world: VoiceModel, utterances: Sequence[Utterance], timit: Path, seed: int
) -> dict[str, Any] | None:
    """Figures of the codes and of the baselines; None for recordings without alignments, or several codebooks."""
    aligned, tokenizer = phone_files(timit), world.tokenizer
    if tokenizer.slots or len(tokenizer.levels) > 1 or not all(each.key in aligned for each in utterances):
        return None
    hop = round(world.window / math.prod(world.tokenizer.grid))
    labels = [frame_phones(read_phones(aligned[each.key]), each.codes.numel(), hop) for each in utterances]
    halves = [int(each.held_out) for each in utterances]
    sentences = [each.key.rpartition("/")[2] for each in utterances]
    apart = [{sentence for sentence, half in zip(sentences, halves, strict=True) if half == own} for own in (0, 1)]
    if not (apart[0] - apart[1] and apart[1] - apart[0]):  # no sentence can be scored
        return None
    codes = [flat_codes(world, each) for each in utterances]
    systems = {"codes": codes, "shuffled codes": shuffled(codes, seed)}
    others = features(utterances, hop) | {"untrained encoder, k-means": untrained_vectors(run, world, utterances, seed)}
    fit_on = [not each.held_out for each in utterances]  # the training data of the tokenizer
    for name, vectors in others.items():
        systems[name] = kmeans_codes(vectors, world.tokenizer.num_codes, fit_on, seed=seed)
    figures: dict[str, Any] = {"hop": hop, "phonemes": len(PHONEMES)}
    for name, rows in systems.items():
        pairs = [(row[: len(own)], own[: len(row)]) for row, own in zip(rows, labels, strict=True)]
        figures[name] = {}
        for what, leave_out in LEFT_OUT.items():
            codes_of, labels_of = zip(*pairs, strict=True)
            first, second = both_ways(codes_of, labels_of, halves, sentences, world.tokenizer.num_codes, leave_out)
            # The mapping that is counted on training speakers and scored on held-out ones is the first.
            figures[name][what] = {**joined(first, second).to_json(), "held_out": first.to_json()}
    if hop % HOP == 0:
        figures["labels"] = supervised_figures(utterances, labels, aligned, hop, apart[0], seed)
    return figures


def supervised_figures(
    utterances: Sequence[Utterance], labels: Rows, aligned: dict[str, Path], hop: int, known: set[str], seed: int
) -> dict[str, Any]:
    """An upper reference: a classifier trained on the labels of the training half, pooled to the rate of the codes and
    scored on held-out speakers and sentences."""
    training = [each for each in utterances if not each.held_out]
    phones = [frame_phones(read_phones(aligned[each.key]), len(each.wave) // HOP, HOP) for each in training]
    model = train_phone_classifier([each.wave for each in training], phones, len(PHONEMES), seed=seed)
    pairs = []
    for each, wanted in zip(utterances, labels, strict=True):
        if each.held_out and each.key.rpartition("/")[2] not in known:
            predicted = pooled(model.read(each.wave), hop // HOP).argmax(-1).numpy()
            pairs.append((predicted, wanted[: len(predicted)]))
    figures = {}
    for what, leave_out in LEFT_OUT.items():
        counted = [(wanted != NO_PHONE) & (wanted != leave_out) for _, wanted in pairs]
        right = [(predicted == wanted) & own for (predicted, wanted), own in zip(pairs, counted, strict=True)]
        sums, counts = (np.array([each.sum() for each in part]) for part in (right, counted))
        figures[what] = {"accuracy": ratio_of_sums(sums, counts, seed).to_json()}
    return figures


def features(utterances: Sequence[Utterance], hop: int) -> dict[str, list[Tensor]]:
    """Features for the k-means baselines: log-mel spectra of the same windows, with the channel removed in two ways.
    Empty when a code does not span a whole number of spectra."""
    if hop % HOP:
        return {}
    mels = [pooled(log_mel(each.wave), hop // HOP) for each in utterances]
    return {
        "k-means, log-mels": [normalised(row) for row in mels],
        "k-means, mel-cepstra": [normalised(mel_cepstrum(row, 12), variance=False) for row in mels],
    }


@torch.no_grad()
def untrained_vectors(run: Path, world: VoiceModel, utterances: Sequence[Utterance], seed: int) -> list[Tensor]:
    """Vectors of the same encoder with untrained weights, (T · n, D) per utterance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = require_codes(build_tokenizer(load_config(run), world.spec)).eval().to(world.device)
    assert isinstance(model, VQVAE)
    return [model.vectors(join(each.frames[None]).to(world.device))[0].cpu() for each in utterances]
