"""Means of what is logged, over the steps between two lines of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor


class RunningMeans:
    """Running means of named scalars, summed on the device in float64 so that a step costs no synchronisation."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.sums: Tensor | None = None
        self.count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        names = tuple(values)
        row = torch.stack([value.detach().to(torch.float64) for value in values.values()])
        if self.sums is None:
            self.names, self.sums = names, torch.zeros_like(row)
        elif names != self.names:
            raise ValueError(f"an objective must name the same values at every step: {names} after {self.names}")
        self.sums = self.sums + row
        self.count += 1

    def means(self, fabric: Fabric) -> dict[str, float]:
        """Means over the window and over all processes, which must all call this."""
        if self.sums is None:
            return {}
        if fabric.world_size > 1:
            self.sums = torch.as_tensor(fabric.all_reduce(self.sums, reduce_op="mean"))
        return dict(zip(self.names, (self.sums / self.count).tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """As plain JSON; float64 survives it bit for bit."""
        return {"names": self.names, "sums": [] if self.sums is None else self.sums.tolist(), "count": self.count}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.names, self.count = tuple(state["names"]), int(state["count"])
        self.sums = torch.tensor(state["sums"], dtype=torch.float64, device=device) if self.names else None
