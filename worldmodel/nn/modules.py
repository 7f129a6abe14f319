"""Small additions to PyTorch: typed lists of modules, states of rows, number formats, noise, initial tables."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self, TypeVar
from typing import cast as as_type

import torch
from torch import Generator, Tensor, nn

from worldmodel.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
M = TypeVar("M", bound=nn.Module)


def module_list(modules: Iterable[M]) -> Sequence[M]:
    """An ``nn.ModuleList`` whose elements keep their type."""
    return as_type(Sequence[M], nn.ModuleList(modules))


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
        return dataclasses.replace(as_type(Any, self), **fields)


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


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without them it is several times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def resolve_precision(name: Precision, device: torch.device) -> torch.dtype:
    """``auto`` (bfloat16 where the device computes in it), ``fp32`` or ``bf16``. Raises :class:`ConfigError`."""
    if name == "auto":
        return torch.bfloat16 if native_bfloat16(device) else torch.float32
    if name not in PRECISIONS:
        raise ConfigError(f"unknown precision {name!r}; choose auto, {' or '.join(PRECISIONS)}")
    return PRECISIONS[name]


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts parameters and floating buffers in place and returns the module.

    A child with ``keep_float32 = True`` (such as a quantiser, whose distances and moving averages need the precision)
    keeps its tensors. Weights are cast once: the casts of autocast, of all weights at every step, take as much time on
    two CPU cores as a small model gains.
    """
    if dtype == torch.float32 or getattr(module, "keep_float32", False):
        return module
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(dtype)
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point():
            module._buffers[name] = buffer.to(dtype)
    for child in module.children():
        cast(child, dtype)
    return module


def dtype_of(module: nn.Module) -> torch.dtype:
    """The number format of the first parameter of a module."""
    return next(module.parameters()).dtype
