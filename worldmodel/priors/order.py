"""Orders in which a head walks over the positions of a grid, and the earlier codes that each position looks at.

*Raster* order is that of the PixelCNN: row by row, every position beside the one just drawn. *Checkerboard* order
draws the dark squares first, in raster order, and then the light ones, each between four known neighbours. The
likelihood is exact in either; but a position between known ones depends little on those drawn beside it, so chains of
dependence are short and a fixed-point iteration over all positions settles in few passes (docs/experiments.md has the
figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.errors import ConfigError

ORDERS = ("checkerboard", "raster")

Cell = tuple[int, int]
Stage = tuple[list[Cell], list[Cell]]  # cells, and the offsets of the neighbours that they look at


class Order(NamedTuple):
    """A permutation of the N positions of a grid; the stages lie one behind the other in it."""

    positions: Tensor  # (N,) int64: raster index of the i-th position
    stages: list[int]  # number of positions in each stage
    neighbours: Tensor  # (N, n) int64: places in this order of the codes that each looks at, N for "none"


def make_order(name: str, grid: Sequence[int]) -> Order:
    """The order ``name`` of a grid of rank 1 or 2. Raises :class:`ConfigError` for an unknown name."""
    if name not in ORDERS:
        raise ConfigError(f"unknown order {name!r}; choose {', '.join(ORDERS)}")
    height, width = grid if len(grid) == 2 else (1, *grid)
    board = [(row, column) for row in range(height) for column in range(width)]
    stages = _raster(board) if name == "raster" else _checkerboard(board)
    cells = [cell for stage, _ in stages for cell in stage]
    place = {cell: i for i, cell in enumerate(cells)}
    neighbours = []
    for stage, offsets in stages:
        for row, column in stage:
            here = place[row, column]
            # The code drawn just before comes first, wherever it lies: so that attention hears of every code.
            near = [here - 1, *(place.get((row + down, column + right), -1) for down, right in offsets)]
            neighbours.append([j if 0 <= j < here else len(cells) for j in near])
    positions = torch.tensor([row * width + column for row, column in cells])
    return Order(positions, [len(stage) for stage, _ in stages], torch.tensor(neighbours))


def _raster(board: list[Cell]) -> list[Stage]:
    return [(board, [(-1, -1), (-1, 0), (-1, 1), (0, -2)])]  # the left neighbour is the code drawn just before


def _checkerboard(board: list[Cell]) -> list[Stage]:
    dark = [cell for cell in board if sum(cell) % 2 == 0]
    light = [cell for cell in board if sum(cell) % 2 == 1]
    stages: list[Stage] = [
        (dark, [(-1, -1), (-1, 1), (-2, 0), (0, -2)]),
        (light, [(-1, 0), (0, -1), (0, 1), (1, 0)]),
    ]
    return [stage for stage in stages if stage[0]]
