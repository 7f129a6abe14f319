"""Small additions to PyTorch: typed lists of modules, states of rows, noise, and starts of learnt tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Self, TypeVar, cast

import torch
from torch import Generator, Tensor, nn

M = TypeVar("M", bound=nn.Module)


def module_list(modules: Iterable[M]) -> Sequence[M]:
    """An ``nn.ModuleList`` whose elements keep their type."""
    return cast(Sequence[M], nn.ModuleList(modules))


def to_channels_last(module: nn.Module) -> None:
    """Lay the weights of two-dimensional convolutions out with the channels last, in place."""
    to: Any = module.to  # the stubs have no overload for a memory format
    to(memory_format=torch.channels_last)


def channels_last(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Frames in another number format; images (B, C, H, W) with the channels last in memory."""
    layout = torch.channels_last if frames.dim() == 4 else torch.contiguous_format
    return frames.to(dtype=dtype, memory_format=layout)


class Logits(nn.Linear):
    """A linear layer that makes logits, whose weights Adam trains where Muon trains those of other layers."""

    keep_adam = True


class RowState:
    """Base of dataclasses that hold tensors of a batch: its first dimension is that of every tensor, list of tensors
    and nested state among the fields. All rows share the other fields."""

    def select(self, rows: Tensor) -> Self:
        """The state of some rows of the batch."""
        fields = {name: _select(value, rows) for name, value in vars(self).items()}
        return dataclasses.replace(cast(Any, self), **fields)


def _select(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, list):
        return [_select(item, rows) for item in value]
    return value.select(rows) if isinstance(value, RowState) else value


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def uniform(shape: Sequence[int], device: torch.device, generator: Generator | None) -> Tensor:
    """Uniform noise in [0, 1), float32, on a device; it is drawn on the device of the generator."""
    where = device if generator is None else generator.device
    return torch.rand(tuple(shape), generator=generator, device=where).to(device)


def inverse_cdf(probabilities: Tensor, noise: Tensor) -> Tensor:
    """Probabilities (..., K), uniform noise (..., S) → S draws of each distribution, (..., S) int64."""
    cumulative = probabilities.cumsum(-1)
    # The last sum is not exactly 1: the noise is scaled by it, so that no index of probability 0 is drawn.
    target = noise * cumulative[..., -1:]
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=probabilities.shape[-1] - 1)


def project(codebook: Tensor, width: int) -> Tensor:
    """codebook (K, D) → (K, width): standardised, then projected to ``width`` dimensions at random; entries about 1."""
    table = codebook.detach().float()
    table = (table - table.mean(0)) / table.std(0).clamp(min=1e-6)
    return table.cpu() @ (torch.randn(table.shape[1], width) / table.shape[1] ** 0.5)


def centred(codebook: Tensor) -> Tensor:
    """codebook (K, D) → the same geometry around 0, at a mean squared length of 1."""
    table = codebook.detach().float()
    table = table - table.mean(0)
    return table / table.square().sum(-1).mean().sqrt().clamp(min=1e-6)
