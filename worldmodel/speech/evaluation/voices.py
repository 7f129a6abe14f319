"""Evaluation of speech runs: bitrate and likelihood, phonemes and speakers in the codes, and voice conversion.

All figures are of held-out utterances. Classifiers are trained on real speech only.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.config.flags import SPEECH_TEMPERATURE
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.metrics import CodeUsage, mean_interval, usage_of
from worldmodel.evaluation.openloop import Progress
from worldmodel.evaluation.report import heading
from worldmodel.heads import make_sampler
from worldmodel.runs.data import source_path
from worldmodel.speech.evaluation import voices_report
from worldmodel.speech.evaluation.codes import codec_figures, level_figures, phoneme_figures
from worldmodel.speech.evaluation.conversion import Classifiers, conversion
from worldmodel.speech.scores.bigrams import bigram_figures, phone_sequence
from worldmodel.speech.scores.classifiers import PhoneClassifier, train_phone_classifier, train_speaker_classifier
from worldmodel.speech.scores.codes import leakage
from worldmodel.speech.scores.waves import HOP, RATE, wave_scores
from worldmodel.speech.separate import SeparateLevels
from worldmodel.speech.sound import normalise, read_sound
from worldmodel.speech.sources import PHONEMES, TIMIT, frame_phones, phone_files, read_phones
from worldmodel.speech.voice import Utterance, VoiceModel, flat_codes, load_utterances
from worldmodel.tokenizers.base import join
from worldmodel.types import NO_ACTION
from worldmodel.util.files import expanded

MIN_SECONDS = 15.0  # of training speech of a target speaker
SOURCES_PER_SPEAKER = 4  # held-out utterances that are converted
MAX_RESYNTHESISED = 16  # held-out utterances that are coded and decoded
MAX_SPOKEN = 40  # samples from the prior whose phones are compared with those of real speech
MAX_SPEAKERS = 8  # the first speakers, which are converted to each other


def evaluate_voices(
    run: Path,
    world: VoiceModel,
    store: EpisodeStore,
    timit: Path | None,
    seed: int,
    command: str,
    progress: Progress,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Evaluate a speech run on the held-out utterances of ``store`` and write the report to its folder ``evaluation``.

    ``timit``: the folder of TIMIT, whose alignments label the codes of its recordings and train the phone classifier;
    figures that need it are left out without it. ``temperature``: of the decoder, if it is stochastic. The speakers of
    the store are among those of the run, which may have been trained on several corpora. Raises
    :class:`DataError` when the data do not fit, :class:`ConfigError` for another sampling rate than 16,000.
    """
    _check_data(run, world, store)
    utterances = load_utterances(world, store, progress)
    held_out = [each for each in utterances if each.held_out]
    figures: dict[str, Any] = {
        **heading(run.name, world.spec.env_id, world.device, command),
        "voice_temperature": temperature,
        "utterances": len(held_out),
        "seconds": sum(each.seconds for each in held_out),
        "codes": code_figures(world, held_out),
        "bits": bit_figures(world, held_out, seed),
    }
    parts = {
        "leakage": leakage_figures(world, utterances),
        "phonemes": None if timit is None else phoneme_figures(run, world, utterances, timit, seed),
        "codec": codec_figures(run, world, utterances, seed, progress),
    }
    figures |= {name: part for name, part in parts.items() if part is not None}
    speakers = chosen_speakers(utterances)
    if world.tokenizer.condition_width and len(speakers) > 1:
        sources = [u for n in speakers for u in [u for u in held_out if u.speaker == n][:SOURCES_PER_SPEAKER]]
        classifiers = train_classifiers(utterances, speakers, timit, seed, progress)
        figures["conversion"], shown = conversion(world, sources, speakers, classifiers, seed, progress, temperature)
        if world.prior is not None and classifiers[1] is not None:
            ours = [each for each in utterances if each.speaker in speakers]
            figures["bigrams"], spoken = prior_figures(world, ours, classifiers[1], seed, progress, temperature)
            shown += spoken
    else:
        figures["resynthesis"], shown = resynthesis(world, held_out[:MAX_RESYNTHESISED], seed, temperature)
    if isinstance(world.tokenizer, SeparateLevels):
        figures["levels"], more = level_figures(world, world.tokenizer, held_out[:MAX_RESYNTHESISED], seed)
        shown = more + shown
    voices_report.save(figures, shown, run / "evaluation")
    return figures


def _check_data(run: Path, world: VoiceModel, store: EpisodeStore) -> None:
    """Raises what :func:`evaluate_voices` does for data that do not fit."""
    unknown = set(store.spec.action_names) - set(world.spec.action_names)
    if store.spec.frame_shape != world.spec.frame_shape or unknown:
        raise DataError(f"{store.path} has other speakers or windows than {run}; give another data=…")
    if world.rate != RATE:  # which the classifiers and the spectra support
        fault = f"speech is scored at {RATE:,} samples a second, not {world.rate:,}"
        raise ConfigError(f"{fault}; collect it again with source.rate={RATE}")
    store.require("held_out")


def find_timit(folder: str | None, store: EpisodeStore) -> Path | None:
    """The folder of TIMIT: ``folder``, or the source of a store of TIMIT if it still exists.

    Raises :class:`ConfigError` when ``folder`` is no folder.
    """
    if folder is not None:
        given = expanded(folder)
        if not given.is_dir():
            raise ConfigError(f"--timit {folder} is no folder; it names the folder of TIMIT, with .phn files")
        return given
    path = source_path(store) if store.spec.env_id == "timit" else None
    return path if path is not None and path.is_dir() else None


def chosen_speakers(utterances: Sequence[Utterance]) -> list[int]:
    """The first speakers with held-out utterances and enough training speech; none for TIMIT: all are untrained."""

    def training_seconds(speaker: int) -> float:
        return sum(each.seconds for each in utterances if each.speaker == speaker and not each.held_out)

    held_out = sorted({each.speaker for each in utterances if each.held_out} - {NO_ACTION})
    return [speaker for speaker in held_out if training_seconds(speaker) >= MIN_SECONDS][:MAX_SPEAKERS]


def code_figures(world: VoiceModel, held_out: Sequence[Utterance]) -> dict[str, Any]:
    """Rate and use of the codes."""
    tokenizer = world.tokenizer
    books = tokenizer.books(torch.cat([each.codes for each in held_out]))
    counts = [torch.bincount(book.flatten(), minlength=tokenizer.num_codes).numpy() for book in books]
    a_second = math.prod(tokenizer.grid) * world.spec.rate
    bits_a_second = a_second * math.log2(tokenizer.num_codes)
    rate = {"a_second": a_second, "codes": tokenizer.num_codes, "bits_a_second": bits_a_second}
    return {**rate, "factor": 8 * world.rate / bits_a_second, **usage_of([CodeUsage(each) for each in counts])}


@torch.no_grad()
def bit_figures(world: VoiceModel, held_out: Sequence[Utterance], seed: int) -> dict[str, Any]:
    """Bits per sample of the wave and bits per code, means over utterances; figures that are undefined are left out."""
    tokenizer, bit = world.tokenizer, math.log(2)
    samples, codes = np.array([(each.frames.numel(), each.codes.numel()) for each in held_out]).T
    bits: dict[str, np.ndarray] = {}
    if tokenizer.likelihood.exact:
        wave = np.zeros(len(held_out))
        for number, each in enumerate(held_out):
            speaker, signal = torch.tensor([each.speaker], device=world.device), join(each.frames[None])
            nats = tokenizer.given(signal.to(world.device), each.signal_codes.to(world.device), speaker)
            wave[number] = float(nats) / bit
        bits = {"wave": wave / samples, "fixed": (wave + codes * math.log2(tokenizer.num_codes)) / samples}
    if world.prior is not None:
        costs = np.zeros(len(held_out))
        for number, each in enumerate(held_out):
            actions = torch.full((1, len(each.codes)), each.speaker, device=world.device)
            costs[number] = -float(world.prior.log_likelihood(each.codes[None].to(world.device), actions).sum()) / bit
        bits["prior"] = costs / codes
        if tokenizer.likelihood.exact:
            bits["learned"] = (wave + costs) / samples
    return {name: mean_interval(values, seed).to_json() for name, values in bits.items()}


def leakage_figures(world: VoiceModel, utterances: Sequence[Utterance]) -> dict[str, Any] | None:
    """How well probes predict the speaker from the codes; None without two speakers in both splits."""
    common = sorted({u.speaker for u in utterances if not u.held_out} & {u.speaker for u in utterances if u.held_out})
    if len(common) < 2:
        return None
    parts = [[u for u in utterances if u.speaker in common and u.held_out is part] for part in (False, True)]
    codes, held_codes = ([flat_codes(world, each) for each in part] for part in parts)
    speakers, held_speakers = ([common.index(each.speaker) for each in part] for part in parts)
    window = round(len(flat_codes(world, utterances[0])) / utterances[0].seconds)
    probes = leakage(codes, speakers, held_codes, held_speakers, world.tokenizer.num_codes, window)
    return {**probes, "speakers": len(common)}


def train_classifiers(
    utterances: Sequence[Utterance], speakers: Sequence[int], timit: Path | None, seed: int, progress: Progress
) -> Classifiers:
    """Classifiers of speakers, trained on the training utterances, and of phones, trained on all recordings of TIMIT if
    its folder is given; the latter is used to score other recordings only."""
    training = [each for each in utterances if not each.held_out and each.speaker in speakers]
    numbers = [speakers.index(each.speaker) for each in training]
    voices = train_speaker_classifier([each.wave for each in training], numbers, seed=seed, progress=progress)
    if timit is None:
        return voices, None
    aligned = phone_files(timit)
    if not aligned:
        raise DataError(f"{timit} holds no alignment .phn beside a recording; --timit names the folder of TIMIT")
    recordings = [each for each in TIMIT(str(timit)).utterances if each.key in aligned]
    waves = [normalise(read_sound(each.file, RATE), RATE) for each in recordings]
    phones = [read_phones(aligned[each.key]) for each in recordings]
    labels = [frame_phones(own, len(wave) // HOP, HOP) for own, wave in zip(phones, waves, strict=True)]
    return voices, train_phone_classifier(waves, labels, len(PHONEMES), seed=seed, progress=progress)


def prior_figures(
    world: VoiceModel,
    utterances: Sequence[Utterance],
    classifier: PhoneClassifier,
    seed: int,
    progress: Progress,
    temperature: float,
) -> tuple[dict[str, Any], list[tuple[str, np.ndarray]]]:
    """How well the pairs of consecutive phones of speech from the prior predict those of held-out speech; and a sample.

    For each training utterance, up to a number, the prior speaks as long in the same voice.
    """
    training = [each for each in utterances if not each.held_out]
    training = training[:: -(-len(training) // MAX_SPOKEN)]
    generator = torch.Generator(world.device).manual_seed(seed)
    sets: dict[str, list[np.ndarray]] = {"real": [], "decoded": [], "prior": []}
    for number, each in enumerate(training):
        codes = world.speak(each.speaker, len(each.codes), make_sampler(temperature=SPEECH_TEMPERATURE), generator)
        decoded, spoken = (world.decode(own, each.speaker, generator, temperature) for own in (each.codes, codes))
        for name, wave in (("real", each.wave), ("decoded", decoded), ("prior", spoken)):
            sets[name].append(phone_sequence(classifier, wave))
        progress("samples", number + 1, len(training))
    held_out = [phone_sequence(classifier, each.wave) for each in utterances if each.held_out]
    figures = bigram_figures(sets.pop("real"), sets, held_out, len(PHONEMES), seed)
    seconds = sum(each.seconds for each in training)
    figures = {"seconds": seconds, "temperature": SPEECH_TEMPERATURE, **figures}
    return figures, [(f"from the prior as {world.spec.action_names[each.speaker]}", spoken)]


def resynthesis(
    world: VoiceModel, chosen: Sequence[Utterance], seed: int, temperature: float = 1.0
) -> tuple[dict[str, Any], list[tuple[str, np.ndarray]]]:
    """Scores of held-out utterances that are encoded and decoded in their own voices."""
    generator = torch.Generator(world.device).manual_seed(seed)
    real = [each.wave for each in chosen]
    decoded = [world.decode(each.codes, each.speaker, generator, temperature) for each in chosen]
    figures = {"utterances": len(chosen), **wave_scores(real, decoded, seed)}
    return figures, [(f"{chosen[0].key}, real", real[0]), ("coded and decoded", decoded[0])]
