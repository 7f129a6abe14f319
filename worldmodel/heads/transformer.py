"""The transformer head: autoregressive over groups of positions, each of which reads its known neighbours directly."""

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.heads.base import CodeEmbedding, GridSpec, Head, classifier
from worldmodel.heads.order import OrderName, make_order
from worldmodel.nn.modules import RowState, centred, module_list
from worldmodel.util.ranges import Count


class Tables(NamedTuple):
    """Products of the weights, kept until one of these changes."""

    key: list[tuple[int, int]]  # the address and the version of each weight
    weights: list[Tensor]  # held, so that no other tensor can get such an address
    products: Tensor  # (phases × places × (K + 1), width)


@dataclasses.dataclass
class HeadState(RowState):
    """The state of grids while they are drawn."""

    inputs: Tensor  # (B, N, width): the part of every position's input that does not depend on codes
    keys: list[Tensor]  # a block: (B, heads, 1 + N, width / heads), the first of them learnt, for no code
    values: list[Tensor]
    known: int = 0  # keys and values of the codes before are final
    tables: Tables | None = None  # what `TransformerHead.tables` returned


class HeadBlock(nn.Module):
    """Pre-norm attention to the known codes, and an MLP.

    Keys and values are functions of single codes, not of the residual stream, so that a changed code changes only its
    own, and positions do not depend on their own group.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.nothing = nn.Parameter(torch.zeros(2, heads, 1, width // heads))  # key and value for no code
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for layer in (self.out, self.down):
            nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2))

    def remember(self, codes: Tensor) -> Tensor:
        """Embedded codes (B, n, width) → keys and values (2, B, heads, n, width / heads)."""
        return self.key_value(codes).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """x (B, n, width); keys, values (B, heads, m, ·); bias (n, m), −∞ where a position must not attend."""
        query = self.query(self.norm1(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        x = x + self.out(attention(query, keys, values, bias).transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.up(self.norm2(x))))


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """q (B, heads, n, D), k and v (B, heads, m, D), bias (n, m) → (B, heads, n, D)."""
    if q.device.type != "cpu" or not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    # On a CPU the backward pass of the fused kernel in bfloat16 takes five times as long.
    rows = q.flatten(0, 1) / math.sqrt(q.shape[-1])
    weights = torch.baddbmm(bias.expand(len(rows), -1, -1), rows, k.flatten(0, 1).mT).softmax(-1)
    return torch.bmm(weights, v.flatten(0, 1)).view_as(q)


class TransformerHead(Head):
    """Position i reads its context and its known neighbours, and attends to the codes of all groups before its own.

    Args:
        spec: of the grids. context_width: of the trunk's vectors.
        width, blocks, heads: of the transformer. embed: width of an embedded code.
        order: see :mod:`worldmodel.heads.order`; it decides which positions form a group.
    """

    def __init__(
        self,
        spec: GridSpec,
        context_width: int,
        width: Count = 128,
        blocks: Count = 1,
        heads: Count = 4,
        embed: Count = 48,
        order: OrderName = "quincunx",
    ):
        super().__init__()
        spec.require_one_grid(self)
        codebook, self.positions = spec.codebook, spec.positions
        self.embed = CodeEmbedding(codebook, embed)
        walk = make_order(order, spec.grid)
        self.phases, self.groups = walk.phases, walk.groups
        self.set_order(walk.positions)
        self.neighbours = nn.Buffer(walk.neighbours, persistent=False)
        self.vectors = nn.Buffer(centred(codebook), persistent=False)
        sizes = torch.tensor(self.groups)
        begins = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # (N,) where the group of each position begins
        self.begins = begins.tolist()
        hidden = torch.arange(-1, self.positions) >= begins[:, None]
        # (N, 1 + N): 0 where a position may attend, −∞ elsewhere; the first column is for no code.
        self.bias = nn.Buffer(torch.zeros(hidden.shape).masked_fill(hidden, -math.inf), persistent=False)
        size = walk.neighbours.shape[1] * embed
        self.enter_codes = module_list(nn.Linear(size, width, bias=False) for _ in self.phases)
        self.enter_context = nn.Linear(context_width, width)
        self.embed_memory, self.norm_memory = CodeEmbedding(codebook, width), nn.LayerNorm(width)
        self.position = nn.Parameter(torch.randn(self.positions, width) * 0.02)
        self.blocks = module_list(HeadBlock(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.logits = classifier(codebook, width)
        self.guess = nn.Sequential(nn.Linear(context_width, width), nn.SiLU(), classifier(codebook, width))
        phase = torch.arange(len(self.phases)).repeat_interleave(torch.tensor(self.phases))
        rows = torch.arange(walk.neighbours.shape[1]) + walk.neighbours.shape[1] * phase[:, None]
        # (N, 8): first row of a place in the tables
        self.rows = nn.Buffer(rows * (len(codebook) + 1), persistent=False)
        self.alike = {size: [n for n, other in enumerate(self.phases) if other == size] for size in self.phases}
        by_size = torch.cat([(phase == n).nonzero()[:, 0] for members in self.alike.values() for n in members])
        self.neighbours_by_size = nn.Buffer(walk.neighbours[by_size], persistent=False)
        self._tables: Tables | None = None

    def ordered_logits(self, codes: Tensor, contexts: Tensor) -> Tensor:
        inputs = self.enter_context(contexts) + self.position
        rows = codes + 1
        x = inputs + (self._all_near(rows) if len(self.phases) > 1 else self._near(codes, 0, self.positions))
        memory = self._memory(rows, inputs)
        bias = self.bias.to(x.dtype)
        for block in self.blocks:
            nothing = block.nothing[:, None].expand(-1, len(x), -1, -1, -1)
            keys, values = torch.cat([nothing, block.remember(memory)], 3)
            x = block(x, keys, values, bias)
        return self.logits(self.norm(x)).float()

    def begin(self, contexts: Tensor) -> HeadState:
        inputs = self.enter_context(contexts) + self.position
        state = HeadState(inputs, [], [], tables=self.tables())
        for block in self.blocks:
            for kept, nothing in zip((state.keys, state.values), block.nothing, strict=True):
                room = inputs.new_zeros(inputs.shape[0], len(nothing), 1 + self.positions, nothing.shape[-1])
                room[:, :, :1] = nothing
                kept.append(room)
        return state

    def extend(self, state: HeadState, codes: Tensor, start: int, stop: int) -> Tensor:
        x = state.inputs[:, start:stop] + self._near(codes, start, stop, state.tables)
        a, seen = state.known, self.begins[stop - 1]  # the last group attends to the codes before it
        memory = self._memory(codes[:, a:seen] + 1, state.inputs[:, a:seen]) if a < seen else None
        bias = self.bias[start:stop, : 1 + seen].to(x.dtype)
        for block, keys, values in zip(self.blocks, state.keys, state.values, strict=True):
            if memory is not None:
                keys[:, :, 1 + a : 1 + seen], values[:, :, 1 + a : 1 + seen] = block.remember(memory)
            x = block(x, keys[:, :, : 1 + seen], values[:, :, : 1 + seen], bias)
        state.known = max(a, min(start, seen))
        return self.logits(self.norm(x)).float()

    def forecast(self, contexts: Tensor) -> Tensor:
        return self.guess(contexts).float()

    def _memory(self, rows: Tensor, inputs: Tensor) -> Tensor:
        """Rows (B, n), which are codes + 1, and the inputs of their positions → inputs of keys and values, both
        (B, n, width)."""
        return self.norm_memory(self.embed_memory.lookup(rows) + inputs)

    def tables(self) -> Tables | None:
        """The contribution of every code as the neighbour at each place of each phase.

        Sampling looks them up instead of multiplying by a small matrix for every phase, which took a third of a pass.
        None where gradients are needed, and on a GPU, where a CUDA graph would keep outdated tables.
        """
        weights = [weight.detach() for weight in (self.embed.table, *(enter.weight for enter in self.enter_codes))]
        if torch.is_grad_enabled() or weights[0].device.type != "cpu":
            return None
        key = [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]
        if self._tables is None or self._tables.key != key:
            codes = weights[0]
            places = [weight.unflatten(1, (-1, codes.shape[1])) for weight in weights[1:]]
            products = torch.cat([torch.einsum("ke,wse->skw", codes, place) for place in places])
            self._tables = Tables(key, weights, products.flatten(0, 1))
        return self._tables

    def _near(self, codes: Tensor, start: int, stop: int, tables: Tables | None = None) -> Tensor:
        """The contributions of the neighbours to the positions start … stop − 1: (B, stop − start, width)."""
        known = F.pad(codes, (0, 1), value=-1)[:, self.neighbours[start:stop]]
        if tables is not None:
            rows = (known + 1 + self.rows[start:stop]).flatten(0, 1)
            return F.embedding_bag(rows, tables.products, mode="sum").unflatten(0, known.shape[:2])
        sizes, first = [], 0
        for size in self.phases:
            sizes.append(max(min(first + size, stop) - max(first, start), 0))
            first += size
        near = zip(self.enter_codes, self.embed(known).flatten(2).split(sizes, 1), strict=True)
        parts = [enter(part) for enter, part in near if part.shape[1]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _all_near(self, rows: Tensor) -> Tensor:
        """:meth:`_near` of all positions, for rows (B, N), which are codes + 1. Phases of one size are multiplied
        together, which takes fewer operations."""
        known = F.pad(rows, (0, 1))[:, self.neighbours_by_size].transpose(0, 1)
        parts = self.embed.lookup(known).flatten(2).split([size * len(alike) for size, alike in self.alike.items()])
        weights = torch.stack([self.enter_codes[n].weight for alike in self.alike.values() for n in alike])
        shares = weights.split([len(alike) for alike in self.alike.values()])
        near: dict[int, Tensor] = {}
        for part, weight, (size, alike) in zip(parts, shares, self.alike.items(), strict=True):
            products = part.reshape(len(alike), -1, part.shape[-1]) @ weight.mT  # (phases, size · B, width)
            near |= zip(alike, products.unflatten(1, (size, -1)).unbind(), strict=True)
        return torch.cat([near[n] for n in range(len(near))]).transpose(0, 1)
