"""Quantisers with one code for a vector: the nearest vector of a learnt codebook, or its rounded numbers."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Len
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from worldmodel.nn.float32 import full_float32
from worldmodel.quantizers.base import Quantized, Quantizer, all_reduce, broadcast_first, count_codes
from worldmodel.util.ranges import Count, NumCodes, ShareBelowOne, Whole

AT_A_TIME = 2**22  # distances that are in memory at a time, 16 MiB


@torch.no_grad()
def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index (M,) of the nearest row of ``codebook`` (K, D) for each row of ``vectors`` (M, D).

    Computed in float32 whatever the inputs, under autocast too, and without TF32. The mean of the codebook is
    subtracted from both first, since with a common offset the expanded square ‖e‖²/2 − z·e is imprecise. The M×K
    matrix is computed in chunks, in the same memory; large ones, since the threads of each call wait for the slowest.
    """
    codebook, vectors = codebook.float(), vectors.float()
    offset = codebook.mean(0)
    table = codebook - offset
    bias = table.square().sum(1).mul_(0.5)
    weights = table.t().neg()
    rows = vectors - offset
    if torch.compiler.is_exporting():  # to a graph, whose operations do not write to memory of their inputs
        return torch.addmm(bias, rows, weights).argmin(1)
    codes = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    chunk = min(len(rows), max(1, AT_A_TIME // len(table)))
    distances, least = rows.new_empty(chunk, len(table)), rows.new_empty(chunk)
    with torch.autocast(rows.device.type, enabled=False), full_float32(rows.device):
        for start in range(0, len(rows), max(1, chunk)):
            part = rows[start : start + chunk]
            found = torch.addmm(bias, part, weights, out=distances[: len(part)])
            torch.min(found, dim=1, out=(least[: len(part)], codes[start : start + chunk]))
    return codes


class _Choose(torch.autograd.Function):
    """Vectors z (..., D), codes (...), table (K, D) → the codes' vectors e and mean (z − e)².

    The gradients are those of z + sg[e − z] and of the mean with respect to z, in fewer passes over memory.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, codes: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        chosen = F.embedding(codes, table)
        difference = vectors - chosen
        ctx.save_for_backward(difference)
        return chosen, torch.linalg.vector_norm(difference).square() / difference.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, straight: Tensor, commitment: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return torch.addcmul(straight, difference, commitment * (2 / difference.numel())), None, None


class VectorQuantizer(Quantizer):
    """The quantiser of the VQ-VAE paper, by exponential moving averages (its appendix A.1) or by the codebook loss.

    Args:
        num_codes: K.
        width: D.
        update: ``"ema"`` or ``"loss"`` (the term ``codebook``: ‖sg[z] − e‖²).
        decay: of the moving averages.
        revive_after: a code unused for this many training batches restarts at a random input vector of the batch, with
            a count and a sum to match. 0: never.

    Both updates give the term ``commitment``, ‖z − sg[e]‖², whose weight is the paper's β. Over several processes
    counts and sums are added up, so that all have the same codebook.
    """

    def __init__(
        self,
        num_codes: NumCodes,
        width: Count,
        update: Literal["ema", "loss"] = "ema",
        decay: ShareBelowOne = 0.99,
        revive_after: Whole = 20,
    ):
        super().__init__()
        self.num_codes, self.width, self.update = num_codes, width, update
        self.decay, self.revive_after = decay, revive_after
        table = torch.randn(num_codes, width) / math.sqrt(width)
        self.table: Tensor = nn.Parameter(table) if update == "loss" else nn.Buffer(table)
        self.counts = nn.Buffer(torch.ones(num_codes))  # moving average of the uses in a batch
        self.sums = nn.Buffer(table.clone())  # moving average of the sum of the vectors assigned
        self.idle = nn.Buffer(torch.zeros(num_codes))  # training batches since the last use
        self.started = nn.Buffer(torch.zeros(()))  # 1 once the codebook was initialised from data
        self.known_started = False

    def encode(self, vectors: Tensor) -> Tensor:
        return nearest(vectors.detach().reshape(-1, self.width), self.table.detach()).view(vectors.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.table)

    def forward(self, vectors: Tensor, generator: Generator | None = None) -> Quantized:
        vectors = vectors.float()
        flat = vectors.detach().reshape(-1, self.width)
        if self.training:
            self._start(flat, generator)
        codes = nearest(flat, self.table.detach())
        grid = codes.view(vectors.shape[:-1])
        straight, commitment = _Choose.apply(vectors, grid, self.table.detach())
        losses = {"commitment": commitment}
        if self.update == "loss":
            losses["codebook"] = F.mse_loss(self.lookup(grid), vectors.detach())
        if self.training:
            self._follow(flat, codes, generator)
        return Quantized(straight, grid, losses)

    @torch.no_grad()
    def _start(self, flat: Tensor, generator: Generator | None) -> None:
        """Initialise the codebook from the first training batch (random rows, then Lloyd's algorithm)."""
        self.known_started = self.known_started or bool(self.started.item())  # the host waits until it is known
        if self.known_started:
            return
        table = broadcast_first(self._candidates(flat, generator))
        for _ in range(10):
            counts, sums = self._statistics(flat, nearest(flat, table))
            table = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], table)
        self.table.data.copy_(table)
        self.counts.fill_(1.0)
        self.sums.copy_(table)
        self.started.fill_(1.0)
        self.known_started = True

    def _candidates(self, flat: Tensor, generator: Generator | None) -> Tensor:
        """(K, D): random rows of the batch, with repetition."""
        device = generator.device if generator is not None else flat.device
        rows = torch.randint(len(flat), (self.num_codes,), generator=generator, device=device)
        return flat[rows.to(flat.device)]

    def _statistics(self, flat: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Counts (K,) and sums (K, D) of the vectors assigned to each code, over all processes."""
        counts = count_codes(codes, self.num_codes).to(flat.dtype)
        return all_reduce(counts), all_reduce(torch.zeros_like(self.sums).index_add_(0, codes, flat))

    @torch.no_grad()
    def _follow(self, flat: Tensor, codes: Tensor, generator: Generator | None) -> None:
        """Update the averages with this batch, then restart unused codes."""
        counts, sums = self._statistics(flat, codes)
        self.idle.add_(1).masked_fill_(counts > 0, 0)
        if self.update == "ema":
            self.counts.lerp_(counts, 1 - self.decay)
            self.sums.lerp_(sums, 1 - self.decay)
            used = (self.counts > 1e-3)[:, None]  # codes with almost no uses keep their vectors
            self.table.copy_(torch.where(used, self.sums / self.counts.clamp(min=1e-3)[:, None], self.table))
        if self.revive_after:
            dead = self.idle >= self.revive_after
            fresh = broadcast_first(self._candidates(flat, generator))
            self.table.data.copy_(torch.where(dead[:, None], fresh, self.table.data))
            self.sums.copy_(torch.where(dead[:, None], fresh, self.sums))
            self.counts.masked_fill_(dead, 1.0)
            self.idle.masked_fill_(dead, 0)


class FiniteScalarQuantizer(Quantizer):
    """FSQ: each of D numbers is squashed and rounded to a few levels (Mentzer et al., ICLR 2024); no codebook to learn.

    Args:
        levels: of each dimension, e.g. ``(8, 8, 8)``; K is their product, D their number. No table is stored.
    """

    def __init__(self, levels: Annotated[Sequence[NumCodes], Len(1)]):
        super().__init__()
        self.width, self.num_codes = len(levels), math.prod(levels)
        counts = torch.tensor(levels, dtype=torch.int64)
        self.levels = nn.Buffer(counts, persistent=False)
        strides = torch.cumprod(torch.cat([torch.ones(1, dtype=torch.int64), counts[:-1]]), 0)
        self.strides = nn.Buffer(strides, persistent=False)

    def _bound(self, vectors: Tensor) -> Tensor:
        """Squash to (−½, levels − ½) so that rounding gives the integers 0 … levels − 1 (paper, section 3.1)."""
        return (torch.tanh(vectors) + 1) / 2 * (self.levels - 1e-3) - 0.5 + 0.5e-3

    def encode(self, vectors: Tensor) -> Tensor:
        return (self._bound(vectors.detach().float()).round().long() * self.strides).sum(-1)

    def lookup(self, codes: Tensor) -> Tensor:
        return self._normalise((codes[..., None] // self.strides % self.levels).float())

    def _normalise(self, digits: Tensor) -> Tensor:
        """Digits 0 … levels − 1 → [−1, 1]."""
        return digits * 2 / (self.levels - 1) - 1

    def forward(self, vectors: Tensor, generator: Generator | None = None) -> Quantized:
        bounded = self._bound(vectors.float())
        digits = bounded + (bounded.round() - bounded).detach()
        return Quantized(self._normalise(digits), (digits.detach().round().long() * self.strides).sum(-1), {})
