"""Quality of a codec at each of its bitrates, and the bits that entropy models of the codes save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.evaluation.metrics import ratio_of_sums
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.media.plots import COLOURS, Line, Panel
from worldmodel.quantizers import ResidualQuantizer
from worldmodel.speech.codec import entropy
from worldmodel.speech.codec.codec import Codec
from worldmodel.speech.codec.entropy import CodeModel, CountModel
from worldmodel.speech.codec.run import prior_of
from worldmodel.speech.evaluation.utterances import Utterance
from worldmodel.speech.scores.distances import wave_scores
from worldmodel.speech.voice import VoiceModel
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
    held_out = [utterance for utterance in utterances if utterance.held_out]
    models: dict[str, CodeModel] = {}
    training = [flat(utterance) for utterance in utterances if not utterance.held_out]
    if training:
        models["counts"] = CountModel(training, codec.num_codes)
    if (prior := prior_of(run, codec)) is not None:
        models["prior"] = prior
    coded = held_out[:: -(-len(held_out) // CODED_UTTERANCES)]
    rates = []
    choices = sorted({2**power for power in range(codec.num_codebooks.bit_length())} | {codec.num_codebooks})
    for place, used in enumerate(choices):
        decoded = [codec.decode(flat(utterance)[:, :used]) for utterance in held_out]
        real = [utterance.wave for utterance in held_out]
        rates.append(
            {
                "codebooks": used,
                "bits_a_second": codec.bits_per_second(used),
                **wave_scores(real, decoded, seed),
                "saved": bits_saved(models, codec, coded, used, seed),
            }
        )
        progress("bitrates", place + 1, len(choices))
    return {
        "utterances": len(held_out),
        "coded": len(coded),
        "causal": codec.causal,
        "latency_ms": 1000 * codec.latency / codec.rate if codec.causal else None,
        "rates": rates,
    }


def flat(utterance: Utterance) -> np.ndarray:
    """The codes of all positions, (T · n, Q)."""
    codes: np.ndarray = utterance.codes.flatten(0, 1).numpy()
    return codes


def bits_saved(
    models: Mapping[str, CodeModel], codec: Codec, utterances: Sequence[Utterance], used: int, seed: int
) -> dict[str, Any]:
    """The share of the bits of fixed-width codes that each model saves over all utterances."""
    shares = {}
    fixed = np.array([len(flat(u)) * codec.bits_per_second(used) * codec.factor / codec.rate for u in utterances])
    for name, model in models.items():
        spent = np.array([entropy.encode(model, flat(utterance)[:, :used])[1] for utterance in utterances])
        shares[name] = ratio_of_sums(fixed - spent, fixed, seed).to_json()
    return shares


def rows(figures: dict[str, Any] | None) -> list[tuple[str, str]]:
    """(name, value) lines; an empty value heads a section."""
    if figures is None:
        return []
    streams = f", streaming with a latency of {figures['latency_ms']:g} ms" if figures["causal"] else ""
    lines = [(f"Codec, {figures['utterances']} utterances{streams}", "")]
    for rate in figures["rates"]:
        name = f"{rate['codebooks']} of {figures['rates'][-1]['codebooks']} codebooks, "
        name += f"{rate['bits_a_second'] / 1000:.2f} kbit/s"
        sdr, distance = (f"{rate[key]['value']:.2f}" for key in ("si_sdr", "log_spectral_distance"))
        lines.append((name, f"SI-SDR {sdr} dB, log-spectral distance {distance} dB"))
        for model, share in rate["saved"].items():
            lines.append((f"  bits saved, {model}", _percent(share)))
    return lines


def _percent(share: dict[str, Any]) -> str:
    return "{value:.1%} [{low:.1%}, {high:.1%}]".format(**share)


def panels(figures: dict[str, Any] | None) -> list[Panel]:
    """Scores against the bitrate: a line for codes of fixed width, and one for each entropy model."""
    if figures is None:
        return []
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
