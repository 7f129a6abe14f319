"""Orders in which a head walks over the positions of a grid, and the earlier codes that each position looks at.

*Raster* order is that of the PixelCNN: row by row, every position beside the one just drawn. *Checkerboard* order
draws the dark squares first, in raster order, and then the light ones, each between four known neighbours. *Quincunx*
order goes from coarse to fine: a few positions far apart in raster order, then, again and again, those in the middle of
four known ones and those between these, until none is left.

The likelihood is exact in any order. But a position between known ones depends little on those drawn beside it, so
chains of dependence are short, a fixed-point iteration over all positions settles in few passes, and positions that do
not look at each other at all may be drawn together (docs/experiments.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.errors import ConfigError

Cell = tuple[int, int]
Stage = tuple[list[Cell], list[Cell]]  # cells, and the offsets of the neighbours that they look at


class Order(NamedTuple):
    """A permutation of the N positions of a grid; the stages lie one behind the other in it."""

    positions: Tensor  # (N,) int64: raster index of the i-th position
    stages: list[int]  # number of positions in each stage
    neighbours: Tensor  # (N, n) int64: places in this order of the codes that each looks at, N for "none"

    @property
    def groups(self) -> list[int]:
        """Sizes of the runs of positions none of which looks at another of its run."""
        sizes = [0]
        for i, looks_at in enumerate(self.neighbours.masked_fill(self.neighbours == len(self.positions), -1)):
            if int(looks_at.max()) < i - sizes[-1]:
                sizes[-1] += 1
            else:
                sizes.append(1)
        return sizes


def make_order(name: str, grid: Sequence[int], chained: bool = False) -> Order:
    """The order ``name`` of a grid of rank 1 or 2. Raises :class:`ConfigError` for an unknown name.

    ``chained``: every position also looks at the one just before it, wherever that lies.
    """
    if name not in ORDERS:
        raise ConfigError(f"unknown order {name!r}; choose {', '.join(ORDERS)}")
    height, width = grid if len(grid) == 2 else (1, *grid)
    board = [(row, column) for row in range(height) for column in range(width)]
    stages = [stage for stage in ORDERS[name](board) if stage[0]]
    cells = [cell for stage, _ in stages for cell in stage]
    place = {cell: i for i, cell in enumerate(cells)}
    most = max(len(offsets) for _, offsets in stages)
    neighbours = []
    for stage, offsets in stages:
        for row, column in stage:
            here = place[row, column]
            near = [place.get((row + down, column + right), -1) for down, right in offsets]
            near = [*([here - 1] if chained else []), *near, *[-1] * (most - len(offsets))]
            neighbours.append([j if 0 <= j < here else len(cells) for j in near])
    positions = torch.tensor([row * width + column for row, column in cells])
    return Order(positions, [len(stage) for stage, _ in stages], torch.tensor(neighbours))


def _raster(board: list[Cell]) -> list[Stage]:
    return [(board, [(0, -1), (-1, -1), (-1, 0), (-1, 1), (0, -2)])]


def _checkerboard(board: list[Cell]) -> list[Stage]:
    dark = [cell for cell in board if sum(cell) % 2 == 0]
    light = [cell for cell in board if sum(cell) % 2 == 1]
    return [
        (dark, [(-1, -1), (-1, 1), (-2, 0), (0, -2)]),
        (light, [(-1, 0), (0, -1), (0, 1), (1, 0)]),
    ]


def _quincunx(board: list[Cell]) -> list[Stage]:
    stride = 1
    while 2 * stride <= max(max(row, column) + 1 for row, column in board) / 2:
        stride *= 2
    stages = [_lattice(board, stride, (0, 0), stride, [(0, -1), (-1, -1), (-1, 0), (-1, 1)])]
    straight, diagonal = [(-1, 0), (0, -1), (0, 1), (1, 0)], [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    while stride > 1:
        half = stride // 2
        stages += [
            _lattice(board, stride, (half, half), half, [*diagonal, (-1, -3), (-1, 3), (1, -3), (1, 3)]),
            _lattice(board, stride, (0, half), half, [*straight, (-1, -2), (-1, 2), (1, -2), (1, 2)]),
            _lattice(board, stride, (half, 0), half, [*straight, *diagonal]),
        ]
        stride = half
    return stages


def _lattice(board: list[Cell], stride: int, first: Cell, unit: int, offsets: list[Cell]) -> Stage:
    """Every ``stride``-th cell both ways from ``first`` on; offsets in steps of ``unit``."""
    cells = [cell for cell in board if (cell[0] % stride, cell[1] % stride) == first]
    return cells, [(down * unit, right * unit) for down, right in offsets]


ORDERS: dict[str, Callable[[list[Cell]], list[Stage]]] = {
    "checkerboard": _checkerboard,
    "quincunx": _quincunx,
    "raster": _raster,
}
