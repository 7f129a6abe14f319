"""The interfaces of training: what is minimised (an objective) and what watches it (a hook)."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.types import Segment

if TYPE_CHECKING:
    from worldmodel.training.fit import Fit


class Losses(NamedTuple):
    """What an objective returns for a batch (a tuple, since Fabric looks into what a module returns)."""

    terms: dict[str, Tensor]  # scalars (); their weighted sum is minimised
    metrics: dict[str, Tensor]  # detached scalars (); logged as means


class Objective(nn.Module, abc.ABC):
    """What a fit minimises. A module, so that its model is wrapped with it when several devices train together."""

    headline: tuple[str, ...] = ()  # metrics worth a place in the progress bar
    counters: tuple[str, ...] = ()  # buffers that only metrics need; a resumed fit starts them anew if they do not fit

    @abc.abstractmethod
    def forward(self, batch: Segment, generator: torch.Generator) -> Losses:
        """Losses of one batch. All randomness comes from ``generator``; names are the same at every call."""


class Hook:
    """What happens beside the optimisation. A hook overrides the moments it cares about.

    The loop calls hooks in order, on every process; those that write do so on the first one only.
    """

    def on_start(self, fit: Fit) -> None:
        """Before the first step of this session, after a checkpoint was read."""

    def on_log(self, fit: Fit, means: dict[str, float]) -> None:
        """At the end of a window of ``log_every`` steps, with the means of loss, terms and metrics."""

    def on_step(self, fit: Fit) -> None:
        """After every step."""

    def on_end(self, fit: Fit) -> None:
        """After the last step, or after an interruption (``fit.interrupted``); not after an error."""

    def close(self) -> None:
        """At last, whatever happened."""
