"""Scores of voice conversion: classifiers of speakers and of phones read held-out utterances in every voice."""

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
from worldmodel.speech.scores.classifiers import PhoneClassifier, SpeakerClassifier, phoneme_errors, speaker_shares
from worldmodel.speech.scores.distances import log_spectral_distance, mel_cepstral_distortion
from worldmodel.speech.voice import VoiceModel

COMMON_SENTENCES = 24  # sentences of VCTK that all speakers read


@dataclasses.dataclass(frozen=True)
class Classifiers:
    """Classifiers that were trained on real speech; ``phones`` is None without labelled speech."""

    speakers: SpeakerClassifier
    phones: PhoneClassifier | None


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One utterance in one voice."""

    source: Utterance
    target: int  # index in the list of target speakers
    own: bool  # whether the target is the speaker of the source
    wave: np.ndarray  # (n,) float32


def conversion(
    world: VoiceModel,
    sources: Sequence[Utterance],
    speakers: Sequence[int],
    classifiers: Classifiers,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[dict[str, Any], list[tuple[str, np.ndarray]]]:
    """Convert every source to each of ``speakers`` (indices of the run) once, at temperature 1, without selection.

    Returns the figures and example waves: the first source of each speaker, decoded in its own voice and in that of the
    next speaker.
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
        "voice": voice_figures(classifiers.speakers, sources, speakers, own, other, seed),
        "pitch": pitch_figures(world, sources, speakers, other),
        "mel_cepstral_distortion": distortion(sources, speakers, own, other, seed),
        "log_spectral_distance": mean_interval(
            np.array([log_spectral_distance(each.source.wave, each.wave) for each in own]), seed
        ).to_json(),
    }
    if classifiers.phones is not None:
        figures["phones"] = phone_figures(classifiers.phones, own, other, seed)
    return figures, example_waves(world, sources, speakers, conversions)


@torch.no_grad()
def in_voices(
    world: VoiceModel, source: Utterance, speakers: Sequence[int], generator: torch.Generator
) -> list[np.ndarray]:
    """One utterance in several voices, (n,) each, drawn as one batch."""
    codes = source.codes.flatten(0, 1)[None].to(world.device)
    conditions = torch.tensor(list(speakers), device=world.device)
    drawn: Tensor = world.tokenizer.draw(codes.expand(len(speakers), *codes.shape[1:]), conditions, generator)
    return list(to_wave(drawn[:, 0].cpu().numpy()))


def voice_figures(
    classifier: SpeakerClassifier,
    sources: Sequence[Utterance],
    speakers: Sequence[int],
    own: Sequence[Conversion],
    other: Sequence[Conversion],
    seed: int,
) -> dict[str, Any]:
    """Shares of one-second crops that are classified as a speaker; means over utterances."""
    places = np.array([speakers.index(each.speaker) for each in sources])
    real = speaker_shares(classifier, [each.wave for each in sources])[np.arange(len(places)), places]
    targets = np.array([each.target for each in [*own, *other]])
    shares = speaker_shares(classifier, [each.wave for each in [*own, *other]])
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
    """Values of conversions (M,) → means over those of each source, which are not independent: (S,)."""
    numbers = {id(source): number for number, source in enumerate(sources)}
    places = np.array([numbers[id(conversion.source)] for conversion in conversions])
    return np.array([values[places == place].mean() for place in range(len(sources))])


def phone_figures(
    classifier: PhoneClassifier, own: Sequence[Conversion], other: Sequence[Conversion], seed: int
) -> dict[str, Any]:
    """Share of frames that are classified as another phone than the real source at the same time."""
    resynthesised, converted = (
        phoneme_errors(classifier, [each.source.wave for each in group], [each.wave for each in group])
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
    """Mean F0 of each real voice in hertz, the distance of that of converted speech from its target and its source, the
    share of voiced frames, and the correlation of F0 with the source.

    Pairs of voices whose conversions have no voiced frame count as ``silent``.
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
    """Mel-cepstral distortion in dB to the target's recording of the same sentence; None without such recordings."""
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
    """p225_023 → 023; numbers above 24 are different texts for each speaker of VCTK, so the key is returned."""
    parts = key.replace("/", "_").split("_")
    common = len(parts) > 1 and (not parts[1].isdigit() or int(parts[1]) <= COMMON_SENTENCES)
    return parts[1] if common else key


def example_waves(
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
