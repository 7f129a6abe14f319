"""Crops of utterances and the training loop, which both classifiers of speech use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.evaluation.openloop import Progress
from worldmodel.speech.scores.features import RATE, Wave, as_wave


@dataclasses.dataclass(frozen=True)
class Budget:
    """How a classifier is trained: about 20 seconds on one core."""

    steps: int = 500
    batch: int = 32
    rate: float = 2e-3  # peak of the learning rate, one cycle
    crop: int = RATE  # samples of an example


def layer(inputs: int, outputs: int, kernel: int, dilation: int) -> nn.Sequential:
    """(B, inputs, T) → (B, outputs, T): convolution over time, batch normalisation, ReLU."""
    padding = dilation * (kernel // 2)
    convolution = nn.Conv1d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm1d(outputs), nn.ReLU())


def checked(waves: Sequence[Wave], labels: Sequence[int] | np.ndarray, what: str) -> tuple[list[Tensor], np.ndarray]:
    """Waves as tensors and labels (n,) int64. Raises ``ValueError`` when their numbers differ."""
    numbers = np.asarray(labels)
    if numbers.shape != (len(waves),) or not len(waves):
        raise ValueError(f"{len(waves)} utterances need one {what} each, got {numbers.shape}")
    if numbers.dtype.kind not in "iu" or numbers.min() < 0:
        raise ValueError(f"a {what} is an integer from 0 on, got {numbers.dtype} from {numbers.min()}")
    return [as_wave(wave) for wave in waves], numbers.astype(np.int64)


def crop(wave: Tensor, start: int, length: int) -> Tensor:
    """``length`` samples starting at ``start``; a wave that is too short is repeated."""
    part = wave[start : start + length]
    return part if len(part) == length else part.repeat(-(-length // len(part)))[:length]


def windows(wave: Tensor, length: int) -> Tensor:
    """(C, length): overlapping crops that cover the wave, half a crop apart, at least one."""
    last = max(0, len(wave) - length)
    count = -(-last // (length // 2)) + 1
    starts = np.linspace(0, last, count).astype(int)
    return torch.stack([crop(wave, int(start), length) for start in starts])


def fit(
    model: nn.Module,
    loss_of: Callable[[nn.Module, torch.Generator], Tensor],
    budget: Budget,
    seed: int,
    name: str,
    progress: Progress,
) -> None:
    """Train with AdamW and a one-cycle learning rate for ``budget.steps`` batches, then set the evaluation mode.

    Call it inside :func:`torch.random.fork_rng`, because dropout draws from the global generator.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=budget.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, budget.rate, total_steps=budget.steps)
    model.train()
    for step in range(budget.steps):
        loss = loss_of(model, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(name, step + 1, budget.steps)
    model.eval()
