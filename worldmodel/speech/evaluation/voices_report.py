"""The report of a speech run: a table, plots, spectrograms, sound files and one HTML page."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.evaluation.figures import usage_panel
from worldmodel.evaluation.report import number, write_report
from worldmodel.media.plots import COLOURS, Bar, Panel
from worldmodel.speech.evaluation.codes import codec_panels, codec_rows
from worldmodel.speech.media import save_sound, spectrogram
from worldmodel.speech.scores.waves import RATE

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
    "pairs of phones": "A bigram model of the phones that the classifier reads in training speech, in samples of the "
    "prior of the same length, or in training speech with its phones in random order; its cross-entropy on held-out "
    "speech. All models are estimated from the same number of phones.",
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
QUALITY = {"si_sdr": "SI-SDR", "log_spectral_distance": "log-spectral distance"}

Rows = list[tuple[str, str]]  # (name, value); an empty value heads a section


def intervals(figures: dict[str, Any], names: dict[str, str], digits: int = 2, unit: str = "") -> Rows:
    """The figures that there are, by their names in the report."""
    return [(name, number(figures[key], digits) + unit) for key, name in names.items() if key in figures]


def lines(figures: dict[str, Any]) -> Rows:
    """The table of the report."""
    codes = figures["codes"]
    rate = f"{codes['a_second']:.0f} of {codes['codes']} a second: {codes['bits_a_second'] / 1000:.2f} kbit/s"
    names = {
        "wave": "bits a sample, given the codes",
        "fixed": "bits a sample, codes of fixed width",
        "learned": "bits a sample, codes under the prior",
        "prior": "prior, bits a code",
    }
    rows = [
        (f"{figures['utterances']} held-out utterances, {figures['seconds']:.0f} s", ""),
        ("codes", f"{rate}, a factor {codes['factor']:.1f}"),
        ("codes used", f"{codes['share']:.1%}, perplexity {codes['perplexity']:.0f}"),
        *intervals(figures["bits"], names, 3),
    ]
    if "wave" in figures["bits"] and "voice_temperature" in figures:
        rows.append(("temperature of the WaveNet", f"{figures['voice_temperature']:g}"))
    if leakage := figures.get("leakage"):
        best = max((leakage[key] for key in ("histogram", "embedded")), key=lambda each: each["value"])
        rows.append(("speaker predicted from the codes of a second", f"{number(best)}, chance {leakage['chance']:.2f}"))
    if phonemes := figures.get("phonemes"):
        rows += _phonemes(phonemes)
    if conversion := figures.get("conversion"):
        rows += _conversion(conversion)
    if bigrams := figures.get("bigrams"):
        rows += _bigrams(bigrams)
    if codec := figures.get("codec"):
        rows += codec_rows(codec)
    if resynthesis := figures.get("resynthesis"):
        rows.append((f"Coded and decoded, {resynthesis['utterances']} utterances", ""))
        rows += intervals(resynthesis, QUALITY, unit=" dB")
    for name, level in figures.get("levels", {}).items():
        rows.append((f"From {name} only, {level['bits_a_second'] / 1000:.2f} kbit/s", ""))
        rows += intervals(level, QUALITY, unit=" dB")
    return rows


def _phonemes(figures: dict[str, Any]) -> Rows:
    def both(system: str, key: str, digits: int = 3) -> str:
        return "; ".join(number(figures[system][what][key], digits) for what in ("all", "speech"))

    rows = [(f"Codes as phonemes ({figures['phonemes']}): all frames; without silence", "")]
    rows += [(name, both(name, "accuracy")) for name in SYSTEMS if name in figures]
    if "labels" in figures:
        rows.append(("classifier trained on the labels, new speakers", both("labels", "accuracy")))
    held = [f"{figures['codes'][what]['held_out']['accuracy']['value']:.3f}" for what in ("all", "speech")]
    rows.append(("most frequent phoneme", both("codes", "most_frequent")))
    rows.append(("codes, ratio to that", both("codes", "times_baseline", 1)))
    return [*rows, ("codes, held-out speakers", "; ".join(held))]


def _bigrams(figures: dict[str, Any]) -> Rows:
    prior = f"speech from the prior, temperature {figures['temperature']:g}"
    names = {"real": "training speech", "decoded": "the same, coded and decoded", "prior": prior,
             "shuffled": "training speech, its phones in random order"}  # fmt: skip
    rows = [(f"Pairs of phones: bits a phone of held-out speech, given those of {figures['seconds']:.0f} s of", "")]
    rows += intervals(figures["bits"], names)
    places = {"decoded": "coded and decoded: 0 as training speech, 1 as shuffled", "prior": "from the prior: the same"}
    return rows + intervals(figures["place"], places)


def _conversion(figures: dict[str, Any]) -> Rows:
    voice, pitch = figures["voice"], figures["pitch"]
    names = {
        "real_as_itself": "real speech classified as its speaker",
        "resynthesised_as_itself": "coded and decoded, as its speaker",
        "converted_as_target": "converted, as the target",
        "converted_as_source": "converted, as the source",
        "converted_over_resynthesised": "converted over coded and decoded",
    }
    title = f"{figures['conversions']} conversions among {', '.join(figures['speakers'])}"
    rows = [(title, ""), *intervals(voice, names), ("chance", f"{voice['chance']:.2f}")]
    if phones := figures.get("phones"):
        for key, name in (("resynthesised", "coded and decoded"), ("converted", "converted")):
            rows.append((f"other phones, {name}", number(phones[key]["all"])))
        rows.append(("converted over coded and decoded", number(phones["converted_over_resynthesised"])))
    names = {
        "converted": "mel-cepstral distortion, converted",
        "unconverted": "mel-cepstral distortion, the source itself",
        "target_resynthesised": "mel-cepstral distortion, the target, coded and decoded",
    }
    rows += intervals(figures.get("mel_cepstral_distortion") or {}, names, unit=" dB")
    rows.append(("F0 of the real voices", ", ".join(f"{name} {hertz:.0f}" for name, hertz in pitch["hertz"].items())))
    rows.append(("voiced, converted; real", f"{pitch['voiced']:.0%}; {pitch['voiced_real']:.0%} of the frames"))
    if decoded := pitch.get("resynthesised"):
        follows = "" if decoded["follows"] is None else f", correlation of log-F0 {decoded['follows']:.2f}"
        value = f"{decoded['voiced']:.0%} voiced; {decoded['kept']:.0%} of the source's voiced frames are{follows}"
        rows.append(("pitch, coded and decoded", value))
    if pitch["follows"] is not None:
        rows.append(("log-F0 of converted speech, correlation with its source", f"{pitch['follows']:.2f}"))
    if pitch["silent"]:
        rows.append(("pairs of voices without an F0", f"{pitch['silent']} of {pitch['silent'] + pitch['pairs']}"))
    if "to_target" in pitch:
        value = f"{pitch['to_target']:.3f}; {pitch['to_source']:.3f} (distance of the voices {pitch['way']:.3f})"
        rows.append(("log-F0 of converted speech, distance from target; source", value))
    return rows + intervals(figures, {"log_spectral_distance": "log-spectral distance, coded and decoded"}, unit=" dB")


def panels(figures: dict[str, Any]) -> list[Panel]:
    """Bars of the scores, bitrates of a codec, and the use of the codes."""
    result = codec_panels(figures["codec"]) if "codec" in figures else []
    if section := figures.get("phonemes"):
        short = {name: name.replace(", ", "\n").replace(" codes", "\ncodes") for name in SYSTEMS if name in section}
        colours = dict(zip(SYSTEMS, COLOURS, strict=False))
        bars = {label: Bar.of(section[name]["speech"]["accuracy"], colours[name]) for name, label in short.items()}
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
            names = {"resynthesised": "decoded", "converted": "converted"}
            bars = {name: Bar.of(phones[key]["all"]) for key, name in names.items()}
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
