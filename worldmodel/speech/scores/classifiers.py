"""Classifiers of speakers and of phones, trained on real speech only, which score converted speech.

The mean of log-mels over each crop is subtracted, because otherwise the classifier of speakers learns the long-term
spectrum of each speaker, which depends on microphone and room. Measured on held-out sentences of four speakers of VCTK:
when an equaliser gives utterances the long-term spectrum of another speaker, 89 % of the seconds are classified as that
speaker and 7 % as the true one. With the mean subtracted these are 4 % and 91 %, with the same accuracy on clean
speech. The floor is low for the same reason. Level and noise are randomised in training.

Converted speech keeps the timing of its source, so the classifier of phones should predict the same phones at the same
times, and no transcript is needed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.speech.scores.waves import (
    BANDS,
    HOP,
    RATE,
    Wave,
    as_integers,
    as_wave,
    degraded_log_mels,
    levelled_log_mels,
)
from worldmodel.speech.sources import NO_PHONE

QUIET = 1e-3
"""Mel power of levelled speech below which a band is silent, some 60 dB below the loudest, for the classifier of
phones. With it, noise 30 dB below the speech changes 6 % of the predicted phones instead of 20 %, and accuracy on
held-out speakers is a little higher."""

M = TypeVar("M", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class Budget:
    """How a classifier is trained: about 20 seconds on one core."""

    steps: int = 500
    batch: int = 32
    rate: float = 2e-3  # peak of the learning rate, one cycle
    weight_decay: float = 0.02
    crop: int = RATE  # samples of an example


SPEAKER_BUDGET, PHONE_BUDGET = Budget(), Budget(steps=300, batch=16, crop=2 * RATE)


def layer(inputs: int, outputs: int, kernel: int, dilation: int) -> nn.Sequential:
    """(B, inputs, T) → (B, outputs, T): convolution over time, batch normalisation, ReLU."""
    padding = dilation * (kernel // 2)
    convolution = nn.Conv1d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm1d(outputs), nn.ReLU())


def crop(wave: Tensor, start: int, length: int) -> Tensor:
    """``length`` samples starting at ``start``; a wave that is too short is repeated."""
    part = wave[start : start + length]
    return part if len(part) == length else repeated(part, length)[:length]


def repeated(rows: Tensor, least: int) -> Tensor:
    """Rows (T, ...) repeated to at least ``least``, a whole number of times."""
    return rows.repeat(-(-least // len(rows)), *[1] * (rows.ndim - 1))


def windows(wave: Tensor, length: int) -> Tensor:
    """(T, ...) → (C, length, ...): overlapping crops that cover a wave, half a crop apart, at least one."""
    last = max(0, len(wave) - length)
    count = -(-last // max(1, length // 2)) + 1
    starts = np.linspace(0, last, count).astype(int)
    return torch.stack([crop(wave, int(start), length) for start in starts])


def fit(
    make: Callable[[], M],
    loss_of: Callable[[M, Generator], Tensor],
    budget: Budget,
    seed: int,
    name: str,
    progress: Progress,
) -> M:
    """Construct a model, train it with AdamW and a one-cycle learning rate, and set the evaluation mode."""
    generator = Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # initial weights and dropout draw from the global generator
        torch.manual_seed(seed)
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=budget.rate, weight_decay=budget.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, budget.rate, total_steps=budget.steps)
        model.train()
        for step in range(budget.steps):
            loss = loss_of(model, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            progress(name, step + 1, budget.steps)
    return model.eval()


def speaker_labels(speakers: Sequence[int] | np.ndarray, utterances: int) -> tuple[Tensor, int]:
    """Speakers (n,) int64, and their number. Raises ``ValueError`` for labels that do not fit."""
    labels = as_integers(speakers, (utterances,), 0, math.inf, f"speakers of {utterances} utterances")
    missing = sorted(set(range(int(labels.max()) + 1)) - set(labels.tolist()))
    if missing or not labels.any():
        raise ValueError(f"speakers are numbered from 0 on, at least two; there is no utterance of {missing or 1}")
    return labels, int(labels.max()) + 1


class SpeakerClassifier(nn.Module):
    """Log-mels of a second or so → logits of the speaker: dilated convolutions over time, their mean and deviation."""

    def __init__(self, speakers: int, width: int = 96, window: int = RATE):
        super().__init__()
        self.window = window  # samples: what it was trained on
        self.body = nn.Sequential(layer(BANDS, width, 5, 1), layer(width, width, 3, 2), layer(width, width, 3, 3))
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * width, speakers))

    def forward(self, log_mels: Tensor) -> Tensor:
        """(B, T, 80) → (B, speakers) logits."""
        hidden = self.body((log_mels - log_mels.mean(1, keepdim=True)).transpose(1, 2))
        deviation = hidden.var(2, unbiased=False).add(1e-4).sqrt()
        return self.head(torch.cat([hidden.mean(2), deviation], 1))

    @torch.inference_mode()
    def read(self, wave: Wave) -> Tensor:
        """(n,) → (C, speakers) log-probabilities of the crops of :func:`windows`."""
        return self(levelled_log_mels(windows(as_wave(wave), self.window))).log_softmax(-1)


def train_speaker_classifier(
    waves: Sequence[Wave],
    speakers: Sequence[int] | np.ndarray,
    budget: Budget = SPEAKER_BUDGET,
    seed: int = 0,
    progress: Progress = silent,
) -> SpeakerClassifier:
    """Fit on random crops of real utterances, each speaker equally often, randomly degraded.

    ``speakers``: (n,) integers in [0, S), each of which must have an utterance; 60 s of speech each suffice.
    Raises ``ValueError`` for labels that do not fit.
    """
    labels, count = speaker_labels(speakers, len(waves))
    groups = [[as_wave(wave) for wave, label in zip(waves, labels, strict=True) if label == s] for s in range(count)]
    places = [torch.tensor([max(1, len(wave) - budget.crop + 1) for wave in group]).double() for group in groups]

    def drawn(speaker: int, generator: Generator) -> Tensor:
        which = int(torch.multinomial(places[speaker], 1, generator=generator))
        start = int(torch.randint(int(places[speaker][which]), (), generator=generator))
        return crop(groups[speaker][which], start, budget.crop)

    def loss(model: SpeakerClassifier, generator: Generator) -> Tensor:
        chosen = torch.randint(count, (budget.batch,), generator=generator)
        examples = torch.stack([drawn(speaker, generator) for speaker in chosen.tolist()])
        return F.cross_entropy(model(degraded_log_mels(examples, generator)), chosen, label_smoothing=0.05)

    return fit(lambda: SpeakerClassifier(count, window=budget.crop), loss, budget, seed, "speakers", progress)


def speaker_shares(model: SpeakerClassifier, waves: Sequence[Wave]) -> np.ndarray:
    """(n, S): the share of each utterance's crops that are classified as each speaker."""
    read = [model.read(wave) for wave in waves]
    return np.stack([F.one_hot(crops.argmax(-1), crops.shape[-1]).double().mean(0).numpy() for crops in read])


class PhoneClassifier(nn.Module):
    """Log-mels → logits of the phone of every frame, from 25 frames on either side, a quarter of a second."""

    def __init__(self, phones: int, width: int = 128):
        super().__init__()
        self.phones = phones
        layers = [layer(BANDS, width, 5, 1), layer(width, width, 3, 2), layer(width, width, 3, 3)]
        layers += [layer(width, width, 3, 6), layer(width, width, 3, 12)]
        self.body = nn.ModuleList(layers)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Conv1d(width, phones, 1))

    def forward(self, log_mels: Tensor) -> Tensor:
        """(B, T, 80) → (B, phones, T) logits. The mean over the utterance is subtracted."""
        hidden = self.body[0]((log_mels - log_mels.mean(1, keepdim=True)).transpose(1, 2))
        for each in self.body[1:]:
            hidden = hidden + each(hidden)
        return self.head(hidden)

    @torch.inference_mode()
    def read(self, wave: Wave) -> Tensor:
        """(n,) → (n // 160, phones) log-probabilities."""
        return self(levelled_log_mels(as_wave(wave)[None], QUIET))[0].T.log_softmax(-1)


def train_phone_classifier(
    waves: Sequence[Wave],
    labels: Sequence[np.ndarray],
    phones: int,
    budget: Budget = PHONE_BUDGET,
    seed: int = 0,
    progress: Progress = silent,
) -> PhoneClassifier:
    """Fit on random crops of two seconds of real utterances, randomly degraded.

    ``labels``: per utterance (n // 160,) integers in [0, phones), or :data:`NO_PHONE`: the phone of the samples
    [160 i, 160 (i + 1)). Raises ``ValueError`` for labels that do not fit.
    """
    tensors = [as_wave(wave) for wave in waves]
    frames_of = [(len(wave) // HOP,) for wave in waves]
    targets = [as_integers(*pair, NO_PHONE, phones, "phones") for pair in zip(labels, frames_of, strict=True)]
    frames = budget.crop // HOP
    places = torch.tensor([max(1, len(label) - frames + 1) for label in targets]).double()

    def loss(model: PhoneClassifier, generator: Generator) -> Tensor:
        examples, wanted = [], []
        for which in torch.multinomial(places, budget.batch, replacement=True, generator=generator).tolist():
            start = int(torch.randint(int(places[which]), (), generator=generator))
            # crop() repeats a whole number of frames, so that labels stay aligned.
            whole = tensors[which][: len(targets[which]) * HOP]
            examples.append(crop(whole, start * HOP, frames * HOP))
            wanted.append(crop(targets[which], start, frames))
        seen = degraded_log_mels(torch.stack(examples), generator, QUIET)
        return F.cross_entropy(model(seen), torch.stack(wanted), ignore_index=NO_PHONE, label_smoothing=0.05)

    return fit(lambda: PhoneClassifier(phones), loss, budget, seed, "phones", progress)


def phoneme_errors(model: PhoneClassifier, real: Sequence[Wave], synthetic: Sequence[Wave]) -> np.ndarray:
    """(n,) shares of the frames whose predicted phone differs between each real utterance and the synthetic one with
    the same timing; 0 for equal utterances.

    Report it for resynthesised and converted speech, and for other real utterances of the same speaker as the chance
    level. The longer utterance is cut; raises ``ValueError`` when it is more than a tenth of a second longer.
    """
    shares = []
    for pair in zip(real, synthetic, strict=True):
        count = min(map(len, pair))
        if max(map(len, pair)) - count > RATE // 10:
            raise ValueError(f"utterances of {len(pair[0])} and {len(pair[1])} samples have not the same timing")
        phones, others = (model.read(wave[:count]).argmax(-1) for wave in pair)
        shares.append((phones != others).double().mean())
    return torch.stack(shares).numpy()
