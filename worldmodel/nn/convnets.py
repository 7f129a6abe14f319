"""Strided convolutional encoders and decoders of any rank (1: sound, 2: images), after the VQ-VAE paper.

van den Oord, Vinyals, Kavukcuoglu, *Neural Discrete Representation Learning*, NeurIPS 2017, section 4.1: 4-wide
stride-2 convolutions, then residual blocks (ReLU, 3-wide convolution, ReLU, 1-wide convolution); the decoder mirrors
it.
"""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.nn.modules import module_list
from worldmodel.util.ranges import Counts, Whole

CONV: dict[int, type[nn.Conv1d | nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
TRANSPOSED: dict[int, type[nn.ConvTranspose1d | nn.ConvTranspose2d]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}


class ResidualBlock(nn.Module):
    """x + conv₁(ReLU(conv₃(ReLU(x)))): (B, width, *size) → the same shape."""

    def __init__(self, rank: int, width: int, hidden: int):
        super().__init__()
        self.wide = CONV[rank](width, hidden, 3, padding=1)
        self.narrow = CONV[rank](hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.relu(self.wide(F.relu(x))))


class Encoder(nn.Module):
    """Reads frames. ``factor``: the downsampling along each axis, from a frame to the grid."""

    factor: int


def strided(stride: int) -> tuple[int, int, int]:
    """Kernel size, stride and padding of a convolution that makes n / stride places of n, and of its transpose."""
    size = max(2 * stride - stride % 2, 3)
    return size, stride, (size - stride) // 2


def check_strides(widths: Sequence[int], strides: Sequence[int]) -> None:
    """Raises :class:`ConfigError` unless there is one stride for each width."""
    if len(widths) != len(strides):
        raise ConfigError(f"{len(widths)} widths and {len(strides)} strides; tokenizer.widths has one for each stride")


class ConvEncoder(Encoder):
    """(B, channels, *size) → (B, widths[-1], *size / factor).

    ``widths``: output channels of each strided convolution; ``blocks``: residual blocks behind them; ``strides``: of
    the convolutions, 2 each by default; ``factor`` is their product.

    ``scaled``: initial weights keep the variance of signals from layer to layer (He et al., *Delving Deep into
    Rectifiers*, 2015). PyTorch's default reduces signals tenfold over six layers; gradients then vanish, and the
    rectifiers become inactive.
    """

    def __init__(
        self,
        rank: int,
        channels: int,
        widths: Counts,
        blocks: Whole,
        scaled: bool = False,
        strides: Counts | None = None,
    ):
        super().__init__()
        strides = [2] * len(widths) if strides is None else strides
        check_strides(widths, strides)
        self.factor = math.prod(strides)
        layers = zip(itertools.pairwise([channels, *widths]), strides, strict=True)
        self.down = module_list(CONV[rank](i, o, *strided(stride)) for (i, o), stride in layers)
        self.blocks = nn.Sequential(*(ResidualBlock(rank, widths[-1], widths[-1]) for _ in range(blocks)))
        if scaled:
            for index, conv in enumerate(self.down):
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu" if index else "linear")
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        for index, conv in enumerate(self.down):
            x = conv(x if index == 0 else F.relu(x))
        return F.relu(self.blocks(x))


class ConvDecoder(nn.Module):
    """(B, width_in, *grid) → (B, channels, *grid · factor); mirrors :class:`ConvEncoder`.

    ``widths`` and ``strides`` are the encoder's, in the encoder's order. With ``outputs``, the parameters of a
    distribution, the last transposed convolution gives widths[0] channels, and a ReLU and a 1-wide convolution make
    (B, outputs, *size) of them.
    """

    def __init__(
        self,
        rank: int,
        width_in: int,
        channels: int,
        widths: Counts,
        blocks: Whole,
        outputs: int | None = None,
        strides: Counts | None = None,
    ):
        super().__init__()
        top = widths[-1]
        self.enter = CONV[rank](width_in, top, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(rank, top, top) for _ in range(blocks)))
        strides = [2] * len(widths) if strides is None else strides
        check_strides(widths, strides)
        sizes = [*reversed(widths), channels if outputs is None else widths[0]]
        layers = zip(itertools.pairwise(sizes), reversed(strides), strict=True)
        self.up = nn.ModuleList(TRANSPOSED[rank](i, o, *strided(stride)) for (i, o), stride in layers)
        self.leave = None if outputs is None else CONV[rank](widths[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.enter(x))
        for conv in self.up:
            x = conv(F.relu(x))
        return x if self.leave is None else self.leave(F.relu(x))
