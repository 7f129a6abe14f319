"""Orders in which a head walks over the positions of a grid, and the earlier neighbours that each position looks at.

*Raster* order is that of the PixelCNN: row by row, every position beside the ones just drawn. *Coarse* order draws a
sparse lattice first and then, again and again, the positions half-way between those that stand already (a quincunx
refinement). The likelihood is exact in either; but in coarse order most positions lie between known ones instead of at
the end of a chain, so that a fixed-point iteration over all of them settles in few passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.errors import ConfigError

ORDERS = ("coarse", "raster")


class Order(NamedTuple):
    """A permutation of the N positions of a grid; the stages lie one behind the other in it."""

    positions: Tensor  # (N,) int64: raster index of the i-th position
    stages: list[int]  # number of positions in each stage
    neighbours: Tensor  # (N, n) int64: places in this order of the codes that each looks at, N for "none"


def make_order(name: str, grid: Sequence[int]) -> Order:
    """The order ``name`` of a grid of rank 1 or 2. Raises :class:`ConfigError` for an unknown name."""
    if name not in ORDERS:
        raise ConfigError(f"unknown order {name!r}; choose {', '.join(ORDERS)}")
    rows_of = [_raster(grid)] if name == "raster" else _coarse(grid)
    cells = [cell for cells, _ in rows_of for cell in cells]
    place = {cell: i for i, cell in enumerate(cells)}
    neighbours = []
    for stage, offsets in rows_of:
        for cell in stage:
            near = (place.get(tuple(c + o for c, o in zip(cell, offset, strict=True)), -1) for offset in offsets)
            last = place[cell] - 1  # drawn just before, wherever it lies: so that attention hears of every code
            neighbours.append([j if 0 <= j < place[cell] else len(cells) for j in (last, *near)])
    strides = [math.prod(grid[i + 1 :]) for i in range(len(grid))]
    raster = [sum(c * s for c, s in zip(cell, strides, strict=True)) for cell in cells]
    return Order(torch.tensor(raster), [len(stage) for stage, _ in rows_of], torch.tensor(neighbours))


Cell = tuple[int, ...]
Stage = tuple[list[Cell], list[Cell]]  # the cells, and the offsets of their neighbours


def _cells(grid: Sequence[int], start: Cell, stride: int) -> list[Cell]:
    if len(grid) == 1:
        return [(i,) for i in range(start[0], grid[0], stride)]
    return [(r, c) for r in range(start[0], grid[0], stride) for c in range(start[1], grid[1], stride)]


def _lattice(grid: Sequence[int], stride: int) -> Stage:
    """Raster order on a lattice. The neighbour at the left is the one drawn just before, which comes anyway."""
    if len(grid) == 1:
        return _cells(grid, (0,), stride), [(-2 * stride,), (-3 * stride,)]
    offsets = [(-stride, -stride), (-stride, 0), (-stride, stride), (0, -2 * stride)]
    return _cells(grid, (0, 0), stride), offsets


def _raster(grid: Sequence[int]) -> Stage:
    return _lattice(grid, 1)


def _coarse(grid: Sequence[int]) -> list[Stage]:
    stride = 2 ** max(0, int(math.log2(min(grid))) - 1)
    stages = [_lattice(grid, stride)]
    while stride > 1:
        half = stride // 2
        if len(grid) == 1:
            stages.append((_cells(grid, (half,), stride), [(-half,), (half,)]))
        else:
            diagonal = [(-half, -half), (-half, half), (half, -half), (half, half)]
            axis = [(-half, 0), (0, -half), (0, half), (half, 0)]
            stages.append((_cells(grid, (half, half), stride), diagonal))
            between = _cells(grid, (0, half), stride) + _cells(grid, (half, 0), stride)
            stages.append((sorted(between), axis))
        stride = half
    return [stage for stage in stages if stage[0]]
