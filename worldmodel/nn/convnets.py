"""Strided convolutional encoders and decoders of any rank (1: sound, 2: images), after the VQ-VAE paper.

van den Oord, Vinyals, Kavukcuoglu, *Neural Discrete Representation Learning*, NeurIPS 2017, section 4.1: 4-wide
stride-2 convolutions, then residual blocks (ReLU, 3-wide convolution, ReLU, 1-wide convolution); the decoder mirrors
it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.nn.modules import module_list
from worldmodel.util.ranges import Counts, Whole

CONV: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
CONV_TRANSPOSE: dict[int, type[nn.ConvTranspose1d] | type[nn.ConvTranspose2d]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
}


class ResidualBlock(nn.Module):
    """x + conv₁(ReLU(conv₃(ReLU(x)))): (B, width, *size) → the same shape."""

    def __init__(self, rank: int, width: int, hidden: int):
        super().__init__()
        self.wide = CONV[rank](width, hidden, 3, padding=1)
        self.narrow = CONV[rank](hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.relu(self.wide(F.relu(x))))


class Encoder(nn.Module):
    """Reads frames; ``factor``: how many places of a frame, along each axis, become one of the grid."""

    factor: int


class ConvEncoder(Encoder):
    """(B, channels, *size) → (B, widths[-1], *size / 2**len(widths)).

    ``widths``: output channels of each stride-2 convolution; ``blocks``: residual blocks behind them.

    ``scaled``: weights begin so that signals keep their size from layer to layer (He et al., *Delving Deep into
    Rectifiers*, 2015). PyTorch's own beginning makes them smaller, by ten after six layers; what is then left to learn
    by is so little that the rectifiers die.
    """

    def __init__(self, rank: int, channels: int, widths: Counts, blocks: Whole, scaled: bool = False):
        super().__init__()
        self.factor = 2 ** len(widths)
        ins = [channels, *widths[:-1]]
        self.down = module_list(CONV[rank](i, o, 4, stride=2, padding=1) for i, o in zip(ins, widths, strict=True))
        self.blocks = nn.ModuleList(ResidualBlock(rank, widths[-1], widths[-1]) for _ in range(blocks))
        if scaled:
            for index, conv in enumerate(self.down):
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu" if index else "linear")
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        for index, conv in enumerate(self.down):
            x = conv(x if index == 0 else F.relu(x))
        for block in self.blocks:
            x = block(x)
        return F.relu(x)


class ConvDecoder(nn.Module):
    """(B, width_in, *grid) → (B, channels, *grid · 2**len(widths)); mirrors :class:`ConvEncoder`.

    ``widths`` are the encoder's, in the encoder's order. With ``outputs``, of which a distribution needs many for each
    place, the last transposed convolution gives widths[0] channels, and a 1-wide convolution behind a ReLU makes
    (B, outputs, *size) of them.
    """

    def __init__(
        self, rank: int, width_in: int, channels: int, widths: Counts, blocks: Whole, outputs: int | None = None
    ):
        super().__init__()
        top = widths[-1]
        self.enter = CONV[rank](width_in, top, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(rank, top, top) for _ in range(blocks))
        outs = [*reversed(widths[:-1]), channels if outputs is None else widths[0]]
        ins = list(reversed(widths))
        self.up = nn.ModuleList(
            CONV_TRANSPOSE[rank](i, o, 4, stride=2, padding=1) for i, o in zip(ins, outs, strict=True)
        )
        self.leave = None if outputs is None else CONV[rank](widths[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        for conv in self.up:
            x = conv(F.relu(x))
        return x if self.leave is None else self.leave(F.relu(x))
