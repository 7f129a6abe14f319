"""Causal convolutions of sound for streaming, and an encoder and a decoder that consist of them.

Every module computes :meth:`Causal.step`: a chunk and a state → the output and the next state. A whole signal is
processed as a single chunk, so streaming gives the same output up to rounding.

The networks follow SEANet (Tagliasacchi et al., 2020) as used by Zeghidour et al., *SoundStream*, 2021, section III.A,
and Défossez et al., *EnCodec*, 2022, section 3.1: strided convolutions, two strides wide, between residual units of
dilated convolutions. Layers at the full sampling rate and EnCodec's LSTM are left out because they are slow.
"""

import abc
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.nn.convnets import check_strides
from worldmodel.util.ranges import Counts, Whole

State: TypeAlias = Any  # a Tensor, or a tuple of states; None before the first sample

STRIDES = (2, 4, 5, 8)
GAIN = 1.68
"""1 / √E[SiLU(x)²] for normal x: weights of deviation GAIN / √(summed inputs) preserve the deviation of signals."""


def _prepare(conv: nn.Conv1d | nn.ConvTranspose1d, gain: float = GAIN) -> None:
    """Initialise weights so that the deviation of signals is the same after every layer, and biases at 0.

    PyTorch's initialisation shrinks signals: after four strided layers the vectors of an utterance differ by 5 % of
    their mean, and the codes carry no information for hundreds of updates.
    """
    spread = conv.stride[0] if isinstance(conv, nn.ConvTranspose1d) else 1  # an output reads kernel / stride inputs
    summed = conv.in_channels * conv.kernel_size[0] / spread
    nn.init.normal_(conv.weight, std=gain / math.sqrt(summed))
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)


class Causal(nn.Module, abc.ABC):
    """(B, C, n) → (B, C', n'): no output depends on later inputs."""

    @abc.abstractmethod
    def step(self, chunk: Tensor, state: State = None) -> tuple[Tensor, State]:
        """A chunk (B, C, n), n a multiple of the stride, and the state before it → its output and the next state.

        None is the initial state: every layer is padded with zeros.
        """

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)[0]


class CausalConv(Causal):
    """Output t reads the ``(kernel - 1) · dilation + 1`` inputs that end with number (t + 1) · stride − 1.

    The state is the last inputs, which the next output reads again, (B, C, reach − stride).
    Raises ValueError when the stride is larger than the kernel's reach, so that inputs would be skipped.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.past = (kernel - 1) * dilation + 1 - stride
        if self.past < 0:
            raise ValueError(f"a kernel of {kernel} leaves out inputs at a stride of {stride}")
        self.stride = stride
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation)
        _prepare(self.conv)

    def step(self, chunk: Tensor, state: State = None) -> tuple[Tensor, State]:
        if chunk.shape[-1] % self.stride:
            raise ValueError(f"a chunk of {chunk.shape[-1]} is no multiple of the stride, {self.stride}")
        x = F.pad(chunk, (self.past, 0)) if state is None else torch.cat([state, chunk], -1)
        return self.conv(x), x[..., x.shape[-1] - self.past :]


class CausalUpsampling(Causal):
    """A transposed convolution: input t contributes to ``kernel`` outputs, starting at index t · stride.

    The state is the last inputs that contribute to later outputs. Their contribution is computed again with each chunk,
    so that streaming adds in the same order as a whole pass.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int):
        super().__init__()
        self.past, self.stride = max(math.ceil(kernel / stride) - 1, 0), stride
        self.conv = nn.ConvTranspose1d(inputs, outputs, kernel, stride)
        _prepare(self.conv)

    def step(self, chunk: Tensor, state: State = None) -> tuple[Tensor, State]:
        x = F.pad(chunk, (self.past, 0)) if state is None else torch.cat([state, chunk], -1)
        start = self.past * self.stride
        full = self.conv(x)[..., start : start + chunk.shape[-1] * self.stride]
        return full, x[..., x.shape[-1] - self.past :]


class CausalUnit(Causal):
    """x + conv₁(SiLU(conv₃(SiLU(x)))), the 3-wide one dilated and half as wide: (B, width, n) → the same shape.

    It is initialised close to the identity. SiLU replaces SEANet's ELU because it takes half the time on a CPU.
    """

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.wide = CausalConv(width, max(width // 2, 1), 3, dilation=dilation)
        self.narrow = nn.Conv1d(max(width // 2, 1), width, 1)
        _prepare(self.narrow, gain=GAIN / 4)

    def step(self, chunk: Tensor, state: State = None) -> tuple[Tensor, State]:
        hidden, state = self.wide.step(F.silu(chunk), state)
        return chunk + self.narrow(F.silu(hidden)), state


class CausalSequence(Causal):
    """A sequence of modules, each a :class:`Causal` or one that works element by element, such as an activation."""

    def __init__(self, modules: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(modules)

    def step(self, chunk: Tensor, state: State = None) -> tuple[Tensor, State]:
        states = [None] * len(self.layers) if state is None else list(state)
        for index, layer in enumerate(self.layers):
            if isinstance(layer, Causal):
                chunk, states[index] = layer.step(chunk, states[index])
            else:
                chunk = layer(chunk)
        return chunk, tuple(states)


def _checked(rank: int, widths: Sequence[int], strides: Sequence[int]) -> None:
    if rank != 1:
        raise ConfigError(f"causal networks are for sound (rank 1), not for frames of rank {rank}")
    check_strides(widths, strides)


class CausalEncoder(CausalSequence):
    """Sound (B, channels, n · factor) → (B, widths[-1], n).

    Args:
        rank: 1.
        channels: C of the sound.
        widths: channels after each strided convolution.
        blocks: residual units after each of them, of dilations 1, 3, 9, …
        strides: one for each width; their product is ``factor``, the samples per position.
    """

    def __init__(self, rank: int, channels: int, widths: Counts, blocks: Whole, strides: Counts = STRIDES):
        _checked(rank, widths, strides)
        modules: list[nn.Module] = []
        for inputs, width, stride in zip([channels, *widths[:-1]], widths, strides, strict=True):
            modules += [nn.SiLU()] if modules else []
            modules += [CausalConv(inputs, width, 2 * stride, stride)]
            modules += [CausalUnit(width, 3**block) for block in range(blocks)]
        super().__init__([*modules, nn.SiLU(), CausalConv(widths[-1], widths[-1], 3)])
        self.factor = math.prod(strides)


class CausalDecoder(CausalSequence):
    """(B, width_in, n) → (B, outputs, n · factor): the mirror image of :class:`CausalEncoder`, with its arguments.

    The last transposed convolution, four strides wide, returns ``outputs`` channels, or ``channels`` if it is None.
    """

    def __init__(
        self,
        rank: int,
        width_in: int,
        channels: int,
        widths: Counts,
        blocks: Whole,
        outputs: int | None = None,
        strides: Counts = STRIDES,
    ):
        _checked(rank, widths, strides)
        modules: list[nn.Module] = [CausalConv(width_in, widths[-1], 3)]
        last = channels if outputs is None else outputs
        for level in reversed(range(len(widths))):
            width, stride = widths[level], strides[level]
            up = CausalUpsampling(width, widths[level - 1] if level else last, (2 if level else 4) * stride, stride)
            modules += [*[CausalUnit(width, 3**block) for block in range(blocks)], nn.SiLU(), up]
        _prepare(up.conv, gain=GAIN / 4)  # the initial output is quieter than speech
        super().__init__(modules)
        self.factor = math.prod(strides)
