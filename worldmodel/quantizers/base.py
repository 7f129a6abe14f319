"""The interface of every quantiser, and sums over the processes of a training."""

import abc
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn


class Quantized(NamedTuple):
    """The result of a quantiser; D is the width, K the number of codes, ``shape`` that of the codes of a vector."""

    vectors: Tensor  # (..., D), the vectors of the codes, gradients through to the input
    codes: Tensor  # (..., *shape) int64 in [0, K); -1 where training left a code out
    losses: dict[str, Tensor]  # named scalar terms, e.g. "commitment"


class Quantizer(nn.Module, abc.ABC):
    """Interface of all quantisers. They compute in float32 whatever the precision around them.

    A vector becomes codes of ``shape``: ``()`` is a single one, ``(S,)`` are S codes, each from its own codebook, whose
    vectors are concatenated or added.
    """

    soft: bool = False  # whether the vectors of training are mixtures of codes, so that N ln K is no bound
    keep_float32 = True  # read by the training loop: parameters and buffers are never cast
    num_codes: int  # K
    width: int  # D
    shape: tuple[int, ...] = ()

    @abc.abstractmethod
    def forward(self, vectors: Tensor, generator: Generator | None = None) -> Quantized:
        """(..., D) → :class:`Quantized`; in training mode it may also update its codebook."""

    @abc.abstractmethod
    def encode(self, vectors: Tensor) -> Tensor:
        """(..., D) → codes (..., *shape) int64, no side effect."""

    @abc.abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (..., *shape) → vectors (..., D) float32."""

    def codebook(self) -> Tensor:
        """All vectors: (K, D), or (*shape, K, D of one code). It is large for implicit codebooks of many codes."""
        return self.lookup(torch.arange(self.num_codes, device=next(self.buffers()).device))


def count_codes(codes: Tensor, num_codes: int) -> Tensor:
    """Codes (M,) int64 → how often each occurs, (num_codes,) int64."""
    if codes.device.type == "cpu":
        return torch.bincount(codes, minlength=num_codes)
    # bincount would wait for the device, to see the largest code.
    counts = torch.zeros(num_codes, dtype=torch.int64, device=codes.device)
    return counts.scatter_add_(0, codes, torch.ones_like(codes))


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum over the processes, in place; nothing to do in a single one."""
    if _several_processes():
        dist.all_reduce(tensor)
    return tensor


def broadcast_first(tensor: Tensor) -> Tensor:
    """The value of the first process everywhere, in place."""
    if _several_processes():
        dist.broadcast(tensor, src=0)
    return tensor
