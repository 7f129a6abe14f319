"""Orders in which a head draws the positions of a grid, and the earlier codes that each position reads directly.

*Raster* order is that of the PixelCNN: row by row. *Checkerboard* order draws the dark squares first, in raster order,
and then the light ones, each between four known neighbours. *Quincunx* order goes from coarse to fine: a few distant
positions in raster order, then repeatedly the centres of four known ones and the positions between these.

The likelihood is exact in any order. But a position between known ones depends little on those drawn next to it. So
chains of dependence are short, a fixed-point iteration over all positions converges in few passes, and positions that
do not read each other may be drawn together (docs/experiments.md has the figures).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Cell = tuple[int, int]
OrderName = Literal["checkerboard", "quincunx", "raster"]

STRAIGHT: list[Cell] = [(-1, 0), (0, -1), (0, 1), (1, 0)]
DIAGONAL: list[Cell] = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
FAR: list[Cell] = [(-2, 0), (0, -2), (0, 2), (2, 0)]
WIDE: list[Cell] = [(-1, -2), (-1, 2), (1, -2), (1, 2)]
WIDER: list[Cell] = [(-1, -3), (-1, 3), (1, -3), (1, 3)]


class Phase(NamedTuple):
    """Cells that are drawn one after the other, or that do not read each other."""

    cells: list[Cell]
    offsets: list[Cell]  # the 8 places (rows, columns) that each cell reads where they are known
    unit: int = 1  # of the offsets
    chained: bool = False  # each reads the earlier cells of its phase, too


class Order(NamedTuple):
    """A permutation of the N positions of a grid."""

    positions: Tensor  # (N,) int64: raster index of the i-th position
    phases: list[int]  # sizes, Σ = N: runs of positions whose neighbours have the same offsets
    groups: list[int]  # sizes, Σ = N: runs of positions that do not read each other
    neighbours: Tensor  # (N, 8) int64: places in this order of the codes that each position reads, N for none


def make_order(name: OrderName, grid: Sequence[int]) -> Order:
    """The order ``name`` of a grid of rank 1 or 2."""
    height, width = grid if len(grid) == 2 else (1, *grid)
    phases = [phase for phase in ORDERS[name](height, width) if phase.cells]
    cells = [cell for phase in phases for cell in phase.cells]
    place = {cell: i for i, cell in enumerate(cells)}
    groups: list[int] = []
    neighbours = []
    for phase in phases:
        begin = place[phase.cells[0]]
        for here, (row, column) in enumerate(phase.cells, begin):
            unit = phase.unit
            near = [place.get((row + unit * down, column + unit * right), -1) for down, right in phase.offsets]
            known = here if phase.chained else begin
            neighbours.append([j if 0 <= j < known else len(cells) for j in near])
        groups += [1] * len(phase.cells) if phase.chained else [len(phase.cells)]
    positions = torch.tensor([row * width + column for row, column in cells])
    return Order(positions, [len(phase.cells) for phase in phases], groups, torch.tensor(neighbours))


def _raster(height: int, width: int) -> list[Phase]:
    return [Phase(_lattice(height, width), [*STRAIGHT[:2], *DIAGONAL[:2], *FAR[:2], *WIDE[:2]], chained=True)]


def _checkerboard(height: int, width: int) -> list[Phase]:
    board = _lattice(height, width)
    dark, light = ([cell for cell in board if sum(cell) % 2 == parity] for parity in (0, 1))
    return [Phase(dark, [*DIAGONAL, *FAR], chained=True), Phase(light, [*STRAIGHT, *WIDE])]


def _quincunx(height: int, width: int) -> list[Phase]:
    stride = 1
    while 4 * stride <= max(height, width):
        stride *= 2
    phases = [Phase(_lattice(height, width, stride), [*STRAIGHT, *DIAGONAL], stride, chained=True)]
    while stride > 1:
        half = stride // 2
        middle = _lattice(height, width, stride, half, half)
        early, late = ([(r, c) for r, c in middle if (r // stride + c // stride) % 2 == parity] for parity in (0, 1))
        phases += [
            Phase(early, [*DIAGONAL, *WIDER], half),
            Phase(late, [*DIAGONAL, *FAR], half),
            Phase(_lattice(height, width, stride, 0, half), [*STRAIGHT, *WIDE], half),
            Phase(_lattice(height, width, stride, half, 0), [*STRAIGHT, *DIAGONAL], half),
        ]
        stride = half
    return phases


def _lattice(height: int, width: int, stride: int = 1, row: int = 0, column: int = 0) -> list[Cell]:
    """Every ``stride``-th cell both ways from (row, column) on, in raster order."""
    return [(r, c) for r in range(row, height, stride) for c in range(column, width, stride)]


ORDERS = {"checkerboard": _checkerboard, "quincunx": _quincunx, "raster": _raster}
