"""What is said? A small network learns the phones of frames on real speech only; then it compares two utterances.

Converted speech keeps the timing of its source, so no transcript is needed: the phones that the network reads in it
should be those that it reads in the real source at the same time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.evaluation.metrics import Interval, ratio_of_sums
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.speech.scores.classifier import Budget, crop, fit, layer
from worldmodel.speech.scores.degrade import blurred, degraded, features
from worldmodel.speech.scores.features import BANDS, HOP, RATE, Wave, as_wave

UNKNOWN = -1
"""Label of a frame that has none; it is neither learnt nor scored."""

QUIET = 1e-3
"""Mel power of levelled speech below which a band is silent, some 60 dB below the loudest. Hiss 30 dB below the speech
changes 6 % of the phones so, and 20 % with all that can be heard; held-out speakers are read a little better, too."""

PHONE_BUDGET = Budget(steps=300, batch=16, crop=2 * RATE)


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
        """(B, T, 80) → (B, phones, T) logits. The mean over the utterance, its microphone, is removed."""
        hidden = self.body[0]((log_mels - log_mels.mean(1, keepdim=True)).transpose(1, 2))
        for each in self.body[1:]:
            hidden = hidden + each(hidden)
        return self.head(hidden)

    @torch.inference_mode()
    def read(self, wave: Wave) -> Tensor:
        """(n,) → (n // 160, phones) log-probabilities."""
        return self(features(as_wave(wave)[None], QUIET))[0].T.log_softmax(-1)


def train_phone_classifier(
    waves: Sequence[Wave],
    labels: Sequence[np.ndarray],
    phones: int,
    budget: Budget = PHONE_BUDGET,
    seed: int = 0,
    progress: Progress = silent,
) -> PhoneClassifier:
    """Fit on random crops of two seconds of real utterances, degraded by chance (``degrade.py``).

    ``labels``: per utterance (n // 160,) integers in [0, phones), or :data:`UNKNOWN`: the phone of the samples
    [160 i, 160 (i + 1)). Raises ``ValueError`` for labels that do not fit.
    """
    tensors, told = [as_wave(wave) for wave in waves], [check_frames(*pair, phones) for pair in _paired(waves, labels)]
    frames = budget.crop // HOP
    places = torch.tensor([max(1, len(label) - frames + 1) for label in told]).double()

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        examples, wanted = [], []
        for which in torch.multinomial(places, budget.batch, replacement=True, generator=generator).tolist():
            start = int(torch.randint(int(places[which]), (), generator=generator))
            # Repeated as a whole number of frames, so that labels stay with their samples.
            whole = tensors[which][: len(told[which]) * HOP]
            examples.append(crop(whole, start * HOP, frames * HOP))
            wanted.append(crop(told[which], start, frames))
        seen = blurred(features(degraded(torch.stack(examples), generator), QUIET), generator)
        return F.cross_entropy(model(seen), torch.stack(wanted), ignore_index=UNKNOWN, label_smoothing=0.05)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PhoneClassifier(phones)
        fit(model, loss, budget, seed, "phones", progress)
    return model


def _paired(waves: Sequence[Wave], labels: Sequence[np.ndarray]) -> list[tuple[Wave, np.ndarray]]:
    if len(waves) != len(labels) or not len(waves):
        raise ValueError(f"{len(waves)} utterances and the labels of {len(labels)} do not pair up")
    return list(zip(waves, labels, strict=True))


def check_frames(wave: Wave, labels: np.ndarray, phones: int) -> Tensor:
    """Labels of an utterance as (n // 160,) int64. Raises ``ValueError`` where they are none of it."""
    array = np.asarray(labels)
    if array.shape != (len(wave) // HOP,) or array.dtype.kind not in "iu":
        raise ValueError(f"{len(wave) // HOP} frames need one integer each, got {array.shape} {array.dtype}")
    if array.min() < UNKNOWN or array.max() >= phones:
        raise ValueError(f"phones are -1 to {phones - 1}, got {array.min()} to {array.max()}")
    return torch.from_numpy(array.astype(np.int64))


@dataclasses.dataclass(frozen=True)
class Errors:
    """Frames of n utterances that are wrong, with and without silence."""

    wrong: np.ndarray  # (n,) int64
    frames: np.ndarray  # (n,) int64
    wrong_in_speech: np.ndarray  # (n,) int64: of the frames that are not silence in the reference
    frames_in_speech: np.ndarray  # (n,) int64

    def rate(self, silence: bool = True, seed: int = 0) -> Interval:
        """Share of frames that are wrong, with an interval over utterances; without those of silence if so asked."""
        if silence:
            return ratio_of_sums(self.wrong, self.frames, seed)
        return ratio_of_sums(self.wrong_in_speech, self.frames_in_speech, seed)

    def to_json(self) -> dict[str, Any]:
        return {"rate": self.rate().to_json(), "rate_in_speech": self.rate(silence=False).to_json()}


def _compared(said: Sequence[np.ndarray], wanted: Sequence[np.ndarray], silence: int | None) -> Errors:
    rows = []
    for ours, theirs in zip(said, wanted, strict=True):
        known = theirs != UNKNOWN
        speech = known & (theirs != silence) if silence is not None else known
        wrong = ours != theirs
        rows.append(((wrong & known).sum(), known.sum(), (wrong & speech).sum(), speech.sum()))
    return Errors(*np.array(rows, dtype=np.int64).T)


def phoneme_error(
    model: PhoneClassifier, real: Sequence[Wave], synthetic: Sequence[Wave], silence: int | None = None
) -> Errors:
    """Frames whose phone, as read, differs between the real utterance and what was made of it with the same timing.

    Of 0 for equal utterances. Report it for resynthesised speech beside converted speech, and for other real utterances
    of the same speaker as what chance gives. Of pairs of which one is longer, the rest of at most a window of the
    decoder is cut; raises ``ValueError`` where it is more than a tenth of a second.
    """
    if len(real) != len(synthetic) or not len(real):
        raise ValueError(f"{len(real)} real and {len(synthetic)} synthetic utterances do not pair up")
    said, wanted = [], []
    for source, made in zip(real, synthetic, strict=True):
        if abs(len(source) - len(made)) > RATE // 10:
            raise ValueError(f"utterances of {len(source)} and {len(made)} samples have not the same timing")
        count = min(len(source), len(made))
        wanted.append(model.read(source[:count]).argmax(-1).numpy())
        said.append(model.read(made[:count]).argmax(-1).numpy())
    return _compared(said, wanted, silence)
