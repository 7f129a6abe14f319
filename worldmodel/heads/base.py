"""The interface of heads, autoregressive distributions over the codes of one grid; and codes as vectors."""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.nn.modules import Logits, RowState, project, wide

State = Any  # what a module carries from one call to the next: a tree of tensors, passed and returned, never hidden


@dataclasses.dataclass(frozen=True, eq=False)
class GridSpec:
    """The properties of the grids of codes and of the actions with which trunks and heads are constructed."""

    grid: tuple[int, ...]  # shape of a grid of codes; (N,) where several grids stand in one row
    codebook: Tensor  # (K, D); (S, K, D) where the last axis of the grid has S slots; (levels, K, D) for levels
    action_names: tuple[str, ...] = ()  # A names of the actions (or classes, speakers, captions)
    levels: tuple[tuple[int, ...], ...] = ()  # shapes of the grids, coarsest first; empty for one grid

    @property
    def positions(self) -> int:
        """N, the number of codes of a frame."""
        return math.prod(self.grid)

    @property
    def num_actions(self) -> int:
        """A."""
        return len(self.action_names)

    def require_one_grid(self, model: nn.Module, slots: bool = False) -> None:
        """Raises :class:`ConfigError` where there are several grids, or without ``slots`` several codes at a position,
        which the trunk or head cannot serve."""
        if self.levels:
            reason = f"this tokenizer makes several grids, and {type(model).__name__} is for one"
            raise ConfigError(f"{reason}; choose prior=hierarchy, or prior=jukebox for sound")
        if self.codebook.dim() == 3 and not slots:
            codes, kind = len(self.codebook), type(model).__name__
            reason = f"this tokenizer makes {codes} codes at each position, and {kind} is for one"
            raise ConfigError(f"{reason}; choose prior=pixelcnn, or prior=codec, which reads earlier frames, too")


class Head(nn.Module, abc.ABC):
    """Autoregressive over the N positions of one grid in an order of its own: p(code i | codes < i, context).

    Codes and contexts are in raster order, here as everywhere, except in ``ordered_logits`` and the methods after it,
    which are for samplers: there, index i is the position that comes i-th in the head's order. ``extend`` makes the
    samplers fast: it computes some positions after a final prefix, whose features are in the state.
    """

    order: Tensor  # (N,) int64: the raster index of the position that comes i-th
    place: Tensor  # (N,) int64, the inverse: when each position of the raster comes
    groups: list[int]  # sizes, Σ = N: runs of positions that do not depend on each other: one pass may draw a run
    vectors: Tensor  # (K, D) float: vectors of the codes, centred, mean squared length 1
    stepwise: bool = False  # whether single positions are so cheap on a CPU that predictive sampling is slower

    def set_order(self, order: Tensor) -> None:
        """Called once by the constructors."""
        self.order = nn.Buffer(order, persistent=False)
        self.place = nn.Buffer(order.argsort(), persistent=False)

    def in_order(self, values: Tensor) -> Tensor:
        """(B, N, …) in raster order → in the order of the head."""
        return values.index_select(1, self.order)

    def in_raster(self, values: Tensor) -> Tensor:
        """(B, N, …) in the order of the head → in raster order."""
        return values.index_select(1, self.place)

    def forward(self, codes: Tensor, contexts: Tensor) -> Tensor:
        """codes (B, N) int64, contexts (B, N, width) → logits (B, N, K) of each code, given those that come before."""
        return self.in_raster(self.ordered_logits(self.in_order(codes), self.in_order(contexts)))

    def mean_nats(self, codes: Tensor, contexts: Tensor) -> Tensor:
        """codes (B, N) int64, contexts (B, N, width) → −log p(grid | contexts) / N, (B,) float32."""
        codes = self.in_order(codes)
        return nats(self.ordered_logits(codes, self.in_order(contexts)), codes).mean(-1)

    @abc.abstractmethod
    def forecast(self, contexts: Tensor) -> Tensor:
        """contexts (B, N, width) in any order → logits (B, N, K), in the same order, of every code on its own: a first
        guess for predictive sampling."""

    @abc.abstractmethod
    def ordered_logits(self, codes: Tensor, contexts: Tensor) -> Tensor:
        """:meth:`forward` in the head's order: logits[:, i] depend on codes[:, :i] only."""

    @abc.abstractmethod
    def begin(self, contexts: Tensor) -> RowState:
        """The state before the first position, for grids with ``contexts`` (B, N, width)."""

    @abc.abstractmethod
    def extend(self, state: Any, codes: Tensor, start: int, stop: int) -> Tensor:
        """Logits (B, stop − start, K) of the positions start … stop − 1.

        ``codes`` (B, N): the entries before ``stop − 1`` are read. Those before ``start`` are final: their features are
        kept in the state, in place, and not computed again.
        """


def nats(logits: Tensor, codes: Tensor) -> Tensor:
    """Negative log-likelihood of codes (...) under logits (..., K), unreduced, float32 at least."""
    return F.cross_entropy(wide(logits.flatten(0, -2)), codes.flatten(), reduction="none").view(codes.shape)


class CodeEmbedding(nn.Module):
    """Codes (...) int64 in [-1, K) → vectors (..., width); -1 is "no code" and has a learnt vector of its own.

    ``codebook`` (K, D): the tokenizer's vectors, which :func:`project` turns into the initial table, so that similar
    codes start with similar vectors. Of several codebooks, (S, K, D), each has its own table, and codes are (..., S).
    """

    def __init__(self, codebook: Tensor, width: int):
        super().__init__()
        books = codebook if codebook.dim() == 3 else codebook[None]
        rows = [row for book in books for row in (torch.zeros(1, width), project(book, width))]
        self.table = nn.Parameter(torch.cat(rows))
        first = torch.arange(len(books)) * (codebook.shape[-2] + 1)  # where the table of each codebook begins
        self.first = nn.Buffer(first, persistent=False) if codebook.dim() == 3 else None

    def forward(self, codes: Tensor) -> Tensor:
        return self.lookup(codes + 1 if self.first is None else codes + 1 + self.first)

    def lookup(self, rows: Tensor) -> Tensor:
        """Rows (...) of the table, codes + 1 of one codebook, which several embeddings may share → (..., width)."""
        return F.embedding(rows, self.table)


class LevelEmbedding(nn.Module):
    """Codes of several grids in one row, (..., N) int64 in [-1, K) → (..., N, width), by a table for each grid.

    ``codebook`` (levels, K, D); ``levels``: shapes of the grids, as they stand in the row.
    """

    def __init__(self, codebook: Tensor, width: int, levels: Sequence[Sequence[int]]):
        super().__init__()
        self.sizes = [math.prod(level) for level in levels]
        self.embed = nn.ModuleList(CodeEmbedding(book, width) for book in codebook)

    def forward(self, codes: Tensor) -> Tensor:
        parts = zip(self.embed, codes.split(self.sizes, -1), strict=True)
        return torch.cat([embed(part) for embed, part in parts], -2)


def embedding(spec: GridSpec, width: int) -> nn.Module:
    """An embedding of the codes of one grid or of several levels."""
    return LevelEmbedding(spec.codebook, width, spec.levels) if spec.levels else CodeEmbedding(spec.codebook, width)


def classifier(codebook: Tensor, width: int) -> nn.Linear:
    """width → K logits, which start similar for codes whose vectors are similar."""
    layer = Logits(width, len(codebook))
    layer.weight.data.copy_(0.04 * project(codebook, width))
    nn.init.zeros_(layer.bias)
    return layer
