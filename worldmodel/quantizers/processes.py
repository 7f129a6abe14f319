"""Tensors that all processes of a training share."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum over the processes, in place; nothing to do in a single one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_first(tensor: Tensor) -> Tensor:
    """The first process's value everywhere, in place."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor
