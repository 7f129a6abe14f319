"""The interface of every tokenizer: observations ↔ grids of codes."""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Reconstruction(NamedTuple):
    """What a tokenizer returns in training."""

    frames: Tensor  # (B, C, *size) float32, about [-1, 1]
    codes: Tensor  # (B, *grid) int64
    losses: dict[str, Tensor]  # named scalar terms


class Tokenizer(nn.Module, abc.ABC):
    """An observation (C, *size) ↔ a grid of integers in [0, K). Sizes are facts of the data, passed at construction."""

    frame_shape: tuple[int, ...]  # (C, *size)
    grid: tuple[int, ...]
    slots: tuple[int, ...] = ()  # the last axes of the grid, where every place has a codebook of its own
    codes: int  # K

    @abc.abstractmethod
    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Reconstruction:
        """Frames (B, C, *size) float in [-1, 1] → :class:`Reconstruction`; updates the codebook in training mode."""

    @abc.abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """(B, C, *size) float in [-1, 1] → (B, *grid) int64."""

    @abc.abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """(B, *grid) int64 → (B, C, *size) float32, about [-1, 1]."""

    @abc.abstractmethod
    def codebook(self) -> Tensor:
        """(K, D), or (*slots, K, D of one code): the vectors of the codes, the start of a prior's embedding."""
