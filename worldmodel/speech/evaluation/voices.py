"""Runs of sound: what speech costs, what its codes know of words and voices, and whether a voice can be changed.

Everything is measured on held-out utterances. Classifiers that judge are trained on real speech alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.metrics import CodeUsage, mean_interval, usage_of
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.evaluation.report import heading
from worldmodel.runs.data import source_path
from worldmodel.speech.evaluation import codecs, voices_report
from worldmodel.speech.evaluation.conversion import Judges, conversion
from worldmodel.speech.evaluation.levels import level_figures
from worldmodel.speech.evaluation.phoneme_codes import phoneme_figures
from worldmodel.speech.evaluation.utterances import Utterance, flat_codes, heard, take_in
from worldmodel.speech.scores.codec import wave_scores
from worldmodel.speech.scores.features import HOP, RATE
from worldmodel.speech.scores.leakage import leakage
from worldmodel.speech.scores.phonemes import PhoneClassifier, train_phone_classifier
from worldmodel.speech.scores.speakers import train_speaker_classifier
from worldmodel.speech.separate import SeparateLevels
from worldmodel.speech.sources.corpora import TIMIT
from worldmodel.speech.sources.phones import NO_PHONE, PHONES39, frame_phones, phone_files, read_phones
from worldmodel.speech.sources.sound import normalise, read_sound
from worldmodel.speech.voice import VoiceModel
from worldmodel.tokenizers.base import join

ENOUGH = 15.0  # seconds of training speech of a speaker whose voice is to be spoken in
FEW = 4  # held-out utterances of a speaker that are converted
MOST = 8  # speakers that are converted among, the first ones


def evaluate_voices(
    run: Path,
    world: VoiceModel,
    store: EpisodeStore,
    timit: Path | None = None,
    seed: int = 0,
    command: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure a run of sound on the held-out utterances of ``store``; writes the report to its folder ``evaluation``.

    ``timit``: the folder of TIMIT, whose alignments say what the codes of its own recordings stand for, and train the
    classifier that reads what converted speech says. What it is needed for is left out without it. Raises
    :class:`DataError` when the data do not fit.
    """
    if (store.spec.frame_shape, store.spec.action_names) != (world.spec.frame_shape, world.spec.action_names):
        raise DataError(f"{store.path} holds speakers or windows other than {run} knows; give another data=…")
    check_rate(world.rate)
    spoken = take_in(world, store, progress)
    held_out = [each for each in spoken if each.held_out]
    if not held_out:
        raise DataError(f"{len(store)} utterances at {store.path}, none of them held out")
    figures: dict[str, Any] = {
        **heading(run.name, world.spec.env_id, world.device, command),
        "utterances": len(held_out),
        "seconds": sum(each.seconds for each in held_out),
        "codes": code_figures(world, held_out),
        "bits": bit_figures(world, held_out, seed),
    }
    if (leakage := leakage_figures(world, spoken)) is not None:
        figures["leakage"] = leakage
    if timit is not None and (phonemes := phoneme_figures(run, world, spoken, timit, seed)) is not None:
        figures["phonemes"] = phonemes
    if (rates := codecs.codec_figures(run, world, spoken, seed, progress)) is not None:
        figures["codec"] = rates
    shown: list[tuple[str, np.ndarray]] = []
    held_out_speakers = {each.speaker for each in held_out}  # of TIMIT none whom the run was trained on
    speakers = [n for n in range(len(world.spec.action_names)) if n in held_out_speakers and heard(spoken, n) >= ENOUGH]
    speakers = speakers[:MOST]
    if world.tokenizer.condition_width and len(speakers) > 1:
        sources = [u for n in speakers for u in [u for u in held_out if u.speaker == n][:FEW]]
        judges = make_judges(world, spoken, speakers, timit, seed, progress)
        figures["conversion"], shown = conversion(world, sources, speakers, judges, seed, progress)
    else:
        figures["resynthesis"], shown = resynthesis(world, held_out[: 4 * FEW], seed)
    if isinstance(world.tokenizer, SeparateLevels):
        figures["levels"], more = level_figures(world, world.tokenizer, held_out[: 4 * FEW], seed)
        shown = more + shown
    voices_report.save(figures, shown, run / "evaluation")
    return figures


def find_timit(folder: str | None, store: EpisodeStore) -> Path | None:
    """The folder of TIMIT: the one that is named, or where recordings of TIMIT were taken from, if that is still there.

    Raises :class:`ConfigError` for a folder that is none.
    """
    if folder is not None:
        given = Path(folder).expanduser()
        if not given.is_dir():
            raise ConfigError(f"--timit {folder} is no folder; it names that of TIMIT, with .phn beside recordings")
        return given
    path = source_path(store) if store.spec.env_id == "timit" else None
    return path if path is not None and path.is_dir() else None


def check_rate(rate: int) -> None:
    """Raises :class:`ConfigError` for sound that the judges, and the spectra of networks, are not made for."""
    if rate != RATE:
        raise ConfigError(
            f"speech is scored at {RATE:,} samples a second, not {rate:,}; collect it anew: source.rate=16000"
        )


def code_figures(world: VoiceModel, held_out: Sequence[Utterance]) -> dict[str, Any]:
    """Rate and use of the codes."""
    tokenizer = world.tokenizer
    codes = torch.cat([each.codes for each in held_out])
    books = [
        CodeUsage(torch.bincount(book.flatten(), minlength=tokenizer.num_codes).numpy())
        for book in tokenizer.books(codes)
    ]
    a_second = math.prod(tokenizer.grid) * world.spec.rate
    return {
        "a_second": a_second,
        "codes": tokenizer.num_codes,
        "bits_a_second": a_second * math.log2(tokenizer.num_codes),
        "factor": 8 * world.rate / (a_second * math.log2(tokenizer.num_codes)),
        **usage_of(books),
    }


@torch.no_grad()
def bit_figures(world: VoiceModel, held_out: Sequence[Utterance], seed: int) -> dict[str, Any]:
    """Bits a sample of the wave and of its codes, means over utterances; what cannot be told is left out."""
    figures: dict[str, Any] = {}
    tokenizer, bit = world.tokenizer, math.log(2)
    samples = np.array([each.frames.numel() for each in held_out])
    uniform = np.array([each.codes.numel() * math.log2(tokenizer.num_codes) for each in held_out])
    if tokenizer.likelihood.exact:
        wave = []
        for each in held_out:
            signal = join(each.frames[None]).to(world.device)
            codes = each.codes.flatten(0, 1)[None].to(world.device)
            speaker = torch.tensor([each.speaker], device=world.device)
            wave.append(float(tokenizer.given(signal, codes, speaker)) / bit)
        figures["wave"] = mean_interval(np.array(wave) / samples, seed).to_json()
        figures["fixed"] = mean_interval((np.array(wave) + uniform) / samples, seed).to_json()
    if world.prior is not None:
        costs = []
        for each in held_out:
            actions = torch.full((1, len(each.codes)), each.speaker, device=world.device)
            nats = world.prior.log_likelihood(each.codes[None].to(world.device), actions)
            costs.append(-float(nats.sum()) / bit)
        count = np.array([each.codes.numel() for each in held_out])
        figures["prior"] = mean_interval(np.array(costs) / count, seed).to_json()
        if tokenizer.likelihood.exact:
            figures["learned"] = mean_interval((np.array(wave) + np.array(costs)) / samples, seed).to_json()
    return figures


def leakage_figures(world: VoiceModel, spoken: Sequence[Utterance]) -> dict[str, Any] | None:
    """How well the codes give the speaker away; None where no two speakers are in both halves."""
    known = sorted({u.speaker for u in spoken if not u.held_out} & {u.speaker for u in spoken if u.held_out})
    if len(known) < 2:
        return None
    parts: dict[bool, tuple[list[np.ndarray], list[int]]] = {False: ([], []), True: ([], [])}
    for each in spoken:
        if each.speaker in known:
            rows, speakers = parts[each.held_out]
            rows.append(flat_codes(world, each))
            speakers.append(known.index(each.speaker))
    window = round(len(flat_codes(world, spoken[0])) / spoken[0].seconds)
    probes = leakage(*parts[False], *parts[True], world.tokenizer.num_codes, window)
    return {**probes.to_json(), "speakers": len(known)}


def make_judges(
    world: VoiceModel,
    spoken: Sequence[Utterance],
    speakers: Sequence[int],
    timit: Path | None,
    seed: int,
    progress: Progress,
) -> Judges:
    """Classifiers of voices, from the training utterances, and of phones, from TIMIT where it is there."""
    training = [each for each in spoken if not each.held_out and each.speaker in speakers]
    numbers = [speakers.index(each.speaker) for each in training]
    voices = train_speaker_classifier([each.wave for each in training], numbers, seed=seed, progress=progress)
    phones = None if timit is None else phone_classifier(timit, world.rate, seed, progress)
    return Judges(voices, phones)


def phone_classifier(timit: Path, rate: int, seed: int, progress: Progress) -> PhoneClassifier:
    """Trained on all recordings of a folder of TIMIT, whoever speaks: none of them is judged by it."""
    waves, labels = [], []
    aligned = phone_files(timit)
    if not aligned:
        raise DataError(f"{timit} holds no alignment .phn beside a recording; --timit names the folder of TIMIT")
    for utterance in TIMIT(str(timit)).utterances:
        if utterance.key in aligned:
            waves.append(normalise(read_sound(utterance.file, rate), rate))
            labels.append(frame_phones(read_phones(aligned[utterance.key]), len(waves[-1]) // HOP, HOP))
    assert NO_PHONE == -1  # what the classifier takes for "none"
    return train_phone_classifier(waves, labels, len(PHONES39.names), seed=seed, progress=progress)


def resynthesis(
    world: VoiceModel, chosen: Sequence[Utterance], seed: int
) -> tuple[dict[str, Any], list[tuple[str, np.ndarray]]]:
    """Held-out utterances coded and decoded in their own voices."""
    generator = torch.Generator(world.device).manual_seed(seed)
    real = [each.wave for each in chosen]
    decoded = [world.decode(each.codes, each.speaker, generator) for each in chosen]
    figures = {
        "utterances": len(chosen),
        **wave_scores(real, decoded, seed),
    }
    return figures, [(f"{chosen[0].key}, real", real[0]), ("coded and decoded", decoded[0])]
