"""Muon on a GPU: matrices of similar shapes are made orthogonal together, so that an update takes few kernels."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOST_PADDING = 5
"""Numbers in padded matrices for each number in the matrices themselves. Matrices of all shapes take about as many
kernels as those of one, and kernels cost more than products of matrices of these sizes."""


class BatchedMuon(torch.optim.Muon):
    """:class:`torch.optim.Muon` with the same updates up to rounding. On a CPU, which gains nothing from batches, it
    is torch's."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if any(p.device.type == "cpu" for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        for group in self.param_groups:
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, parameters, gradients, momenta)
            if not parameters:
                continue
            counts = collections.Counter(parameter.shape for parameter in parameters)
            stacks = {shape: parameters[0].new_empty(count, *shape) for shape, count in counts.items()}
            places = {shape: iter(stack) for shape, stack in stacks.items()}
            updates = [next(places[parameter.shape]) for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            torch._foreach_copy_(updates, gradients)
            torch._foreach_lerp_(updates, momenta, group["momentum"] if group["nesterov"] else 1.0)
            _make_orthogonal(stacks, group)
            # The size of the updates is that of Adam's (``match_rms_adamw``).
            torch._foreach_mul_(updates, [-group["lr"] * 0.2 * math.sqrt(max(update.shape)) for update in updates])
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, updates)
        return None


def _make_orthogonal(stacks: dict[torch.Size, Tensor], group: dict[str, Any]) -> None:
    """Replace matrices, stacked by shape, by orthogonal ones, in place."""
    for together in _joined({shape: len(stack) for shape, stack in stacks.items()}):
        counts = [len(stacks[shape]) for shape in together]
        size = max(min(shape) for shape in together), max(max(shape) for shape in together)
        padded = torch.zeros(sum(counts), *size, dtype=torch.bfloat16, device=stacks[together[0]].device)
        for rows, shape in zip(padded.split(counts), together, strict=True):
            _part(rows, shape).copy_(stacks[shape])
        result = orthogonal(padded, group["ns_coefficients"], group["ns_steps"], group["eps"])
        for rows, shape in zip(result.split(counts), together, strict=True):
            stacks[shape].copy_(_part(rows, shape))


def _joined(counts: dict[torch.Size, int]) -> list[list[torch.Size]]:
    """Shapes that are padded with zeros to a common one, the largest first; zeros do not change the result."""
    groups: list[list[torch.Size]] = []
    rows = columns = members = volume = 0
    for shape in sorted(counts, key=lambda shape: -shape.numel()):
        rows, columns = max(rows, min(shape)), max(columns, max(shape))
        members, volume = members + counts[shape], volume + counts[shape] * shape.numel()
        if not groups or rows * columns * members > MOST_PADDING * volume:
            groups.append([])
            rows, columns = min(shape), max(shape)
            members, volume = counts[shape], counts[shape] * shape.numel()
        groups[-1].append(shape)
    return groups


def _part(padded: Tensor, shape: torch.Size) -> Tensor:
    """The matrices of a shape (r, c) in padded ones that have at least as many columns as rows."""
    rows, columns = shape
    return padded[:, :columns, :rows].mT if rows > columns else padded[:, :rows, :columns]


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Matrices (M, r, c), r ≤ c, bfloat16 → their zeroth powers by the Newton-Schulz iteration of Muon."""
    a, b, c = coefficients
    x = matrices / matrices.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
