"""The gated PixelCNN: features of every site of a grid, made of the sites before it in raster order and of a condition.

van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu, *Conditional Image Generation with PixelCNN
Decoders*, NeurIPS 2016. A *vertical* stack reads all rows above, a *horizontal* one the sites to the left and the
vertical stack, so that a site depends on all sites before it. Instead of masked kernels there are smaller ones and
padding above and to the left. The first layer leaves out the site itself (and its row, in the vertical stack); all
others include it, since its features do not depend on its own value.

Beyond the paper, the vertical stack has a residual, too; without it, the influence of distant rows would fade from
layer to layer. Tensors are (B, h, w, channels): fast for convolutions on a CPU, and 1×1 convolutions become matrix
products.
"""

import dataclasses
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.nn.modules import RowState, module_list
from worldmodel.util.ranges import Count, ShareBelowOne


def gate(x: Tensor) -> Tensor:
    """(..., 2C) → (..., C): tanh of the first half times the sigmoid of the second (eq. 2 of the paper)."""
    value, door = x.chunk(2, -1)
    return value.tanh() * door.sigmoid()


class GatedLayer(nn.Module):
    """One layer of both stacks.

    Args:
        inputs, width: channels before and behind it. condition: channels of the condition.
        reach: rows that it reads above, and columns to the left, and in the rows above to the right.
        strict: whether it leaves out the site itself and its row; its outputs then have no residual.
        last: whether it is the last layer, which has no outputs for another one.
        dropout: share of the gated activations that are set to 0 in training.
    """

    def __init__(self, inputs: int, width: int, condition: int, reach: int, strict: bool, last: bool, dropout: float):
        super().__init__()
        self.reach, self.strict = reach, strict
        self.rows = self.columns = reach if strict else reach + 1  # of the kernels
        self.vertical = nn.Linear(self.rows * (2 * reach + 1) * inputs, 2 * width)
        self.horizontal = nn.Linear(self.columns * inputs, 2 * width, bias=False)
        self.condition = nn.Linear(condition, 4 * width, bias=False)
        self.down = nn.Linear(width, 2 * width)  # from the vertical stack to the horizontal one
        self.out = None if last else nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def look_up(self, padded: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """The vertical stack: rows with ``reach`` rows and columns around them (B, reach + n, w + 2·reach, inputs) and
        their condition (B, n, w, ·) → the next rows (B, n, w, width) and the input of the horizontal stack, 2·width.
        """
        up, left = self.condition(condition).chunk(2, -1)
        seen = padded[:, : padded.shape[1] - 1] if self.strict else padded
        x = self.dropout(gate(convolve(seen, self.vertical, self.rows) + up))
        from_above = self.down(x) + left
        if not self.strict and self.out is not None:
            x = x + padded[:, self.reach :, self.reach : padded.shape[2] - self.reach]
        return x, from_above

    def look_left(self, padded: Tensor, from_above: Tensor) -> tuple[Tensor, Tensor]:
        """The horizontal stack: columns with the ``reach`` ones before them (B, n, reach + w, inputs) and what
        comes from the vertical stack (B, n, w, 2·width) → the next columns and the gated activations, both
        (B, n, w, width)."""
        seen = padded[:, :, : padded.shape[2] - 1] if self.strict else padded
        x = self.dropout(gate(convolve(seen, self.horizontal, 1) + from_above))
        if self.out is None:
            return x, x
        return (self.out(x) if self.strict else self.out(x) + padded[:, :, self.reach :]), x

    def look_left_from(self, seen: Tensor, from_above: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`look_left` for one site, in few operations: (B, columns, inputs), (B, 2·width) → both (B, width)."""
        x = gate(torch.addmm(from_above, seen.flatten(1), self.horizontal.weight.T))
        if self.out is None:
            return x, x
        y = F.linear(x, self.out.weight, self.out.bias)
        return (y if self.strict else y + seen[:, -1]), x


def convolve(x: Tensor, layer: nn.Linear, rows: int) -> Tensor:
    """(B, h, w, C) → (B, h − rows + 1, w − columns + 1, outputs); the layer's inputs are (rows, columns, C)."""
    kernel = layer.weight.view(len(layer.weight), rows, -1, x.shape[-1]).permute(0, 3, 1, 2)
    return F.conv2d(x.permute(0, 3, 1, 2), kernel, layer.bias).permute(0, 2, 3, 1)


@dataclasses.dataclass
class GridState(RowState):
    """Inputs and outputs of the layers for the sites so far, with rows and columns of padding before them."""

    condition: Tensor  # (B, h, w, ·)
    above: list[Tensor]  # a layer: its input in the vertical stack, (B, reach + h, w + 2·reach, ·)
    left: list[Tensor]  # a layer: its input in the horizontal stack, (B, h, reach + w, ·)
    from_above: list[Tensor]  # a layer: (B, h, w, 2·width), from the vertical stack to the horizontal one
    features: Tensor  # (B, h, w, outputs)
    known: int = 0  # sites whose features are final


class GatedPixelCNN(nn.Module):
    """Embedded values of a grid and a condition → features of each site, which depend on the sites before it only.

    Args:
        inputs: channels of an embedded value. condition: channels of the condition. outputs: of the features.
        width, layers: of the network. kernel, first: sizes of its kernels, and of those of the first layer; odd.
        dropout: see :class:`GatedLayer`.
    """

    def __init__(
        self,
        inputs: int,
        condition: int,
        outputs: int,
        width: Count = 128,
        layers: Count = 8,
        kernel: Annotated[int, Ge(3)] = 3,
        first: Annotated[int, Ge(3)] = 7,
        dropout: ShareBelowOne = 0.0,
    ):
        super().__init__()
        for name, size in (("kernel", kernel), ("first", first)):
            if size % 2 == 0:
                raise ConfigError(f"{name} is {size}; a kernel has an odd size, such as 3, 5 or 7")
        self.inputs, self.width = inputs, width
        self.reaches = [first // 2, *[kernel // 2] * (layers - 1)]  # of the layers
        self.layers = module_list(
            GatedLayer(width if i else inputs, width, condition, reach, i == 0, i == layers - 1, dropout)
            for i, reach in enumerate(self.reaches)
        )
        self.out = nn.Linear(layers * width, outputs)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, h, w, inputs), condition (B, h, w, ·) → features (B, h, w, outputs)."""
        up = left = x
        skips = []
        for layer in self.layers:
            reach = layer.reach
            up, from_above = layer.look_up(F.pad(up, (0, 0, reach, reach, reach, 0)), condition)
            left, skip = layer.look_left(F.pad(left, (0, 0, reach, 0)), from_above)
            skips.append(skip)
        return self.out(torch.cat(skips, -1))

    def begin(self, condition: Tensor) -> GridState:
        """The state before any site is known, for grids with the conditions (B, h, w, ·)."""
        batch, height, width = condition.shape[:3]
        above, left, from_above = [], [], []
        for index, reach in enumerate(self.reaches):
            channels = self.width if index else self.inputs
            above.append(condition.new_zeros(batch, reach + height, width + 2 * reach, channels))
            left.append(condition.new_zeros(batch, height, reach + width, channels))
            from_above.append(condition.new_zeros(batch, height, width, 2 * self.width))
        features = condition.new_zeros(batch, height, width, self.out.out_features)
        return GridState(condition, above, left, from_above, features)

    def extend(self, state: GridState, x: Tensor, stop: int) -> None:
        """Computes the features of the sites up to ``stop`` that are not known, in place.

        x (B, n, inputs): the embedded values of the sites from ``known − 1`` on, up to ``stop − 2``, which may differ
        from what they were before. A part of one row is computed as such, a range of several rows as whole rows.
        """
        width = state.condition.shape[2]
        self._write(state, x, max(state.known - 1, 0))
        row, end = state.known // width, (stop - 1) // width + 1
        # The outputs of the vertical stack for a row are final as soon as one of its sites is known.
        self._look_up(state, max(row, (state.known - 1) // width + 1), end)
        if stop - state.known == 1:
            self._look_left_from(state, row, state.known % width)
        elif end - row == 1:
            self._look_left(state, row, end, slice(state.known % width, (stop - 1) % width + 1))
        else:
            self._look_left(state, row, end, slice(0, width))

    def _look_up(self, state: GridState, row: int, end: int) -> None:
        """The vertical stack of the rows row … end − 1."""
        if row >= end:
            return
        for index, layer in enumerate(self.layers):
            up, from_above = layer.look_up(state.above[index][:, row : layer.reach + end], state.condition[:, row:end])
            state.from_above[index][:, row:end] = from_above
            if index + 1 < len(self.layers):
                into = self.reaches[index + 1]
                state.above[index + 1][:, into + row : into + end, into : into + state.condition.shape[2]] = up

    def _look_left(self, state: GridState, row: int, end: int, columns: slice) -> None:
        """The horizontal stack of some columns of the rows row … end − 1, and the features."""
        skips = []
        for index, layer in enumerate(self.layers):
            seen = state.left[index][:, row:end, columns.start : layer.reach + columns.stop]
            left, skip = layer.look_left(seen, state.from_above[index][:, row:end, columns])
            if index + 1 < len(self.layers):
                into = self.reaches[index + 1]
                state.left[index + 1][:, row:end, into + columns.start : into + columns.stop] = left
            skips.append(skip)
        state.features[:, row:end, columns] = self.out(torch.cat(skips, -1))

    def _look_left_from(self, state: GridState, row: int, column: int) -> None:
        """The horizontal stack of one site, and its features."""
        skips = []
        for index, layer in enumerate(self.layers):
            seen = state.left[index][:, row, column : column + layer.columns]
            left, skip = layer.look_left_from(seen, state.from_above[index][:, row, column])
            if index + 1 < len(self.layers):
                state.left[index + 1][:, row, self.reaches[index + 1] + column] = left
            skips.append(skip)
        state.features[:, row, column] = self.out(torch.cat(skips, -1))

    def _write(self, state: GridState, x: Tensor, first: int) -> None:
        """Embedded values (B, n, inputs) of the sites from ``first`` on become inputs of both stacks."""
        width, reach = state.condition.shape[2], self.reaches[0]
        stop = first + x.shape[1]
        while first < stop:
            row, column = divmod(first, width)
            count = min(width - column, stop - first)
            part, x = x[:, :count], x[:, count:]
            place = slice(reach + column, reach + column + count)
            state.above[0][:, reach + row, place] = part
            state.left[0][:, row, place] = part
            first += count
