"""A classifier of the phones of frames, trained on real speech, which compares converted speech with its source.

Converted speech keeps the timing of its source, so the classifier should predict the same phones at the same times, and
no transcript is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.speech.scores.classifier import Budget, crop, fit, layer
from worldmodel.speech.scores.degrade import blurred, degraded, features
from worldmodel.speech.scores.features import BANDS, HOP, RATE, Wave, as_wave

UNKNOWN = -1
"""Label of a frame without a phone, which is neither trained on nor scored."""

QUIET = 1e-3
"""Mel power of levelled speech below which a band is silent, some 60 dB below the loudest. With it, noise 30 dB below
the speech changes 6 % of the predicted phones instead of 20 %, and accuracy on held-out speakers is a little higher."""

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
        """(B, T, 80) → (B, phones, T) logits. The mean over the utterance is subtracted."""
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
    """Fit on random crops of two seconds of real utterances, randomly degraded (``degrade.py``).

    ``labels``: per utterance (n // 160,) integers in [0, phones), or :data:`UNKNOWN`: the phone of the samples
    [160 i, 160 (i + 1)). Raises ``ValueError`` for labels that do not fit.
    """
    tensors = [as_wave(wave) for wave in waves]
    targets = [check_frames(*pair, phones) for pair in _paired(waves, labels)]
    frames = budget.crop // HOP
    places = torch.tensor([max(1, len(label) - frames + 1) for label in targets]).double()

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        examples, wanted = [], []
        for which in torch.multinomial(places, budget.batch, replacement=True, generator=generator).tolist():
            start = int(torch.randint(int(places[which]), (), generator=generator))
            # crop() repeats a whole number of frames, so that labels stay aligned.
            whole = tensors[which][: len(targets[which]) * HOP]
            examples.append(crop(whole, start * HOP, frames * HOP))
            wanted.append(crop(targets[which], start, frames))
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
    """Labels of an utterance as (n // 160,) int64. Raises ``ValueError`` for other labels."""
    array = np.asarray(labels)
    if array.shape != (len(wave) // HOP,) or array.dtype.kind not in "iu":
        raise ValueError(f"{len(wave) // HOP} frames need one integer each, got {array.shape} {array.dtype}")
    if array.min() < UNKNOWN or array.max() >= phones:
        raise ValueError(f"phones are -1 to {phones - 1}, got {array.min()} to {array.max()}")
    return torch.from_numpy(array.astype(np.int64))


def phoneme_errors(model: PhoneClassifier, real: Sequence[Wave], synthetic: Sequence[Wave]) -> np.ndarray:
    """(n,) shares of the frames whose predicted phone differs between each real utterance and the synthetic one with
    the same timing; 0 for equal utterances.

    Report it for resynthesised and converted speech, and for other real utterances of the same speaker as the chance
    level. The longer utterance is cut; raises ``ValueError`` when it is more than a tenth of a second longer.
    """
    if len(real) != len(synthetic) or not len(real):
        raise ValueError(f"{len(real)} real and {len(synthetic)} synthetic utterances do not pair up")
    shares = []
    for pair in zip(real, synthetic, strict=True):
        count = min(map(len, pair))
        if max(map(len, pair)) - count > RATE // 10:
            raise ValueError(f"utterances of {len(pair[0])} and {len(pair[1])} samples have not the same timing")
        phones, others = (model.read(wave[:count]).argmax(-1) for wave in pair)
        shares.append((phones != others).double().mean())
    return torch.stack(shares).numpy()
