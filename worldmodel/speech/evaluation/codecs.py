"""Quality of a codec at each of its bitrates, the bits that entropy models of the codes save, and the quality of each
level of :class:`SeparateLevels`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.evaluation.metrics import ratio_of_sums
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.media.plots import COLOURS, Line, Panel
from worldmodel.quantizers import ResidualQuantizer
from worldmodel.speech.codec import entropy
from worldmodel.speech.codec.bitstream import width_of
from worldmodel.speech.codec.codec import Codec
from worldmodel.speech.codec.entropy import CodeModel, CountModel
from worldmodel.speech.codec.run import prior_of
from worldmodel.speech.scores.distances import wave_scores
from worldmodel.speech.separate import SeparateLevels
from worldmodel.speech.sound import to_wave
from worldmodel.speech.voice import Utterance, VoiceModel, flat_codes
from worldmodel.tokenizers import VQVAE

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


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
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


def panels(figures: dict[str, Any]) -> list[Panel]:
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
