"""Vectors of a codebook, made into the start of a learnt table."""

from __future__ import annotations

import torch
from torch import Tensor


def project(codebook: Tensor, width: int) -> Tensor:
    """codebook (K, D) → (K, width): standardised, then turned into ``width`` dimensions at random; entries about 1."""
    table = codebook.detach().float()
    table = (table - table.mean(0)) / table.std(0).clamp(min=1e-6)
    return table.cpu() @ (torch.randn(table.shape[1], width) / table.shape[1] ** 0.5)


def centred(codebook: Tensor) -> Tensor:
    """codebook (K, D) → the same geometry around 0, at a mean squared length of 1."""
    table = codebook.detach().float()
    table = table - table.mean(0)
    return table / table.square().sum(-1).mean().sqrt().clamp(min=1e-6)
