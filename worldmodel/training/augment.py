"""The interface of augmentations: what a tokenizer is trained on in place of the examples themselves."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn


class Augmentation(nn.Module, abc.ABC):
    """Examples of a batch → what is shown in their place. It has no parameters."""

    @abc.abstractmethod
    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, C, *size) uint8 → the same shape, uint8."""
