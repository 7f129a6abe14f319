"""The gated PixelCNN: features of every site of a grid, made of the sites before it in raster order and of a condition.

van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu, *Conditional Image Generation with PixelCNN
Decoders*, NeurIPS 2016. A *vertical* stack sees all rows above, a *horizontal* one the row to the left; the second
reads the first, so that nothing before a site is out of sight. Instead of masked kernels there are smaller ones and
padding above and to the left. The first layer leaves out the site itself (and its row, in the vertical stack); all
others may see it, since it no longer holds anything of the site's own value.

Beyond the paper, the vertical stack has a residual, too: what stands further above would fade from layer to layer.

Tensors lie as (B, h, w, channels), which convolutions on a CPU like best and which makes 1×1 convolutions matrix
products.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError


def gate(x: Tensor) -> Tensor:
    """(..., 2C) → (..., C): tanh of the first half times the sigmoid of the second (eq. 2 of the paper)."""
    value, door = x.chunk(2, -1)
    return value.tanh() * door.sigmoid()


class GatedLayer(nn.Module):
    """One layer of both stacks.

    Args:
        inputs, width: channels before and behind it. condition: channels of the condition.
        reach: rows that it looks up, and columns that it looks to the left, and in the rows above to the right.
        strict: whether it leaves out the site itself and its row; it then has no residual, which would show the site.
        last: whether none comes behind it; what it would hand on is then left out.
        dropout: share of the gated activations that are set to 0 in training.
    """

    def __init__(
        self, inputs: int, width: int, condition: int, reach: int, strict: bool, last: bool, dropout: float = 0.0
    ):
        super().__init__()
        self.reach, self.strict = reach, strict
        self.rows = self.columns = reach if strict else reach + 1  # of the kernels
        self.vertical = nn.Linear(self.rows * (2 * reach + 1) * inputs, 2 * width)
        self.horizontal = nn.Linear(self.columns * inputs, 2 * width)
        self.condition = nn.Linear(condition, 4 * width, bias=False)
        self.down = nn.Linear(width, 2 * width, bias=False)  # from the vertical stack to the horizontal one
        self.out = None if last else nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def look_up(self, padded: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """The vertical stack: rows as :meth:`pad_above` gives them (B, reach + n, w + 2·reach, inputs) and the
        condition (B, n, w, ·) → the next rows (B, n, w, width) and what they say to the horizontal stack, 2·width."""
        up, left = self.condition(condition).chunk(2, -1)
        seen = padded[:, : padded.shape[1] - 1] if self.strict else padded
        x = self.dropout(gate(convolve(seen, self.vertical, self.rows) + up))
        said = self.down(x) + left
        if not self.strict and self.out is not None:
            x = x + padded[:, self.reach :, self.reach : padded.shape[2] - self.reach]
        return x, said

    def look_left(self, padded: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
        """The horizontal stack: columns with the ``reach`` ones before them (B, n, reach + w, inputs) and what the
        vertical stack said (B, n, w, 2·width) → the next columns and the gated activations, both (B, n, w, width)."""
        seen = padded[:, :, : padded.shape[2] - 1] if self.strict else padded
        if said.shape[1] == said.shape[2] == 1:  # one site: a product of a vector is several times faster
            x = gate(self.horizontal(seen.flatten(1)) + said.flatten(1))[:, None, None]
        else:
            x = gate(convolve(seen, self.horizontal, 1) + said)
        x = self.dropout(x)
        if self.out is None:
            return x, x
        return (self.out(x) if self.strict else self.out(x) + padded[:, :, self.reach :]), x


def convolve(x: Tensor, layer: nn.Linear, rows: int) -> Tensor:
    """(B, h, w, C) → (B, h − rows + 1, w − columns + 1, outputs); the layer's inputs are (rows, columns, C)."""
    kernel = layer.weight.view(len(layer.weight), rows, -1, x.shape[-1]).permute(0, 3, 1, 2)
    return F.conv2d(x.permute(0, 3, 1, 2), kernel, layer.bias).permute(0, 2, 3, 1)


@dataclasses.dataclass
class GridState:
    """What the layers made of the sites so far. Rows and columns of padding stand before them."""

    condition: Tensor  # (B, h, w, ·)
    above: list[Tensor]  # a layer: its input in the vertical stack, (B, reach + h, w + 2·reach, ·)
    left: list[Tensor]  # a layer: its input in the horizontal stack, (B, h, reach + w, ·)
    said: list[Tensor]  # a layer: (B, h, w, 2·width), from the vertical stack to the horizontal one
    features: Tensor  # (B, h, w, outputs)
    known: int = 0  # sites whose features are final


class GatedPixelCNN(nn.Module):
    """Values of a grid, embedded, and a condition → features of each site, which see the sites before it alone.

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
        width: int = 128,
        layers: int = 8,
        kernel: int = 3,
        first: int = 7,
        dropout: float = 0.0,
    ):
        super().__init__()
        for name, size in (("kernel", kernel), ("first", first)):
            if size < 3 or size % 2 == 0:
                raise ConfigError(f"{name} is {size}; a kernel has an odd size of at least 3, such as 3, 5 or 7")
        if layers < 1:
            raise ConfigError(f"layers is {layers}; a PixelCNN has at least 1")
        self.inputs, self.width = inputs, width
        self.reaches = [first // 2, *[kernel // 2] * (layers - 1)]  # of the layers
        self.layers = nn.ModuleList(
            GatedLayer(width if i else inputs, width, condition, reach, i == 0, i == layers - 1, dropout)
            for i, reach in enumerate(self.reaches)
        )
        self.out = nn.Linear(layers * width, outputs)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, h, w, inputs), condition (B, h, w, ·) → features (B, h, w, outputs)."""
        up = left = x
        skips = []
        for layer in self.layers:
            assert isinstance(layer, GatedLayer)
            reach = layer.reach
            up, said = layer.look_up(F.pad(up, (0, 0, reach, reach, reach, 0)), condition)
            left, skip = layer.look_left(F.pad(left, (0, 0, reach, 0)), said)
            skips.append(skip)
        return self.out(torch.cat(skips, -1))

    def begin(self, condition: Tensor) -> GridState:
        """The state of grids of which nothing is known, for their conditions (B, h, w, ·)."""
        batch, height, width = condition.shape[:3]
        above, left, said = [], [], []
        for index, reach in enumerate(self.reaches):
            channels = self.width if index else self.inputs
            above.append(condition.new_zeros(batch, reach + height, width + 2 * reach, channels))
            left.append(condition.new_zeros(batch, height, reach + width, channels))
            said.append(condition.new_zeros(batch, height, width, 2 * self.width))
        features = condition.new_zeros(batch, height, width, self.out.out_features)
        return GridState(condition, above, left, said, features)

    def extend(self, state: GridState, x: Tensor, stop: int) -> None:
        """Computes the features of the sites up to ``stop`` that are not known, in place.

        x (B, n, inputs): the embedded values of the sites from ``known − 1`` on, up to ``stop − 2``, which may differ
        from what they were before. A part of one row is computed as such, a range of several rows as whole rows.
        """
        width = state.condition.shape[2]
        self._write(state, x, max(state.known - 1, 0))
        row, end = state.known // width, (stop - 1) // width + 1
        columns = slice(state.known % width, (stop - 1) % width + 1) if end - row == 1 else slice(0, width)
        new = max(
            row, (state.known - 1) // width + 1
        )  # the vertical stack is final down to the row of the last known site
        skips = []
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, GatedLayer)
            later = layer.out is not None
            into = self.reaches[index + 1] if later else 0
            if new < end:
                up, said = layer.look_up(state.above[index][:, new : layer.reach + end], state.condition[:, new:end])
                state.said[index][:, new:end] = said
                if later:
                    state.above[index + 1][:, into + new : into + end, into : into + width] = up
            seen = state.left[index][:, row:end, columns.start : layer.reach + columns.stop]
            left, skip = layer.look_left(seen, state.said[index][:, row:end, columns])
            if later:
                state.left[index + 1][:, row:end, into + columns.start : into + columns.stop] = left
            skips.append(skip)
        state.features[:, row:end, columns] = self.out(torch.cat(skips, -1))

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

    @staticmethod
    def select(state: GridState, rows: Tensor) -> GridState:
        """The state of some grids of the batch."""
        above, left, said = ([part[rows] for part in parts] for parts in (state.above, state.left, state.said))
        return GridState(state.condition[rows], above, left, said, state.features[rows], state.known)
