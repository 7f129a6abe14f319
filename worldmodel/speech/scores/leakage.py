"""Information about the speaker in the codes: accuracy of small probes that classify about a second of codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.evaluation.metrics import Interval, mean_interval


class Histogram(nn.Module):
    """Logistic regression on how often each code occurs, (B, W, S) → (B, speakers); square roots reduce the
    weight of frequent codes."""

    def __init__(self, vocabulary: int, slots: int, speakers: int):
        super().__init__()
        self.vocabulary = vocabulary
        self.head = nn.Linear(slots * vocabulary, speakers)
        self.drop = nn.Dropout(0.3)

    def forward(self, codes: Tensor) -> Tensor:
        counts = torch.zeros(len(codes), codes.shape[2], self.vocabulary)
        counts.scatter_add_(2, codes.transpose(1, 2), torch.ones(codes.transpose(1, 2).shape))
        return self.head(self.drop((counts / codes.shape[1]).sqrt().flatten(1) * self.vocabulary**0.5))


class Embedded(nn.Module):
    """Embedded codes, a convolution over five neighbours, then mean and maximum: (B, W, S) → (B, speakers)."""

    def __init__(self, vocabulary: int, slots: int, speakers: int, width: int = 48):
        super().__init__()
        self.embed = nn.ModuleList(nn.Embedding(vocabulary, width) for _ in range(slots))
        self.body = nn.Sequential(nn.Dropout(0.2), nn.Conv1d(width, width, 5, padding=2), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * width, speakers))

    def forward(self, codes: Tensor) -> Tensor:
        vectors = torch.stack([embed(codes[:, :, slot]) for slot, embed in enumerate(self.embed)]).sum(0)
        hidden = self.body(vectors.transpose(1, 2))
        return self.head(torch.cat([hidden.mean(2), hidden.amax(2)], 1))


PROBES: dict[str, type[Histogram] | type[Embedded]] = {"histogram": Histogram, "embedded": Embedded}


@dataclasses.dataclass(frozen=True)
class Leakage:
    """Accuracy of probes that predict the speaker from windows of held-out codes."""

    rates: dict[str, np.ndarray]  # probe → (n,) share of each utterance's windows that are classified correctly
    chance: float  # accuracy of always predicting the most frequent speaker

    def accuracy(self, probe: str, seed: int = 0) -> Interval:
        """Mean over utterances of one probe's rates, with an interval over utterances."""
        return mean_interval(self.rates[probe], seed)

    def to_json(self) -> dict[str, Any]:
        return {"chance": self.chance, **{probe: self.accuracy(probe).to_json() for probe in self.rates}}


def _checked(codes: Sequence[np.ndarray], speakers: Sequence[int] | np.ndarray, vocabulary: int) -> list[Tensor]:
    if len(codes) != len(speakers) or not len(codes):
        raise ValueError(f"codes of {len(codes)} utterances need one speaker each, got {len(speakers)}")
    rows = []
    for row in map(np.asarray, codes):
        if row.ndim not in (1, 2) or row.dtype.kind not in "iu" or not row.size:
            raise ValueError(f"codes of an utterance are (T,) or (T, S) integers, got {row.shape} {row.dtype}")
        if row.min() < 0 or row.max() >= vocabulary:
            raise ValueError(f"codes are 0 to {vocabulary - 1}, got {row.min()} to {row.max()}")
        rows.append(torch.from_numpy(row.astype(np.int64)).reshape(len(row), -1))
    return rows


def _windows(codes: Tensor, window: int) -> Tensor:
    """(T, S) → (C, window, S): overlapping windows, half a window apart; short rows are repeated."""
    codes = codes.repeat(-(-window // len(codes)), 1) if len(codes) < window else codes
    last = len(codes) - window
    starts = np.linspace(0, last, -(-last // max(1, window // 2)) + 1).astype(int)
    return torch.stack([codes[start : start + window] for start in starts])


def _fitted(model: nn.Module, rows: list[Tensor], labels: Tensor, window: int, steps: int, seed: int) -> None:
    """Train with AdamW on batches of 64 random windows, each speaker equally often."""
    generator = torch.Generator().manual_seed(seed)
    count = int(labels.max()) + 1
    # One row of codes per speaker; a window may span two utterances.
    pairs = list(zip(rows, labels.tolist(), strict=True))
    long = [torch.cat([row for row, label in pairs if label == s]) for s in range(count)]
    long = [row.repeat(-(-window // len(row)), 1) for row in long]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        speakers = torch.randint(count, (64,), generator=generator)
        starts = [int(torch.randint(len(long[s]) - window + 1, (), generator=generator)) for s in speakers]
        batch = torch.stack([long[s][start : start + window] for s, start in zip(speakers, starts, strict=True)])
        loss = F.cross_entropy(model(batch), speakers)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def leakage(
    codes: Sequence[np.ndarray],
    speakers: Sequence[int] | np.ndarray,
    held_codes: Sequence[np.ndarray],
    held_speakers: Sequence[int] | np.ndarray,
    vocabulary: int,
    window: int,
    steps: int = 300,
    seed: int = 0,
) -> Leakage:
    """Train each probe of :data:`PROBES` on the training utterances' codes, score it on the held-out ones'.

    ``codes``: per utterance (T,) or (T, S) integers in [0, K); ``window``: codes in about a second, 250 at hop 64, 25
    at hop 640. Speakers are integers in [0, S), each with a training utterance. Report the better probe.
    Raises ``ValueError`` for codes and speakers that do not fit.
    """
    rows, held = _checked(codes, speakers, vocabulary), _checked(held_codes, held_speakers, vocabulary)
    labels, wanted = (torch.from_numpy(np.asarray(s).astype(np.int64)) for s in (speakers, held_speakers))
    count = int(labels.max()) + 1
    if count < 2 or set(labels.tolist()) != set(range(count)) or not set(wanted.tolist()) <= set(range(count)):
        raise ValueError("speakers are numbered from 0 on, at least two, and each has training utterances")
    if window < 1 or len({row.shape[1] for row in rows + held}) > 1:
        raise ValueError("a window is at least one code, and all utterances have as many slots")
    rates = {}
    with torch.random.fork_rng(devices=[]):
        for name, make in PROBES.items():
            torch.manual_seed(seed)
            model = make(vocabulary, rows[0].shape[1], count)
            _fitted(model, rows, labels, window, steps, seed)
            with torch.inference_mode():
                predicted = [model(_windows(row, window)).argmax(-1) for row in held]
            rates[name] = np.array([float((s == w).double().mean()) for s, w in zip(predicted, wanted, strict=True)])
    return Leakage(rates, float(torch.bincount(wanted).max() / len(wanted)))
