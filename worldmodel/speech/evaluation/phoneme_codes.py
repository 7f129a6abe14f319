"""What do the codes of a run stand for? Each as a phoneme of TIMIT, beside the controls that it has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.evaluation.metrics import ratio_of_sums
from worldmodel.runs.build import build_tokenizer
from worldmodel.runs.folder import load_config
from worldmodel.speech.evaluation.utterances import Utterance, flat_codes
from worldmodel.speech.scores.features import HOP, log_mel, mel_cepstrum, normalised, pooled
from worldmodel.speech.scores.kmeans import kmeans_codes
from worldmodel.speech.scores.mapping import Mapped, both_ways, joined, shuffled
from worldmodel.speech.scores.phonemes import train_phone_classifier
from worldmodel.speech.sources.phones import NO_PHONE, PHONES39, SILENCE, frame_phones, phone_files, read_phones
from worldmodel.speech.voice import VoiceModel
from worldmodel.tokenizers import VQVAE, require_codes
from worldmodel.tokenizers.base import join


def phoneme_figures(
    run: Path, world: VoiceModel, spoken: Sequence[Utterance], timit: Path, seed: int
) -> dict[str, Any] | None:
    """Codes as phonemes, and the controls; None for recordings that have no alignments, or codes of several books."""
    aligned, tokenizer = phone_files(timit), world.tokenizer
    if tokenizer.slots or len(tokenizer.levels) > 1 or not all(each.key in aligned for each in spoken):
        return None
    hop = round(world.window / math.prod(world.tokenizer.grid))
    labels = [
        frame_phones(read_phones(aligned[each.key]), each.codes.numel(), hop * 16_000 // world.rate) for each in spoken
    ]
    halves = np.array([int(each.held_out) for each in spoken])
    sentences = [each.key.rpartition("/")[2] for each in spoken]
    apart = [{sentence for sentence, half in zip(sentences, halves, strict=True) if half == own} for own in (0, 1)]
    if not (apart[0] - apart[1] and apart[1] - apart[0]):  # nothing could be scored
        return None
    codes = [flat_codes(world, each) for each in spoken]
    systems = {"codes": codes, "shuffled codes": shuffled(codes, seed)}
    others = features(spoken, hop) | {"untrained encoder, k-means": untrained_vectors(run, world, spoken, seed)}
    fit_on = [not each.held_out for each in spoken]  # what the tokenizer was trained on, too
    for name, vectors in others.items():
        systems[name] = kmeans_codes(vectors, world.tokenizer.num_codes, fit_on, seed=seed)
    figures: dict[str, Any] = {"hop": hop, "phonemes": len(PHONES39.names)}
    silence = PHONES39.names.index(SILENCE)
    for name, rows in systems.items():
        pairs = [(row[: len(own)], own[: len(row)]) for row, own in zip(rows, labels, strict=True)]
        figures[name] = {}
        for what, leave_out in (("all", None), ("speech", silence)):
            codes_of, labels_of = zip(*pairs, strict=True)
            first, second = both_ways(codes_of, labels_of, halves, sentences, world.tokenizer.num_codes, leave_out)
            figures[name][what] = mapped(joined(first, second), first)
    if hop % HOP == 0:
        figures["labels"] = taught(spoken, labels, aligned, hop, apart[0], seed)
    return figures


def taught(
    spoken: Sequence[Utterance],
    labels: Sequence[np.ndarray],
    aligned: dict[str, Path],
    hop: int,
    known: set[str],
    seed: int,
) -> dict[str, Any]:
    """What the labels themselves give: a network taught by those of the training half, read as often as there are
    codes, on the speakers and sentences that it does not know."""
    training = [each for each in spoken if not each.held_out]
    phones = [frame_phones(read_phones(aligned[each.key]), len(each.wave) // HOP, HOP) for each in training]
    model = train_phone_classifier([each.wave for each in training], phones, len(PHONES39.names), seed=seed)
    right: dict[str, list[tuple[int, int]]] = {"all": [], "speech": []}
    silence = PHONES39.names.index(SILENCE)
    for each, wanted in zip(spoken, labels, strict=True):
        if each.held_out and each.key.rpartition("/")[2] not in known:
            predicted = pooled(model.read(each.wave), hop // HOP).argmax(-1).numpy()
            wanted = wanted[: len(predicted)]
            for what, counted in (("all", wanted != NO_PHONE), ("speech", (wanted != NO_PHONE) & (wanted != silence))):
                right[what].append((int((predicted == wanted)[counted].sum()), int(counted.sum())))
    figures = {}
    for what, rows in right.items():
        sums, counts = np.array(rows).T
        figures[what] = {"accuracy": ratio_of_sums(sums, counts, seed).to_json()}
    return figures


def mapped(both: Mapped, held_out: Mapped) -> dict[str, Any]:
    """Both ways round, and counted on the speakers of training and scored on the held-out ones alone."""
    return {**both.to_json(), "held_out": held_out.to_json()}


def features(spoken: Sequence[Utterance], hop: int) -> dict[str, list[Tensor]]:
    """What k-means sees instead: log-mel spectra of the same windows, two ways of removing the channel. Nothing for
    codes that stand for no whole number of spectra."""
    if hop % HOP:
        return {}
    mels = [pooled(log_mel(each.wave), hop // HOP) for each in spoken]
    return {
        "k-means, log-mels": [normalised(row) for row in mels],
        "k-means, mel-cepstra": [normalised(mel_cepstrum(row, 12), variance=False) for row in mels],
    }


@torch.no_grad()
def untrained_vectors(run: Path, world: VoiceModel, spoken: Sequence[Utterance], seed: int) -> list[Tensor]:
    """What the same encoder says before it has learnt anything, (T · n, D) an utterance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = require_codes(build_tokenizer(load_config(run), world.spec)).eval().to(world.device)
    assert isinstance(model, VQVAE)
    return [model.vectors(join(each.frames[None]).to(world.device))[0].cpu() for each in spoken]
