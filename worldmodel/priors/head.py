"""The transformer head: small, causal over the positions of one grid, each with its earlier neighbours at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.priors.base import Head, grid_size
from worldmodel.priors.embedding import CodeEmbedding, centred, classifier
from worldmodel.priors.order import make_order


class HeadState(NamedTuple):
    inputs: Tensor  # (B, N, width): the part of every position's input that is known beforehand
    keys: list[Tensor]  # a layer: (B, heads, N, width / heads)
    values: list[Tensor]


class HeadBlock(nn.Module):
    """Pre-norm causal attention and MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (self.out, self.down):
            nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, n, width) → query, key, value (B, heads, n, width / heads)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return self.finish(x, causal_attention(q, k, v))


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every position attends to itself and to those before it; all (B, heads, N, D)."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # On a CPU the fused kernel is no faster, and its backward pass in bfloat16 takes five times as long.
    ahead = torch.full((q.shape[2], k.shape[2]), -math.inf, dtype=q.dtype).triu(1)
    q, k, values = q.flatten(0, 1) / math.sqrt(q.shape[-1]), k.flatten(0, 1), v.flatten(0, 1)
    weights = torch.baddbmm(ahead.expand(len(q), -1, -1), q, k.mT).softmax(-1)
    return torch.bmm(weights, values).view_as(v)


class TransformerHead(Head):
    """Position i reads its context, its earlier neighbours and the code just before, and attends to all before it.

    So every key tells of the code just before its position, and attention hears of every earlier code.

    Args:
        grid: shape of a grid. codebook: (K, D). context_width: of the trunk's vectors.
        width, blocks, heads: of the transformer. embed: width of an embedded code.
        order: see :mod:`worldmodel.priors.order`.
    """

    def __init__(
        self,
        grid: Sequence[int],
        codebook: Tensor,
        context_width: int,
        width: int = 160,
        blocks: int = 1,
        heads: int = 4,
        embed: int = 48,
        order: str = "checkerboard",
    ):
        super().__init__()
        positions = grid_size(grid)
        self.positions, self.groups = positions, [1] * positions
        self.embed = CodeEmbedding(codebook, embed)
        places, self.stages, neighbours = make_order(order, grid, chained=True)
        self.register_buffer("order", places, persistent=False)
        self.neighbours = None  # attention sees all codes before, not only those near by
        self.register_buffer("near", neighbours, persistent=False)
        self.register_buffer("vectors", centred(codebook), persistent=False)
        size = neighbours.shape[1] * embed
        self.enter_codes = nn.ModuleList(nn.Linear(size, width, bias=False) for _ in self.stages)
        self.enter_context = nn.Linear(context_width, width)
        self.position = nn.Parameter(torch.randn(positions, width) * 0.02)
        self.blocks = nn.ModuleList(HeadBlock(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.logits = classifier(codebook, width)
        self.guess = nn.Sequential(nn.Linear(context_width, width), nn.SiLU(), classifier(codebook, width))

    order: Tensor
    near: Tensor

    def _near(self, codes: Tensor, start: int, stop: int) -> Tensor:
        """What the neighbours say to the positions start … stop − 1: (B, stop − start, width)."""
        padded = F.pad(codes, (0, 1), value=-1)
        near = self.embed(padded[:, self.near[start:stop]]).flatten(2)
        parts, first = [], 0
        for size, enter in zip(self.stages, self.enter_codes, strict=True):
            a, b = max(first, start), min(first + size, stop)
            if a < b:
                parts.append(enter(near[:, a - start : b - start]))
            first += size
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def forward(self, codes: Tensor, contexts: Tensor) -> Tensor:
        x = self.enter_context(contexts) + self.position + self._near(codes, 0, self.positions)
        for block in self.blocks:
            x = block(x)
        return self.logits(self.norm(x)).float()

    def begin(self, contexts: Tensor) -> HeadState:
        inputs = self.enter_context(contexts) + self.position
        heads = [block.heads for block in self.blocks]  # type: ignore[union-attr]
        shapes = [(len(inputs), h, self.positions, inputs.shape[-1] // int(h)) for h in heads]  # type: ignore[arg-type]
        return HeadState(inputs, [inputs.new_zeros(s) for s in shapes], [inputs.new_zeros(s) for s in shapes])

    def extend(self, state: HeadState, codes: Tensor, start: int, stop: int) -> Tensor:
        x = state.inputs[:, start:stop] + self._near(codes, start, stop)
        mask = None
        if stop - start > 1:
            mask = torch.ones(stop - start, stop, dtype=torch.bool, device=x.device).tril(start)
        for block, keys, values in zip(self.blocks, state.keys, state.values, strict=True):
            q, k, v = block.split(x)  # type: ignore[operator]
            keys[:, :, start:stop], values[:, :, start:stop] = k, v
            attended = F.scaled_dot_product_attention(q, keys[:, :, :stop], values[:, :, :stop], attn_mask=mask)
            x = block.finish(x, attended)  # type: ignore[operator]
        return self.logits(self.norm(x)).float()

    def select(self, state: HeadState, rows: Tensor) -> HeadState:
        return HeadState(state.inputs[rows], [k[rows] for k in state.keys], [v[rows] for v in state.values])

    def forecast(self, contexts: Tensor) -> Tensor:
        return self.guess(contexts).float()
