"""Which number format a module computes in, and how it is brought there."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from worldmodel.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


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

    A child that marks itself and its own with ``keep_float32 = True`` (a quantiser: distances and moving averages need
    the digits) is left alone. The weights themselves are cast, not the activations by autocast: on two CPU cores
    autocast's casts of every weight at every step ate what a small model gained.
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
    """What the first parameter of a module is stored in."""
    return next(module.parameters()).dtype
