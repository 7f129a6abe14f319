"""Small additions to PyTorch's modules, most of them for the type checker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def module_list(modules: Iterable[M]) -> Sequence[M]:
    """An ``nn.ModuleList`` whose elements keep their type."""
    return cast(Sequence[M], nn.ModuleList(modules))


def to_channels_last(module: nn.Module) -> None:
    """Lay the weights of two-dimensional convolutions out with the channels last, in place."""
    to: Any = module.to  # the stubs have no overload for a memory format
    to(memory_format=torch.channels_last)


class Logits(nn.Linear):
    """A linear layer that makes logits, whose weights Adam trains where Muon trains those of other layers."""

    keep_adam = True
