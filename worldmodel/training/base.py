"""The interface of objectives: what a training minimises."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.types import Segment


class Losses(NamedTuple):
    """What an objective returns for a batch (a tuple, since Fabric looks into what a module returns)."""

    terms: dict[str, Tensor]  # scalars (); their weighted sum is minimised
    metrics: dict[str, Tensor]  # detached scalars (); logged as means


class Objective(nn.Module, abc.ABC):
    """What a fit minimises. A module, so that its model is wrapped with it when several devices train together."""

    loss_weights: Mapping[str, float] = MappingProxyType({})  # of the terms; 1 where none is given
    headline: tuple[str, ...] = ()  # metrics worth a place in the progress bar
    counters: tuple[str, ...] = ()  # buffers that only metrics need; a resumed fit starts them anew if they do not fit

    @abc.abstractmethod
    def forward(self, batch: Segment, generator: torch.Generator) -> Losses:
        """Losses of one batch. All randomness comes from ``generator``; names are the same at every call."""
