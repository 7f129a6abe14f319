"""What was found of a run of sound, for eyes and ears: a table, plots, spectrograms, files of sound, one HTML file."""

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
    "held out": "Utterances that were never trained on: of VCTK sentences whose number ends in 3 or 8, of TIMIT every "
    "second speaker.",
    "bits a sample": "-log2 p(wave | codes, speaker) over the samples of the 8-bit µ-law wave, plus the bits of the "
    "codes: N log2 K (fixed), or under the prior that was fitted to training utterances (learned).",
    "voice": "Share of crops of a second that a classifier reads as a speaker; it was trained on real training "
    "utterances alone. Chance is 1 / speakers.",
    "phones": "Share of frames (10 ms) whose phone, as a classifier reads it, is not the one that it reads in the real "
    "source at the same time. The classifier was trained on TIMIT.",
    "mel-cepstral distortion": "dB along the best path to the target's own recording of the same sentence.",
    "codes as phonemes": "Each code is mapped to the phoneme that it mostly stands for on one half of TIMIT and scored "
    "on the other, both ways; the halves share no speaker, and sentences of both are not scored. 39 phonemes after Lee "
    "and Hon; baseline: the most frequent phoneme.",
    "leakage": "Accuracy of a probe that reads the speaker from the codes of a second; trained on training utterances.",
    "by a level alone": "The wave that a level's decoder makes, which reads its own codes and no others; what else "
    "is said is of the finest level. Every level is paid for in its bits, as the prior draws them all.",
    "bits saved": "Of those of fixed width, by arithmetic coding under a model that was fitted to training utterances: "
    "counts of the codes, of pairs one place apart and of pairs in a place; or the run's prior, which is told no "
    "speaker. Over up to ten held-out utterances, out of all speakers.",
    "intervals": "95 %, percentile bootstrap over utterances, 1000 resamples.",
}

SYSTEMS = (
    "codes", "k-means, log-mels", "k-means, mel-cepstra", "untrained encoder, k-means", "shuffled codes",
)  # fmt: skip


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value); an empty value heads a section."""
    codes = found["codes"]
    rows = [
        (f"{found['utterances']} held-out utterances, {found['seconds']:.0f} s", ""),
        (
            "codes",
            f"{codes['a_second']:.0f} of {codes['codes']} a second: {codes['bits_a_second'] / 1000:.2f} kbit/s, "
            f"a factor {codes['factor']:.1f}",
        ),
        ("codes used", f"{codes['share']:.1%}, perplexity {codes['perplexity']:.0f}"),
    ]
    names = {
        "wave": "bits a sample, given the codes",
        "fixed": "bits a sample, codes at their full price",
        "learned": "bits a sample, codes under the prior",
        "prior": "prior, bits a code",
    }
    rows += [(name, number(found["bits"][key], 3)) for key, name in names.items() if key in found["bits"]]
    if leakage := found.get("leakage"):
        best = max((leakage[key] for key in ("histogram", "embedded")), key=lambda each: each["value"])
        rows.append(("speaker read from the codes of a second", f"{number(best)}, chance {leakage['chance']:.2f}"))
    rows += _phonemes(found.get("phonemes"))
    rows += _conversion(found.get("conversion"))
    rows += codecs.rows(found.get("codec"))
    if resynthesis := found.get("resynthesis"):
        rows += [
            (f"Coded and decoded, {resynthesis['utterances']} utterances", ""),
            ("SI-SDR", number(resynthesis["si_sdr"]) + " dB"),
            ("log-spectral distance", number(resynthesis["log_spectral_distance"]) + " dB"),
        ]
    for name, level in found.get("levels", {}).items():
        rows += [
            (f"By {name} alone, {level['bits_a_second'] / 1000:.2f} kbit/s", ""),
            ("SI-SDR", number(level["si_sdr"]) + " dB"),
            ("log-spectral distance", number(level["log_spectral_distance"]) + " dB"),
        ]
    return rows


def _phonemes(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    rows = [(f"Codes as phonemes ({found['phonemes']}): all frames; without silence", "")]
    for name in [name for name in SYSTEMS if name in found]:
        parts = [number(found[name][what]["accuracy"], 3) for what in ("all", "speech")]
        rows.append((name, "; ".join(parts)))
    if "labels" in found:
        parts = [number(found["labels"][what]["accuracy"], 3) for what in ("all", "speech")]
        rows.append(("taught by the labels, new speakers", "; ".join(parts)))
    base = [number(found["codes"][what]["most_frequent"], 3) for what in ("all", "speech")]
    rows.append(("most frequent phoneme", "; ".join(base)))
    times = [number(found["codes"][what]["times_baseline"], 1) for what in ("all", "speech")]
    rows.append(("codes, times that", "; ".join(times)))
    held = [f"{found['codes'][what]['held_out']['accuracy']['value']:.3f}" for what in ("all", "speech")]
    rows.append(("codes, speakers never trained on", "; ".join(held)))
    return rows


def _conversion(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    voice, rows = found["voice"], [(f"{found['conversions']} conversions among {', '.join(found['speakers'])}", "")]
    names = {
        "real_as_itself": "real speech read as its speaker",
        "resynthesised_as_itself": "coded and decoded, as its speaker",
        "converted_as_target": "converted, as the target",
        "converted_as_source": "converted, as the source",
        "converted_over_resynthesised": "converted over coded and decoded",
    }
    rows += [(name, number(voice[key])) for key, name in names.items()]
    rows.append(("chance", f"{voice['chance']:.2f}"))
    if phones := found.get("phones"):
        for key, name in (("resynthesised", "coded and decoded"), ("converted", "converted")):
            rows.append((f"phones read otherwise, {name}", number(phones[key]["all"])))
        rows.append(("converted over coded and decoded", number(phones["converted_over_resynthesised"])))
    if mcd := found.get("mel_cepstral_distortion"):
        for key, name in (
            ("converted", "converted"), ("unconverted", "the source itself"),
            ("target_resynthesised", "the target, coded and decoded"),
        ):  # fmt: skip
            rows.append((f"mel-cepstral distortion, {name}", f"{number(mcd[key])} dB"))
    pitch = found["pitch"]
    rows.append(("F0 of the real voices", ", ".join(f"{name} {hertz:.0f}" for name, hertz in pitch["hertz"].items())))
    rows.append(("voiced, converted; real", f"{pitch['voiced']:.0%}; {pitch['voiced_real']:.0%} of the frames"))
    if pitch["follows"] is not None:
        rows.append(("log-F0 of converted speech with its source, correlation", f"{pitch['follows']:.2f}"))
    if pitch["silent"]:
        rows.append(("pairs of voices without an F0", f"{pitch['silent']} of {pitch['silent'] + pitch['pairs']}"))
    if "to_target" in pitch:
        rows.append(
            (
                "log-F0 of converted speech from its target; source",
                f"{pitch['to_target']:.3f}; {pitch['to_source']:.3f} (voices lie {pitch['way']:.3f} apart)",
            )
        )
    rows.append(("log-spectral distance, coded and decoded", number(found["log_spectral_distance"]) + " dB"))
    return rows


def panels(found: dict[str, Any]) -> list[Panel]:
    """Bars of the scores, bitrates of a codec, and the use of the codes."""
    drawn = codecs.panels(found.get("codec"))
    if section := found.get("phonemes"):
        bars = {
            name.replace(", ", "\n").replace(" codes", "\ncodes"): Bar.of(
                section[name]["speech"]["accuracy"], COLOURS[place]
            )
            for place, name in enumerate(SYSTEMS)
            if name in section
        }
        mark = section["codes"]["speech"]["most_frequent"]["value"]
        drawn.append(Panel("Codes as phonemes, without silence", bars, mark=mark, mark_name="most frequent"))
    if section := found.get("conversion"):
        voice = section["voice"]
        names = {
            "real_as_itself": "real\nas itself", "resynthesised_as_itself": "decoded\nas itself",
            "converted_as_target": "converted\nas target", "converted_as_source": "converted\nas source",
        }  # fmt: skip
        bars = {name: Bar.of(voice[key]) for key, name in names.items()}
        drawn.append(Panel("Read as the speaker", bars, mark=voice["chance"], mark_name="chance"))
        if phones := section.get("phones"):
            bars = {
                name: Bar.of(phones[key]["all"])
                for key, name in (("resynthesised", "decoded"), ("converted", "converted"))
            }
            drawn.append(Panel("Phones read otherwise", bars))
    title = f"Codes used: {found['codes']['share']:.0%}, perplexity {found['codes']['perplexity']:.0f}"
    drawn.append(usage_panel(title, found["codes"]["books"]))
    return drawn


def save(found: dict[str, Any], shown: Sequence[tuple[str, np.ndarray]], folder: Path) -> None:
    """Write ``metrics.json``, ``report.png``, ``spectrograms.png``, ``report.html`` and the sounds."""
    for place, (name, wave) in enumerate(shown):
        save_sound(folder / "sounds" / f"{place:02d}-{re.sub(r'[^a-z0-9]+', '-', name.lower())}.flac", wave, RATE)
    pictures = {"spectrograms": spectrogram(shown[:6], RATE, f"{found['run']} · {found['environment']}")}
    write_report(folder, {**found, "definitions": DEFINITIONS}, lines(found), panels(found), pictures)
