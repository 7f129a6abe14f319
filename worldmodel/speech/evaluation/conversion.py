"""Is it the other voice, and are they the same words? Held-out utterances in every voice, judged by classifiers."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.evaluation.metrics import mean_interval, ratio_of_means
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.speech.evaluation.utterances import Utterance
from worldmodel.speech.mulaw import to_wave
from worldmodel.speech.pitch import log_f0_correlation, mean_log_f0, pitch
from worldmodel.speech.scores.alignment import mel_cepstral_distortion
from worldmodel.speech.scores.codec import log_spectral_distance
from worldmodel.speech.scores.phonemes import PhoneClassifier, phoneme_errors
from worldmodel.speech.scores.speakers import SpeakerClassifier, speaker_shares
from worldmodel.speech.voice import VoiceModel

COMMON = 24  # sentences of VCTK that all read


@dataclasses.dataclass(frozen=True)
class Judges:
    """Classifiers that were trained on real speech; ``phones`` is None where no labelled speech was at hand."""

    voices: SpeakerClassifier
    phones: PhoneClassifier | None


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One utterance in one voice."""

    source: Utterance
    target: int  # place among the speakers that are converted among
    own: bool  # it is the voice of the source
    wave: np.ndarray  # (n,) float32


def conversion(
    world: VoiceModel,
    sources: Sequence[Utterance],
    speakers: Sequence[int],
    judges: Judges,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[dict[str, Any], list[tuple[str, np.ndarray]]]:
    """Every source in the voice of every one of ``speakers`` (numbers of the run), once, at temperature 1: no picking.

    Returns the figures, and waves to be looked at: the first source of each speaker, as it was, coded and decoded in
    its own voice, and in that of the next speaker.
    """
    generator = torch.Generator(world.device).manual_seed(seed)
    conversions: list[Conversion] = []
    for number, source in enumerate(sources):
        waves = in_voices(world, source, speakers, generator)
        own_place = speakers.index(source.speaker)
        conversions += [Conversion(source, place, place == own_place, wave) for place, wave in enumerate(waves)]
        progress("voices", number + 1, len(sources))
    own = [each for each in conversions if each.own]
    other = [each for each in conversions if not each.own]
    figures = {
        "speakers": [world.spec.action_names[number] for number in speakers],
        "sources": len(sources),
        "conversions": len(other),
        "voice": voice_figures(judges.voices, sources, speakers, own, other, seed),
        "pitch": pitch_figures(world, sources, speakers, other),
        "mel_cepstral_distortion": distortion(sources, speakers, own, other, seed),
        "log_spectral_distance": mean_interval(
            np.array([log_spectral_distance(each.source.wave, each.wave) for each in own]), seed
        ).to_json(),
    }
    if judges.phones is not None:
        figures["phones"] = phone_figures(judges, own, other, seed)
    return figures, to_be_seen(world, sources, speakers, conversions)


@torch.no_grad()
def in_voices(
    world: VoiceModel, source: Utterance, speakers: Sequence[int], generator: torch.Generator
) -> list[np.ndarray]:
    """One utterance in several voices, (n,) each, drawn side by side."""
    codes = source.codes.flatten(0, 1)[None].to(world.device)
    conditions = torch.tensor(list(speakers), device=world.device)
    drawn: Tensor = world.tokenizer.draw(codes.expand(len(speakers), *codes.shape[1:]), conditions, generator)
    return list(to_wave(drawn[:, 0].cpu().numpy()))


def voice_figures(
    judge: SpeakerClassifier,
    sources: Sequence[Utterance],
    speakers: Sequence[int],
    own: Sequence[Conversion],
    other: Sequence[Conversion],
    seed: int,
) -> dict[str, Any]:
    """Shares of crops of a second that are read as a speaker; means over utterances."""
    places = np.array([speakers.index(each.speaker) for each in sources])
    real = speaker_shares(judge, [each.wave for each in sources])[np.arange(len(places)), places]
    targets = np.array([each.target for each in [*own, *other]])
    shares = speaker_shares(judge, [each.wave for each in [*own, *other]])
    rates = shares[np.arange(len(targets)), targets]
    resynthesised, as_target = rates[: len(own)], by_source(sources, other, rates[len(own) :])
    own_places = np.array([speakers.index(each.source.speaker) for each in other])
    as_source = by_source(sources, other, shares[np.arange(len(own), len(targets)), own_places])
    return {
        "chance": 1 / len(speakers),
        "real_as_itself": mean_interval(real, seed).to_json(),
        "resynthesised_as_itself": mean_interval(resynthesised, seed).to_json(),
        "converted_as_target": mean_interval(as_target, seed).to_json(),
        "converted_as_source": mean_interval(as_source, seed).to_json(),
        "converted_over_resynthesised": ratio_of_means(as_target, resynthesised, seed=seed).to_json(),
    }


def by_source(sources: Sequence[Utterance], conversions: Sequence[Conversion], values: np.ndarray) -> np.ndarray:
    """Values of conversions (M,) → their mean for each source, (S,): those of one source are not independent."""
    numbers = {id(source): number for number, source in enumerate(sources)}
    places = np.array([numbers[id(conversion.source)] for conversion in conversions])
    return np.array([values[places == place].mean() for place in range(len(sources))])


def phone_figures(judges: Judges, own: Sequence[Conversion], other: Sequence[Conversion], seed: int) -> dict[str, Any]:
    """Share of frames whose phone, as read, is not that read in the real source at the same time."""
    assert judges.phones is not None
    resynthesised, converted = (
        phoneme_errors(judges.phones, [each.source.wave for each in group], [each.wave for each in group])
        for group in (own, other)
    )
    rates = {"converted": by_source([each.source for each in own], other, converted), "resynthesised": resynthesised}
    ratio = ratio_of_means(rates["converted"], rates["resynthesised"], seed=seed)
    return {
        **{name: {"all": mean_interval(rate, seed).to_json()} for name, rate in rates.items()},
        "converted_over_resynthesised": ratio.to_json(),
    }


def pitch_figures(
    world: VoiceModel, sources: Sequence[Utterance], speakers: Sequence[int], other: Sequence[Conversion]
) -> dict[str, Any]:
    """Mean F0 of each real voice, in hertz; how far that of converted speech is from its target and its source; how
    much of it is voiced, and whether it goes up and down with the source.

    Pairs of voices between which nothing that is voiced was made count as ``silent``: of them no F0 can be told.
    """

    def track(wave: np.ndarray) -> np.ndarray:
        return pitch(wave, world.rate).hertz

    source_tracks = {id(each): track(each.wave) for each in sources}
    means = {n: mean_log_f0([source_tracks[id(u)] for u in sources if u.speaker == n]) for n in speakers}
    tracks = [(each, track(each.wave)) for each in other]
    rows, silent = [], 0
    for target, source in itertools.permutations(speakers, 2):
        own_tracks = [own for each, own in tracks if speakers[each.target] == target and each.source.speaker == source]
        if any(np.isfinite(own).any() for own in own_tracks):
            mean = mean_log_f0(own_tracks)
            distances = mean - means[target], mean - means[source], means[target] - means[source]
            rows.append(dict(zip(("to_target", "to_source", "way"), map(abs, distances), strict=True)))
        else:
            silent += 1
    correlations = [log_f0_correlation(source_tracks[id(each.source)], own) for each, own in tracks]
    follows = [correlation for correlation in correlations if correlation is not None]
    voiced = [np.isfinite(own).mean() for _, own in tracks], [np.isfinite(own).mean() for own in source_tracks.values()]
    keys = ("to_target", "to_source", "way") if rows else ()
    return {
        "hertz": {world.spec.action_names[n]: math.exp(mean) for n, mean in means.items()},
        "pairs": len(rows),
        "silent": silent,
        "voiced": float(np.mean(voiced[0])),
        "voiced_real": float(np.mean(voiced[1])),
        "follows": float(np.mean(follows)) if follows else None,
        **{key: float(np.mean([row[key] for row in rows])) for key in keys},
    }


def distortion(
    sources: Sequence[Utterance],
    speakers: Sequence[int],
    own: Sequence[Conversion],
    other: Sequence[Conversion],
    seed: int,
) -> dict[str, Any] | None:
    """Against the target's own recording of the same sentence, in dB along the best path; None where there is none."""
    recordings = {(each.speaker, sentence(each.key)): each.wave for each in sources}
    resynthesised = {(each.source.speaker, sentence(each.source.key)): each.wave for each in own}
    rows = []
    for each in other:
        key = (speakers[each.target], sentence(each.source.key))
        if key in recordings:
            values = [each.wave, each.source.wave, resynthesised[key]]
            rows.append([mel_cepstral_distortion(value, recordings[key]) for value in values])
    if not rows:
        return None
    table = np.array(rows)
    names = ("converted", "unconverted", "target_resynthesised")
    return {name: mean_interval(table[:, place], seed).to_json() for place, name in enumerate(names)} | {
        "pairs": len(rows)
    }


def sentence(key: str) -> str:
    """p225_023 → 023: what all speakers of VCTK read under that number, up to 24; other numbers are other texts."""
    parts = key.replace("/", "_").split("_")
    common = len(parts) > 1 and (not parts[1].isdigit() or int(parts[1]) <= COMMON)
    return parts[1] if common else key


def to_be_seen(
    world: VoiceModel, sources: Sequence[Utterance], speakers: Sequence[int], conversions: Sequence[Conversion]
) -> list[tuple[str, np.ndarray]]:
    shown = []
    for place, number in enumerate(speakers):
        first = next((each for each in sources if each.speaker == number), None)
        if first is None:
            continue
        following = (place + 1) % len(speakers)
        by_target = {each.target: each.wave for each in conversions if each.source is first}
        names = world.spec.action_names
        shown += [
            (f"{first.key}, real", first.wave),
            (f"{first.key}, coded and decoded", by_target[place]),
            (f"{first.key} in the voice of {names[speakers[following]]}", by_target[following]),
        ]
    return shown
