"""Scores of voice conversion: classifiers of speakers and of phones read held-out utterances in every voice."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from worldmodel.evaluation.metrics import mean_interval, ratio_of_means
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.speech.pitch import log_f0_correlation, mean_log_f0, pitch
from worldmodel.speech.scores.classifiers import PhoneClassifier, SpeakerClassifier, phoneme_errors, speaker_shares
from worldmodel.speech.scores.waves import log_spectral_distance, mel_cepstral_distortion
from worldmodel.speech.sound import to_wave
from worldmodel.speech.voice import Utterance, VoiceModel

COMMON_SENTENCES = 24  # sentences of VCTK that all speakers read


class Conversion(NamedTuple):
    """One utterance in one voice."""

    source: Utterance
    target: int  # index of the speaker in the run
    wave: np.ndarray  # (n,) float32


Conversions = Sequence[Conversion]
Classifiers = tuple[SpeakerClassifier, PhoneClassifier | None]  # that of phones is None without labelled speech


def conversion(
    world: VoiceModel,
    sources: Sequence[Utterance],
    speakers: Sequence[int],
    classifiers: Classifiers,
    seed: int = 0,
    progress: Progress = silent,
    temperature: float = 1.0,
) -> tuple[dict[str, Any], list[tuple[str, np.ndarray]]]:
    """Convert every source to each of ``speakers`` (indices of the run) once, without selection; ``temperature``: of
    the decoder.

    ``classifiers`` were trained on real speech. Returns the figures and example waves: the first source of each
    speaker, decoded in its own voice and in that of the next speaker.
    """
    generator = torch.Generator(world.device).manual_seed(seed)
    conversions: list[Conversion] = []
    for number, source in enumerate(sources):
        waves = in_voices(world, source, speakers, generator, temperature)
        conversions += [Conversion(source, speaker, wave) for speaker, wave in zip(speakers, waves, strict=True)]
        progress("voices", number + 1, len(sources))
    own = [each for each in conversions if each.target == each.source.speaker]
    other = [each for each in conversions if each.target != each.source.speaker]
    spectra = np.array([log_spectral_distance(each.source.wave, each.wave) for each in own])
    figures = {
        "speakers": [world.spec.action_names[number] for number in speakers],
        "sources": len(sources),
        "conversions": len(other),
        "voice": voice_figures(classifiers[0], speakers, own, other, seed),
        "pitch": pitch_figures(world, sources, speakers, own, other),
        "mel_cepstral_distortion": distortion(sources, own, other, seed),
        "log_spectral_distance": mean_interval(spectra, seed).to_json(),
    }
    if classifiers[1] is not None:
        figures["phones"] = phone_figures(classifiers[1], own, other, seed)
    return figures, example_waves(world, speakers, conversions)


def in_voices(
    world: VoiceModel, source: Utterance, speakers: Sequence[int], generator: torch.Generator, temperature: float = 1.0
) -> list[np.ndarray]:
    """One utterance in several voices, (n,) each, drawn as one batch."""
    codes, conditions = source.signal_codes.to(world.device), torch.tensor(speakers, device=world.device)
    drawn = world.tokenizer.draw(codes.expand(len(speakers), *codes.shape[1:]), conditions, generator, temperature)
    return list(to_wave(drawn[:, 0].cpu().numpy()))


def voice_figures(
    classifier: SpeakerClassifier, speakers: Sequence[int], own: Conversions, other: Conversions, seed: int
) -> dict[str, Any]:
    """Shares of one-second crops that are classified as a speaker; means over utterances."""

    def classified(shares: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
        """The share of each wave's crops that is classified as its wanted speaker."""
        return shares[np.arange(len(wanted)), [speakers.index(speaker) for speaker in wanted]]

    sets = [each.source.wave for each in own], [each.wave for each in own], [each.wave for each in other]
    real, resynthesised, converted = (speaker_shares(classifier, waves) for waves in sets)
    rates = {
        "real_as_itself": classified(real, [each.target for each in own]),
        "resynthesised_as_itself": classified(resynthesised, [each.target for each in own]),
        "converted_as_target": by_source(own, classified(converted, [each.target for each in other])),
        "converted_as_source": by_source(own, classified(converted, [each.source.speaker for each in other])),
    }
    ratio = ratio_of_means(rates["converted_as_target"], rates["resynthesised_as_itself"], seed=seed)
    means = {name: mean_interval(rate, seed).to_json() for name, rate in rates.items()}
    return {"chance": 1 / len(speakers), **means, "converted_over_resynthesised": ratio.to_json()}


def by_source(own: Conversions, values: np.ndarray) -> np.ndarray:
    """Values of the conversions of each source to all other voices → means over those of a source, which are not
    independent: (S,)."""
    return values.reshape(len(own), -1).mean(1)


def phone_figures(classifier: PhoneClassifier, own: Conversions, other: Conversions, seed: int) -> dict[str, Any]:
    """Share of frames that are classified as another phone than the real source at the same time."""
    resynthesised, converted = (
        phoneme_errors(classifier, [each.source.wave for each in group], [each.wave for each in group])
        for group in (own, other)
    )
    rates = {"converted": by_source(own, converted), "resynthesised": resynthesised}
    ratio = ratio_of_means(rates["converted"], rates["resynthesised"], seed=seed)
    means = {name: {"all": mean_interval(rate, seed).to_json()} for name, rate in rates.items()}
    return {**means, "converted_over_resynthesised": ratio.to_json()}


def pitch_figures(
    world: VoiceModel, sources: Sequence[Utterance], speakers: Sequence[int], own: Conversions, other: Conversions
) -> dict[str, Any]:
    """Mean F0 of each real voice in hertz, the distance of that of converted speech from its target and its source, the
    share of voiced frames, and the correlation of F0 with the source.

    Pairs of voices whose conversions have no voiced frame count as ``silent``. ``resynthesised``: of speech in its own
    voice, with ``kept``, the share of the voiced frames of the source that are voiced.
    """
    source_tracks = {id(each): pitch(each.wave, world.rate).hertz for each in sources}
    means = {n: mean_log_f0([source_tracks[id(u)] for u in sources if u.speaker == n]) for n in speakers}
    tracks = [(each, pitch(each.wave, world.rate).hertz) for each in other]
    distances, silent = [], 0
    for target, source in itertools.permutations(speakers, 2):
        pair = [track for each, track in tracks if (each.target, each.source.speaker) == (target, source)]
        if np.isfinite(np.concatenate(pair)).any():
            mean = mean_log_f0(pair)
            distances.append((mean - means[target], mean - means[source], means[target] - means[source]))
        else:
            silent += 1
    decoded = [(source_tracks[id(each.source)], pitch(each.wave, world.rate).hertz) for each in own]
    kept = float(np.mean([np.isfinite(track[np.isfinite(source)]).mean() for source, track in decoded]))
    voiced = float(np.mean([np.isfinite(track).mean() for _, track in decoded]))
    columns = zip(("to_target", "to_source", "way"), np.abs(distances).T, strict=True) if distances else ()
    return {
        "hertz": {world.spec.action_names[n]: math.exp(mean) for n, mean in means.items()},
        "pairs": len(distances),
        "silent": silent,
        "voiced": float(np.mean([np.isfinite(track).mean() for _, track in tracks])),
        "voiced_real": float(np.mean([np.isfinite(track).mean() for track in source_tracks.values()])),
        "follows": mean_correlation([(source_tracks[id(each.source)], track) for each, track in tracks]),
        "resynthesised": {"voiced": voiced, "kept": kept, "follows": mean_correlation(decoded)},
        **{name: float(np.mean(column)) for name, column in columns},
    }


def mean_correlation(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """Mean over pairs of F0 tracks of the correlation of ln F0; None where it is undefined for all."""
    correlations = [log_f0_correlation(*pair) for pair in pairs]
    defined = [correlation for correlation in correlations if correlation is not None]
    return float(np.mean(defined)) if defined else None


def distortion(sources: Sequence[Utterance], own: Conversions, other: Conversions, seed: int) -> dict[str, Any] | None:
    """Mel-cepstral distortion in dB to the target's recording of the same sentence; None without such recordings."""
    recordings = {(each.speaker, sentence(each.key)): each.wave for each in sources}
    resynthesised = {(each.source.speaker, sentence(each.source.key)): each.wave for each in own}
    rows = []
    for each in other:
        key = (each.target, sentence(each.source.key))
        if key in recordings:
            values = [each.wave, each.source.wave, resynthesised[key]]
            rows.append([mel_cepstral_distortion(value, recordings[key]) for value in values])
    if not rows:
        return None
    columns = zip(("converted", "unconverted", "target_resynthesised"), np.array(rows).T, strict=True)
    return {name: mean_interval(column, seed).to_json() for name, column in columns} | {"pairs": len(rows)}


def sentence(key: str) -> str:
    """p225_023 → 023; numbers above 24 are different texts for each speaker of VCTK, so the key is returned."""
    parts = key.replace("/", "_").split("_")
    common = len(parts) > 1 and (not parts[1].isdigit() or int(parts[1]) <= COMMON_SENTENCES)
    return parts[1] if common else key


def example_waves(world: VoiceModel, speakers: Sequence[int], conversions: Conversions) -> list[tuple[str, np.ndarray]]:
    """The first source of each speaker, real, decoded in its own voice, and in that of the next speaker."""
    waves = {(id(each.source), each.target): each.wave for each in conversions}
    shown = []
    for speaker, following in zip(speakers, [*speakers[1:], speakers[0]], strict=True):
        first = next(each.source for each in conversions if each.source.speaker == speaker)
        shown += [
            (f"{first.key}, real", first.wave),
            (f"{first.key}, coded and decoded", waves[id(first), speaker]),
            (f"{first.key} in the voice of {world.spec.action_names[following]}", waves[id(first), following]),
        ]
    return shown
