"""Runs of sound: what speech costs, what its codes know of words and voices, and whether a voice can be changed.

Everything is measured on held-out utterances. Classifiers that judge are trained on real speech alone.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.sources.phones import NO_PHONE, PHONES39, SILENCE, frame_phones, phone_files, read_phones
from worldmodel.data.sources.sound import normalise, read_sound
from worldmodel.data.sources.speech import TIMIT
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation import codecs, voices_report
from worldmodel.evaluation.conversion import Judges, Utterance, conversion
from worldmodel.evaluation.levels import level_figures
from worldmodel.evaluation.metrics import CodeUsage, mean_interval, ratio_of_sums
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.evaluation.speech import codec
from worldmodel.evaluation.speech.features import HOP, RATE, log_mel, mel_cepstrum, normalised, pooled
from worldmodel.evaluation.speech.kmeans import kmeans_codes
from worldmodel.evaluation.speech.leakage import leakage
from worldmodel.evaluation.speech.mapping import Mapped, both_ways, joined, shuffled
from worldmodel.evaluation.speech.phonemes import PhoneClassifier, train_phone_classifier
from worldmodel.evaluation.speech.speakers import train_speaker_classifier
from worldmodel.evaluation.suite import machine
from worldmodel.run import build_tokenizer, load_config
from worldmodel.tokenizers import VQVAE, SeparateLevels, require_codes
from worldmodel.tokenizers.base import join
from worldmodel.types import NO_ACTION, to_float
from worldmodel.voice import VoiceModel

ENOUGH = 15.0  # seconds of training speech of a speaker whose voice is to be spoken in
FEW = 4  # held-out utterances of a speaker that are converted
MOST = 8  # speakers that are converted among, the first ones


def evaluate_voices(
    run: Path,
    store: EpisodeStore,
    timit: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    command: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure a run of sound on the held-out utterances of ``store``; writes the report to its folder ``evaluation``.

    ``timit``: the folder of TIMIT, whose alignments say what the codes of its own recordings stand for, and train the
    classifier that reads what converted speech says. What it is needed for is left out without it. Raises
    :class:`DataError` when the data do not fit.
    """
    world = VoiceModel.load(run, device)
    if (store.spec.frame_shape, store.spec.action_names) != (world.spec.frame_shape, world.spec.action_names):
        raise DataError(f"{store.path} holds speakers or windows other than {run} knows; give another data=…")
    check_rate(world.rate)
    spoken = take_in(world, store, progress)
    held_out = [each for each in spoken if each.held_out]
    if not held_out:
        raise DataError(f"{len(store)} utterances at {store.path}, none of them held out")
    found: dict[str, Any] = {
        "run": run.name,
        "environment": world.spec.env_id,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine(world.device),
        "utterances": len(held_out),
        "seconds": sum(each.seconds for each in held_out),
        "codes": code_figures(world, held_out),
        "bits": bit_figures(world, held_out, seed),
    }
    if (leak := leakage_figures(world, spoken)) is not None:
        found["leakage"] = leak
    if timit is not None and (told := phoneme_figures(run, world, spoken, timit, seed)) is not None:
        found["phonemes"] = told
    if (rates := codecs.codec_figures(run, world, spoken, seed, progress)) is not None:
        found["codec"] = rates
    shown: list[tuple[str, np.ndarray]] = []
    known = {each.speaker for each in held_out}  # of TIMIT none whom the run was trained on
    speakers = [n for n in range(len(world.spec.action_names)) if n in known and heard(spoken, n) >= ENOUGH]
    speakers = speakers[:MOST]
    if world.tokenizer.told and len(speakers) > 1:
        sources = [u for n in speakers for u in [u for u in held_out if u.speaker == n][:FEW]]
        judges = make_judges(world, spoken, speakers, timit, seed, progress)
        found["conversion"], shown = conversion(world, sources, speakers, judges, seed, progress)
    else:
        found["resynthesis"], shown = resynthesis(world, held_out[: 4 * FEW], seed)
    if isinstance(world.tokenizer, SeparateLevels):
        found["levels"], more = level_figures(world, world.tokenizer, held_out[: 4 * FEW], seed)
        shown = more + shown
    voices_report.save(found, shown, run / "evaluation")
    return found


def check_rate(rate: int) -> None:
    """Raises :class:`ConfigError` for sound that the judges, and the spectra of networks, are not made for."""
    if rate != RATE:
        raise ConfigError(
            f"speech is scored at {RATE:,} samples a second, not {rate:,}; collect it anew: source.rate=16000"
        )


def take_in(world: VoiceModel, store: EpisodeStore, progress: Progress = silent) -> list[Utterance]:
    """All utterances with their codes."""
    held_out = set(store.split("held_out").tolist())
    trained = {store.episode(int(number)).condition for number in store.split("train")}
    spoken = []
    for number, entry in enumerate(store.entries):
        episode = store.episode(number)
        frames = torch.from_numpy(np.array(episode.frames))
        codes = world.encode(frames).cpu()
        speaker = episode.condition if episode.condition in trained else NO_ACTION  # whose voice nobody has learnt
        spoken.append(Utterance(entry.key or str(number), speaker, number in held_out, frames, codes))
        progress("utterances", number + 1, len(store))
    return spoken


def heard(spoken: Sequence[Utterance], speaker: int) -> float:
    """Seconds of training speech of a speaker."""
    return sum(each.seconds for each in spoken if each.speaker == speaker and not each.held_out)


def code_figures(world: VoiceModel, held_out: Sequence[Utterance]) -> dict[str, Any]:
    """Rate and use of the codes."""
    tokenizer = world.tokenizer
    codes = torch.cat([each.codes for each in held_out])
    books = [
        CodeUsage(torch.bincount(book.flatten(), minlength=tokenizer.codes).numpy()) for book in tokenizer.books(codes)
    ]
    a_second = math.prod(tokenizer.grid) * world.spec.rate
    return {
        "a_second": a_second,
        "codes": tokenizer.codes,
        "bits_a_second": a_second * math.log2(tokenizer.codes),
        "factor": 8 * world.rate / (a_second * math.log2(tokenizer.codes)),
        "share": float(np.mean([book.used / len(book.counts) for book in books])),
        "perplexity": float(np.mean([book.perplexity for book in books])),
        "books": [book.to_json() for book in books],
    }


@torch.no_grad()
def bit_figures(world: VoiceModel, held_out: Sequence[Utterance], seed: int) -> dict[str, Any]:
    """Bits a sample of the wave and of its codes, means over utterances; what cannot be told is left out."""
    told: dict[str, Any] = {}
    tokenizer, bit = world.tokenizer, math.log(2)
    samples = np.array([each.frames.numel() for each in held_out])
    uniform = np.array([each.codes.numel() * math.log2(tokenizer.codes) for each in held_out])
    if tokenizer.likelihood.exact:
        wave = []
        for each in held_out:
            x = join(to_float(each.frames[None])).to(world.device)
            codes = each.codes.flatten(0, 1)[None].to(world.device)
            extra = {"conditions": torch.tensor([each.speaker], device=world.device)} if tokenizer.told else {}
            wave.append(float(tokenizer.given(x, codes, **extra)) / bit)
        told["wave"] = mean_interval(np.array(wave) / samples, seed).to_json()
        told["fixed"] = mean_interval((np.array(wave) + uniform) / samples, seed).to_json()
    if world.prior is not None:
        costs = []
        for each in held_out:
            actions = torch.full((1, len(each.codes)), each.speaker, device=world.device)
            nats = world.prior.log_likelihood(each.codes[None].to(world.device), actions)
            costs.append(-float(nats.sum()) / bit)
        count = np.array([each.codes.numel() for each in held_out])
        told["prior"] = mean_interval(np.array(costs) / count, seed).to_json()
        if tokenizer.likelihood.exact:
            told["learned"] = mean_interval((np.array(wave) + np.array(costs)) / samples, seed).to_json()
    return told


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
    found = leakage(*parts[False], *parts[True], world.tokenizer.codes, window)
    return {**found.to_json(), "speakers": len(known)}


def flat_codes(world: VoiceModel, utterance: Utterance) -> np.ndarray:
    """(T · n,); with several codebooks (T · n, S); with several levels each as often as the finest, (T · n, levels)."""
    if len(world.tokenizer.levels) > 1:
        books = [book.flatten() for book in world.tokenizer.books(utterance.codes)]
        finest = max(map(len, books))
        return torch.stack([book.repeat_interleave(finest // len(book)) for book in books], 1).numpy()
    codes = utterance.codes.flatten(0, len(utterance.codes.shape) - 1 - len(world.tokenizer.slots))
    return codes.flatten(1).numpy() if world.tokenizer.slots else codes.numpy()


def phoneme_figures(
    run: Path, world: VoiceModel, spoken: Sequence[Utterance], timit: Path, seed: int
) -> dict[str, Any] | None:
    """Codes as phonemes, and the controls; None for recordings that have no alignments, or codes of several books."""
    aligned, tokenizer = phone_files(timit), world.tokenizer
    if tokenizer.slots or len(tokenizer.levels) > 1 or not all(each.key in aligned for each in spoken):
        return None
    hop = round(world.window / math.prod(world.tokenizer.grid))
    labels = [
        frame_phones(read_phones(aligned[each.key]), each.codes.numel(), hop * 16_000 // world.rate) for each in spoken
    ]
    halves = np.array([int(each.held_out) for each in spoken])
    sentences = [each.key.rpartition("/")[2] for each in spoken]
    apart = [{said for said, half in zip(sentences, halves, strict=True) if half == own} for own in (0, 1)]
    if not (apart[0] - apart[1] and apart[1] - apart[0]):  # nothing could be scored
        return None
    codes = [flat_codes(world, each) for each in spoken]
    systems = {"codes": codes, "shuffled codes": shuffled(codes, seed)}
    others = features(spoken, hop) | {"untrained encoder, k-means": untrained_vectors(run, world, spoken, seed)}
    fit_on = [not each.held_out for each in spoken]  # what the tokenizer was trained on, too
    for name, vectors in others.items():
        systems[name] = kmeans_codes(vectors, world.tokenizer.codes, fit_on, seed=seed)
    told: dict[str, Any] = {"hop": hop, "phonemes": len(PHONES39.names)}
    silence = PHONES39.names.index(SILENCE)
    for name, rows in systems.items():
        pairs = [(row[: len(own)], own[: len(row)]) for row, own in zip(rows, labels, strict=True)]
        told[name] = {}
        for what, leave_out in (("all", None), ("speech", silence)):
            said, meant = zip(*pairs, strict=True)
            first, second = both_ways(said, meant, halves, sentences, world.tokenizer.codes, leave_out)
            told[name][what] = mapped(joined(first, second), first)
    if hop % HOP == 0:
        told["labels"] = taught(spoken, labels, aligned, hop, apart[0], seed)
    return told


def taught(
    spoken: Sequence[Utterance],
    labels: Sequence[np.ndarray],
    aligned: dict[str, Path],
    hop: int,
    known: set[str],
    seed: int,
) -> dict[str, Any]:
    """What the labels themselves give: a network taught by those of the training half, read as often as there are
    codes, on the speakers and sentences that it does not know."""
    training = [each for each in spoken if not each.held_out]
    phones = [frame_phones(read_phones(aligned[each.key]), len(each.wave) // HOP, HOP) for each in training]
    model = train_phone_classifier([each.wave for each in training], phones, len(PHONES39.names), seed=seed)
    right: dict[str, list[tuple[int, int]]] = {"all": [], "speech": []}
    silence = PHONES39.names.index(SILENCE)
    for each, meant in zip(spoken, labels, strict=True):
        if each.held_out and each.key.rpartition("/")[2] not in known:
            said = pooled(model.read(each.wave), hop // HOP).argmax(-1).numpy()
            meant = meant[: len(said)]
            for what, counted in (("all", meant != NO_PHONE), ("speech", (meant != NO_PHONE) & (meant != silence))):
                right[what].append((int((said == meant)[counted].sum()), int(counted.sum())))
    figures = {}
    for what, rows in right.items():
        sums, counts = np.array(rows).T
        figures[what] = {"accuracy": ratio_of_sums(sums, counts, seed).to_json()}
    return figures


def mapped(both: Mapped, held_out: Mapped) -> dict[str, Any]:
    """Both ways round, and counted on the speakers of training and scored on the held-out ones alone."""
    return {**both.to_json(), "held_out": held_out.to_json()}


def features(spoken: Sequence[Utterance], hop: int) -> dict[str, list[Tensor]]:
    """What k-means sees instead: log-mel spectra of the same windows, two ways of removing the channel. Nothing for
    codes that stand for no whole number of spectra."""
    if hop % HOP:
        return {}
    mels = [pooled(log_mel(each.wave), hop // HOP) for each in spoken]
    return {
        "k-means, log-mels": [normalised(row) for row in mels],
        "k-means, mel-cepstra": [normalised(mel_cepstrum(row, 12), variance=False) for row in mels],
    }


@torch.no_grad()
def untrained_vectors(run: Path, world: VoiceModel, spoken: Sequence[Utterance], seed: int) -> list[Tensor]:
    """What the same encoder says before it has learnt anything, (T · n, D) an utterance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = require_codes(build_tokenizer(load_config(run), world.spec)).eval().to(world.device)
    assert isinstance(model, VQVAE)
    return [model.vectors(join(to_float(each.frames[None])).to(world.device))[0].cpu() for each in spoken]


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
    return Judges(voices, phones, PHONES39.names.index(SILENCE))


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
    made = [world.decode(each.codes, each.speaker, generator) for each in chosen]
    told = {
        "utterances": len(chosen),
        "si_sdr": codec.each(codec.si_sdr, real, made, seed)[1].to_json(),
        "log_spectral_distance": codec.each(codec.log_spectral_distance, real, made, seed)[1].to_json(),
    }
    return told, [(f"{chosen[0].key}, real", real[0]), ("coded and decoded", made[0])]
