"""The report of a speech run: a table, plots, spectrograms, sound files and one HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.evaluation.figures import usage_panel
from worldmodel.evaluation.report import number, write_report
from worldmodel.media.plots import COLOURS, Bar, Panel
from worldmodel.speech.evaluation import codecs
from worldmodel.speech.media import save_sound, spectrogram
from worldmodel.speech.scores.features import RATE

DEFINITIONS = {
    "held out": "Utterances that are not used for training: in VCTK, the sentences whose number ends in 3 or 8; in "
    "TIMIT, every second speaker.",
    "bits a sample": "-log2 p(wave | codes, speaker) per sample of the 8-bit µ-law wave, plus the bits of the codes: "
    "N log2 K (fixed), or their cost under the prior (learned).",
    "voice": "Share of one-second crops that a classifier assigns to a speaker. It is trained on real training "
    "utterances only. Chance is 1 / speakers.",
    "phones": "Share of frames (10 ms) that a classifier assigns to another phone than the real source at the same "
    "time. It is trained on TIMIT.",
    "mel-cepstral distortion": "In dB, along the best alignment with the target's recording of the same sentence.",
    "codes as phonemes": "Each code is mapped to its most frequent phoneme on one half of TIMIT and scored on the "
    "other half, in both directions. The halves share no speaker, and sentences in both are not scored. 39 phonemes "
    "after Lee and Hon; baseline: the most frequent phoneme.",
    "leakage": "Accuracy of a probe that predicts the speaker from the codes of a second; trained on training "
    "utterances.",
    "from a level only": "The wave that the decoder of one level returns for the codes of that level. All other "
    "figures are of the finest level, with the bits of all levels.",
    "bits saved": "Share of the bits of fixed-width codes that arithmetic coding saves with a model of training "
    "utterances: counts of codes, of consecutive codes and of codes at the same position; or the run's prior without "
    "a speaker. Up to ten held-out utterances of all speakers.",
    "intervals": "95 %, percentile bootstrap over utterances, 1000 resamples.",
}

SYSTEMS = (
    "codes", "k-means, log-mels", "k-means, mel-cepstra", "untrained encoder, k-means", "shuffled codes",
)  # fmt: skip


def lines(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value); an empty value heads a section."""
    codes = figures["codes"]
    rows = [
        (f"{figures['utterances']} held-out utterances, {figures['seconds']:.0f} s", ""),
        (
            "codes",
            f"{codes['a_second']:.0f} of {codes['codes']} a second: {codes['bits_a_second'] / 1000:.2f} kbit/s, "
            f"a factor {codes['factor']:.1f}",
        ),
        ("codes used", f"{codes['share']:.1%}, perplexity {codes['perplexity']:.0f}"),
    ]
    names = {
        "wave": "bits a sample, given the codes",
        "fixed": "bits a sample, codes of fixed width",
        "learned": "bits a sample, codes under the prior",
        "prior": "prior, bits a code",
    }
    rows += [(name, number(figures["bits"][key], 3)) for key, name in names.items() if key in figures["bits"]]
    if leakage := figures.get("leakage"):
        best = max((leakage[key] for key in ("histogram", "embedded")), key=lambda each: each["value"])
        rows.append(("speaker predicted from the codes of a second", f"{number(best)}, chance {leakage['chance']:.2f}"))
    rows += _phonemes(figures.get("phonemes"))
    rows += _conversion(figures.get("conversion"))
    rows += codecs.rows(figures.get("codec"))
    if resynthesis := figures.get("resynthesis"):
        rows += [
            (f"Coded and decoded, {resynthesis['utterances']} utterances", ""),
            ("SI-SDR", number(resynthesis["si_sdr"]) + " dB"),
            ("log-spectral distance", number(resynthesis["log_spectral_distance"]) + " dB"),
        ]
    for name, level in figures.get("levels", {}).items():
        rows += [
            (f"From {name} only, {level['bits_a_second'] / 1000:.2f} kbit/s", ""),
            ("SI-SDR", number(level["si_sdr"]) + " dB"),
            ("log-spectral distance", number(level["log_spectral_distance"]) + " dB"),
        ]
    return rows


def _phonemes(figures: dict[str, Any] | None) -> list[tuple[str, str]]:
    if figures is None:
        return []
    rows = [(f"Codes as phonemes ({figures['phonemes']}): all frames; without silence", "")]
    for name in [name for name in SYSTEMS if name in figures]:
        parts = [number(figures[name][what]["accuracy"], 3) for what in ("all", "speech")]
        rows.append((name, "; ".join(parts)))
    if "labels" in figures:
        parts = [number(figures["labels"][what]["accuracy"], 3) for what in ("all", "speech")]
        rows.append(("classifier trained on the labels, new speakers", "; ".join(parts)))
    base = [number(figures["codes"][what]["most_frequent"], 3) for what in ("all", "speech")]
    rows.append(("most frequent phoneme", "; ".join(base)))
    times = [number(figures["codes"][what]["times_baseline"], 1) for what in ("all", "speech")]
    rows.append(("codes, ratio to that", "; ".join(times)))
    held = [f"{figures['codes'][what]['held_out']['accuracy']['value']:.3f}" for what in ("all", "speech")]
    rows.append(("codes, held-out speakers", "; ".join(held)))
    return rows


def _conversion(figures: dict[str, Any] | None) -> list[tuple[str, str]]:
    if figures is None:
        return []
    voice, rows = (
        figures["voice"],
        [(f"{figures['conversions']} conversions among {', '.join(figures['speakers'])}", "")],
    )
    names = {
        "real_as_itself": "real speech classified as its speaker",
        "resynthesised_as_itself": "coded and decoded, as its speaker",
        "converted_as_target": "converted, as the target",
        "converted_as_source": "converted, as the source",
        "converted_over_resynthesised": "converted over coded and decoded",
    }
    rows += [(name, number(voice[key])) for key, name in names.items()]
    rows.append(("chance", f"{voice['chance']:.2f}"))
    if phones := figures.get("phones"):
        for key, name in (("resynthesised", "coded and decoded"), ("converted", "converted")):
            rows.append((f"other phones, {name}", number(phones[key]["all"])))
        rows.append(("converted over coded and decoded", number(phones["converted_over_resynthesised"])))
    if mcd := figures.get("mel_cepstral_distortion"):
        for key, name in (
            ("converted", "converted"), ("unconverted", "the source itself"),
            ("target_resynthesised", "the target, coded and decoded"),
        ):  # fmt: skip
            rows.append((f"mel-cepstral distortion, {name}", f"{number(mcd[key])} dB"))
    pitch = figures["pitch"]
    rows.append(("F0 of the real voices", ", ".join(f"{name} {hertz:.0f}" for name, hertz in pitch["hertz"].items())))
    rows.append(("voiced, converted; real", f"{pitch['voiced']:.0%}; {pitch['voiced_real']:.0%} of the frames"))
    if pitch["follows"] is not None:
        rows.append(("log-F0 of converted speech, correlation with its source", f"{pitch['follows']:.2f}"))
    if pitch["silent"]:
        rows.append(("pairs of voices without an F0", f"{pitch['silent']} of {pitch['silent'] + pitch['pairs']}"))
    if "to_target" in pitch:
        rows.append(
            (
                "log-F0 of converted speech, distance from target; source",
                f"{pitch['to_target']:.3f}; {pitch['to_source']:.3f} (distance of the voices {pitch['way']:.3f})",
            )
        )
    rows.append(("log-spectral distance, coded and decoded", number(figures["log_spectral_distance"]) + " dB"))
    return rows


def panels(figures: dict[str, Any]) -> list[Panel]:
    """Bars of the scores, bitrates of a codec, and the use of the codes."""
    result = codecs.panels(figures.get("codec"))
    if section := figures.get("phonemes"):
        bars = {
            name.replace(", ", "\n").replace(" codes", "\ncodes"): Bar.of(
                section[name]["speech"]["accuracy"], COLOURS[place]
            )
            for place, name in enumerate(SYSTEMS)
            if name in section
        }
        mark = section["codes"]["speech"]["most_frequent"]["value"]
        result.append(Panel("Codes as phonemes, without silence", bars, mark=mark, mark_name="most frequent"))
    if section := figures.get("conversion"):
        voice = section["voice"]
        names = {
            "real_as_itself": "real\nas itself", "resynthesised_as_itself": "decoded\nas itself",
            "converted_as_target": "converted\nas target", "converted_as_source": "converted\nas source",
        }  # fmt: skip
        bars = {name: Bar.of(voice[key]) for key, name in names.items()}
        result.append(Panel("Classified as the speaker", bars, mark=voice["chance"], mark_name="chance"))
        if phones := section.get("phones"):
            bars = {
                name: Bar.of(phones[key]["all"])
                for key, name in (("resynthesised", "decoded"), ("converted", "converted"))
            }
            result.append(Panel("Share of other phones", bars))
    title = f"Codes used: {figures['codes']['share']:.0%}, perplexity {figures['codes']['perplexity']:.0f}"
    result.append(usage_panel(title, figures["codes"]["books"]))
    return result


def save(figures: dict[str, Any], shown: Sequence[tuple[str, np.ndarray]], folder: Path) -> None:
    """Write ``metrics.json``, ``report.png``, ``spectrograms.png``, ``report.html`` and the sounds."""
    for place, (name, wave) in enumerate(shown):
        save_sound(folder / "sounds" / f"{place:02d}-{re.sub(r'[^a-z0-9]+', '-', name.lower())}.flac", wave, RATE)
    pictures = {"spectrograms": spectrogram(shown[:6], RATE, f"{figures['run']} · {figures['environment']}")}
    write_report(folder, {**figures, "definitions": DEFINITIONS}, lines(figures), panels(figures), pictures)
