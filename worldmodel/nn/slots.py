"""Distributions over several codes at one site, each from its own codebook, and a PixelCNN over such sites."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.nn.modules import module_list, project, wide
from worldmodel.nn.pixelcnn import GatedPixelCNN, GridState


def tables(codebooks: Tensor, width: int) -> nn.Parameter:
    """Codebooks (S, K, D) → vectors (S, K, width) that start with their geometry."""
    return nn.Parameter(torch.stack([project(codebook, width) for codebook in codebooks]))


def lookup(table: Tensor, codes: Tensor) -> Tensor:
    """table (S, K, width), codes (..., S) int64 → (..., S, width)."""
    slots, count = table.shape[:2]
    return F.embedding(codes + count * torch.arange(slots, device=codes.device), table.flatten(0, 1))


class SlotLogits(nn.Module):
    """(M, n, width) of the slots from ``first`` on → logits (M, n, K), by the classifier of each."""

    def __init__(self, codebooks: Tensor, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.table = nn.Parameter(0.04 * tables(codebooks, width).data)  # similar codes start with similar logits
        self.bias = nn.Parameter(torch.zeros(codebooks.shape[:2]))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        x = self.norm(x)
        if x.shape[1] == 1:
            return F.linear(x, self.table[first], self.bias[first])
        slots = slice(first, first + x.shape[1])
        return torch.baddbmm(self.bias[slots, None], x.transpose(0, 1), self.table[slots].mT).transpose(0, 1)


class SlotClassifier(nn.Module):
    """Features of a site and its codes so far → logits of the next: p(code j | codes < j, features).

    Every slot has its own vectors of codes, its own projections of the features and of each slot before it, and its own
    classifier, since the codebooks have nothing in common. All slots share the residual network between these.

    Args:
        codebooks: (S, K, D). features: channels.
        width: of the network. embed: of an earlier code. blocks: residual ones.
    """

    def __init__(self, codebooks: Tensor, features: int, width: int, embed: int = 32, blocks: int = 1):
        super().__init__()
        slots = len(codebooks)
        self.enter = nn.Linear(features, slots * width)
        self.earlier = tables(codebooks[:-1], embed) if slots > 1 else None
        self.mix = module_list(nn.Linear(slot * embed, width, bias=False) for slot in range(1, slots))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(blocks))
        self.logits = SlotLogits(codebooks, width)

    def forward(self, features: Tensor, codes: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """features (M, ·), codes (M, S) int64 → logits (M, last − first, K) of the slots first … last − 1."""
        slots, _, width = self.logits.table.shape
        last = slots if last is None else last
        rows = slice(first * width, last * width)
        x = F.linear(features, self.enter.weight[rows], self.enter.bias[rows]).unflatten(-1, (-1, width))
        if last > 1 and self.earlier is not None:
            known = lookup(self.earlier[: last - 1], codes[:, : last - 1]).flatten(1)
            mixed = [mix(known[:, : mix.in_features]) for mix in self.mix[max(first - 1, 0) : last - 1]]
            x = x + torch.stack(mixed if first else [torch.zeros_like(mixed[0]), *mixed], 1)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(F.silu(up(norm(x))))
        return self.logits(x, first)


class CodePixelCNN(nn.Module):
    """p(codes of a grid | condition): a gated PixelCNN over sites, and a classifier over the slots of each.

    It serves grids of any size. Codes (B, h, w, S) int64 in [0, K) are in raster order, slots innermost: each depends
    on all before it, and on the condition (B, h, w, ·) of all rows so far and of its own site.

    Args:
        codebooks: (S, K, D), where the embeddings start. condition: channels of the condition.
        width: of the network. network: the other settings of :class:`~worldmodel.nn.pixelcnn.GatedPixelCNN`.
    """

    def __init__(self, codebooks: Tensor, condition: int, width: int = 128, **network: Any):
        super().__init__()
        self.slots, self.num_codes = codebooks.shape[:2]
        self.embed = tables(codebooks, width)
        self.network = GatedPixelCNN(width, condition, width, width, **network)
        self.classify = SlotClassifier(codebooks, width, width)

    def enter(self, codes: Tensor) -> Tensor:
        """(..., S) → (..., width): the sum of the vectors of a site's codes."""
        return lookup(self.embed, codes).sum(-2)

    def forward(self, codes: Tensor, condition: Tensor) -> Tensor:
        """→ logits (B, h, w, S, K), float32 at least."""
        features = self.network(self.enter(codes), condition)
        return wide(self.classify(features.flatten(0, 2), codes.flatten(0, 2))).unflatten(0, codes.shape[:3])

    def extend(self, state: GridState, codes: Tensor, start: int, stop: int) -> Tensor:
        """codes (B, N) → logits (B, stop − start, K) of the codes start … stop − 1; those before ``start`` are final.

        The features of the sites are kept in the state, in place.
        """
        first, last = start // self.slots, (stop - 1) // self.slots + 1  # sites
        sites = codes[:, first * self.slots : last * self.slots].unflatten(1, (-1, self.slots))
        if last > state.known:
            since = max(state.known - 1, 0)
            news = codes[:, since * self.slots : (last - 1) * self.slots].unflatten(1, (-1, self.slots))
            self.network.extend(state, self.enter(news), last)
        state.known = max(state.known, first + 1)  # a site depends only on those before it
        features = state.features.flatten(1, 2)[:, first:last]
        if last - first == 1:
            begin = first * self.slots
            return wide(self.classify(features[:, 0], sites[:, 0], start - begin, stop - begin))
        logits = wide(self.classify(features.flatten(0, 1), sites.flatten(0, 1)))
        logits = logits.unflatten(0, (len(codes), -1)).flatten(1, 2)
        return logits[:, start - first * self.slots : stop - first * self.slots]
