"""Figures of the codes of a run: the quality of a codec at each of its bitrates and the bits that entropy models save;
the quality of each level of :class:`SeparateLevels`; and how well codes predict the phonemes of TIMIT, compared with
baselines.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.evaluation.metrics import ratio_of_sums
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.media.plots import COLOURS, Line, Panel
from worldmodel.quantizers import ResidualQuantizer
from worldmodel.runs.folder import load_config
from worldmodel.runs.models import build_tokenizer
from worldmodel.speech.codec import entropy
from worldmodel.speech.codec.bitstream import width_of
from worldmodel.speech.codec.codec import Codec
from worldmodel.speech.codec.entropy import CodeModel, CountModel
from worldmodel.speech.codec.run import prior_of
from worldmodel.speech.scores.classifiers import train_phone_classifier
from worldmodel.speech.scores.codes import Rows, both_ways, joined, kmeans_codes, shuffled
from worldmodel.speech.scores.waves import HOP, log_mel, mel_cepstrum, normalised, pooled, wave_scores
from worldmodel.speech.separate import SeparateLevels
from worldmodel.speech.sound import to_wave
from worldmodel.speech.sources import NO_PHONE, PHONEMES, SILENT, frame_phones, phone_files, read_phones
from worldmodel.speech.voice import Utterance, VoiceModel, flat_codes
from worldmodel.tokenizers import VQVAE, require_codes
from worldmodel.tokenizers.base import join

LEFT_OUT = {"all": NO_PHONE, "speech": PHONEMES.index(SILENT)}  # label that is not scored
CODED_UTTERANCES = 10  # held-out utterances that are entropy-coded; a prior codes one code at a time


def codec_figures(
    run: Path, world: VoiceModel, utterances: Sequence[Utterance], seed: int = 0, progress: Progress = silent
) -> dict[str, Any] | None:
    """Scores of the held-out utterances with the first 1, 2, 4, … codebooks; None for a tokenizer that is no codec.

    Entropy models are the counts of the codes of the training utterances, and the run's prior if it has one.
    """
    tokenizer = world.tokenizer
    if not isinstance(tokenizer, VQVAE) or not isinstance(tokenizer.quantizer, ResidualQuantizer):
        return None
    if tokenizer.condition_width:
        return None
    codec = Codec(tokenizer, world.rate)
    training, held_out = ([flat_codes(world, u) for u in utterances if u.held_out is part] for part in (False, True))
    real = [utterance.wave for utterance in utterances if utterance.held_out]
    models: dict[str, CodeModel] = {}
    if training:
        models["counts"] = CountModel(training, codec.num_codes)
    if (prior := prior_of(run, codec)) is not None:
        models["prior"] = prior
    coded = held_out[:: -(-len(held_out) // CODED_UTTERANCES)]
    rates = []
    choices = sorted({2**power for power in range(codec.num_codebooks.bit_length())} | {codec.num_codebooks})
    for place, used in enumerate(choices):
        scores = wave_scores(real, [codec.decode(codes[:, :used]) for codes in held_out], seed)
        rate = {"codebooks": used, "bits_a_second": codec.bits_per_second(used)}
        rates.append({**rate, **scores, "saved": bits_saved(models, codec, [codes[:, :used] for codes in coded], seed)})
        progress("bitrates", place + 1, len(choices))
    return {
        "utterances": len(held_out),
        "coded": len(coded),
        "causal": codec.causal,
        "latency_ms": 1000 * codec.latency / codec.rate if codec.causal else None,
        "rates": rates,
    }


def bits_saved(
    models: Mapping[str, CodeModel], codec: Codec, utterances: Sequence[np.ndarray], seed: int
) -> dict[str, Any]:
    """The share of the bits of fixed-width codes (n, q) that each model saves over all utterances."""
    fixed = np.array([codes.size * width_of(codec.num_codes) for codes in utterances])
    spent = {
        name: np.array([entropy.encode(model, codes)[1] for codes in utterances]) for name, model in models.items()
    }
    return {name: ratio_of_sums(fixed - bits, fixed, seed).to_json() for name, bits in spent.items()}


@torch.no_grad()
def level_figures(
    world: VoiceModel, tokenizer: SeparateLevels, chosen: Sequence[Utterance], seed: int
) -> tuple[dict[str, Any], list[tuple[str, np.ndarray]]]:
    """Figures of utterances that are decoded from the codes of one level of :class:`SeparateLevels`, for each level,
    coarsest first; and the first utterance as decoded from each level."""
    generator = torch.Generator(world.device).manual_seed(seed)
    real = [each.wave for each in chosen]
    figures, shown = {}, [(f"{chosen[0].key}, real", real[0])]
    for place, (name, grid) in enumerate(zip(tokenizer.names, tokenizer.levels, strict=True)):
        decoded = []
        for each in chosen:
            speaker = torch.tensor([each.speaker], device=world.device)
            codes = tokenizer.part(each.signal_codes.to(world.device), place)
            drawn = tokenizer.models[place].draw(codes, speaker, generator)
            decoded.append(to_wave(drawn.flatten().cpu().numpy()))
        figures[name] = {
            "bits_a_second": math.prod(grid) * world.spec.rate * math.log2(tokenizer.num_codes),
            **wave_scores(real, decoded, seed),
        }
        shown.append((f"{chosen[0].key}, decoded from {name} only", decoded[0]))
    return figures, shown


def phoneme_figures(
    run: Path, world: VoiceModel, utterances: Sequence[Utterance], timit: Path, seed: int
) -> dict[str, Any] | None:
    """Figures of the codes and of the baselines, of the utterances that have alignments; None for recordings without
    them, or several codebooks. In a store of several corpora a key begins with the name of the corpus."""
    aligned, tokenizer = phone_files(timit), world.tokenizer
    named = [dataclasses.replace(each, key=each.key.removeprefix("timit/")) for each in utterances]
    utterances = [each for each in named if each.key in aligned]
    if tokenizer.slots or len(tokenizer.levels) > 1 or not utterances:
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


def codec_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) lines; an empty value heads a section."""
    streams = f", streaming with a latency of {figures['latency_ms']:g} ms" if figures["causal"] else ""
    lines = [(f"Codec, {figures['utterances']} utterances{streams}", "")]
    for rate in figures["rates"]:
        name = f"{rate['codebooks']} of {figures['rates'][-1]['codebooks']} codebooks, "
        name += f"{rate['bits_a_second'] / 1000:.2f} kbit/s"
        sdr, distance = (f"{rate[key]['value']:.2f}" for key in ("si_sdr", "log_spectral_distance"))
        lines.append((name, f"SI-SDR {sdr} dB, log-spectral distance {distance} dB"))
        for model, share in rate["saved"].items():
            lines.append((f"  bits saved, {model}", "{value:.1%} [{low:.1%}, {high:.1%}]".format(**share)))
    return lines


def codec_panels(figures: dict[str, Any]) -> list[Panel]:
    """Scores against the bitrate: a line for codes of fixed width, and one for each entropy model."""
    result = []
    names = {"si_sdr": "SI-SDR, dB (higher is better)", "log_spectral_distance": "log-spectral distance, dB (lower)"}
    for key, title in names.items():
        rates = figures["rates"]
        value, low, high = ([rate[key][part] for rate in rates] for part in ("value", "low", "high"))
        kbps = np.array([rate["bits_a_second"] / 1000 for rate in rates])
        lines = {"fixed width": Line(kbps, value, low, high, colour=COLOURS[0])}
        for place, model in enumerate(rates[0]["saved"], 1):
            kept = np.array([1 - rate["saved"][model]["value"] for rate in rates])
            lines[model] = Line(kbps * kept, value, dashed=True, colour=COLOURS[place])
        result.append(Panel(title, lines, "kbit/s"))
    return result
