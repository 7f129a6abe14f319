"""Causal self-attention over time that looks back a fixed number of steps, with a cache that slides.

The position of a step enters by its distance alone, through a learnt bias of every head (Raffel et al., *Exploring the
Limits of Transfer Learning*, JMLR 2020, section 2.1) that starts as the linear one of Press et al., *Train Short, Test
Long* (ALiBi), ICLR 2022: distances that training windows never reach keep a sensible bias. Positions are never
absolute, so T calls of ``step`` equal one ``forward`` over T steps for any T, and a full cache drops its oldest step.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.nn.modules import module_list


class AttentionCache(NamedTuple):
    """The last W steps of one block, oldest first, the newest in the last place. The shapes never change."""

    keys: Tensor  # (*batch, heads, W, width / heads)
    values: Tensor  # (*batch, heads, W, width / heads)
    valid: Tensor  # (*batch, W) bool: whether later steps may attend to it


Caches = tuple[AttentionCache, ...]  # one for each block of a stack


class WindowedAttention(nn.Module):
    """Pre-norm block of attention to the last ``window`` steps (the own one among them) and an MLP.

    Args:
        width: of the vectors, a multiple of ``heads``. window: W, steps. depth: number of blocks of the stack, by which
            the initial outputs are scaled.
    """

    def __init__(self, width: int, heads: int, window: int, depth: int = 1):
        super().__init__()
        if width % heads:
            raise ConfigError(f"width {width} cannot be shared by {heads} heads; choose a multiple of the heads")
        self.width, self.heads, self.window = width, heads, window
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (self.out, self.down):
            nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * depth))
        # In the order of the cache: the last entry is the bias of the step itself.
        slopes = 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)
        self.bias = nn.Parameter(slopes[:, None] * torch.arange(1 - window, 1))  # (heads, W)

    def forward(self, x: Tensor, first: int = 0, valid: Tensor | None = None) -> Tensor:
        """x (*batch, T, width) → (*batch, T − first, width), the steps from ``first`` on.

        ``valid`` (*batch, T) bool: False for steps to which no later step may attend; None: all are valid.
        """
        q, k, v = self._split(self.norm1(x))
        mask = self._mask(first, x.shape[-2], valid)
        attended = F.scaled_dot_product_attention(q[..., first:, :], k, v, attn_mask=mask)
        return self._finish(x[..., first:, :], attended)

    def begin(self, *batch: int) -> AttentionCache:
        """The cache before the first step."""
        empty = self.bias.new_zeros(*batch, self.heads, self.window, self.width // self.heads)
        return AttentionCache(empty, empty, torch.zeros(*batch, self.window, dtype=torch.bool, device=empty.device))

    def step(self, x: Tensor, cache: AttentionCache, valid: Tensor | None = None) -> tuple[Tensor, AttentionCache]:
        """x (*batch, width), valid (*batch,) bool → (*batch, width) and the cache behind this step."""
        q, k, v = self._split(self.norm1(x)[..., None, :])
        cache = self._slide(cache, k, v, valid)
        seen = cache.valid.clone()
        seen[..., -1] = True  # every step attends to itself
        mask = self.bias[:, None].masked_fill(~seen[..., None, None, :], -math.inf)  # (*batch, heads, 1, W)
        attended = F.scaled_dot_product_attention(q, cache.keys, cache.values, attn_mask=mask)
        return self._finish(x[..., None, :], attended).squeeze(-2), cache

    def observe(self, x: Tensor, cache: AttentionCache, valid: Tensor | None = None) -> AttentionCache:
        """The cache that :meth:`step` would return, without its output."""
        _, k, v = self._split(self.norm1(x)[..., None, :])
        return self._slide(cache, k, v, valid)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(*batch, T, width) → query, key, value (*batch, heads, T, width / heads)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        return q, k, v

    def _mask(self, first: int, steps: int, valid: Tensor | None) -> Tensor:
        """What is added to the scores: (heads, T − first, T), or (*batch, heads, T − first, T) with ``valid``."""
        place = torch.arange(steps, device=self.bias.device)
        distance = place[first:, None] - place
        banned = (distance < 0) | (distance >= self.window)
        if valid is not None:
            banned = (banned | (~valid[..., None, :] & (distance != 0)))[..., None, :, :]
        return self.bias[:, self.window - 1 - distance.clamp(0, self.window - 1)].masked_fill(banned, -math.inf)

    @staticmethod
    def _slide(cache: AttentionCache, k: Tensor, v: Tensor, valid: Tensor | None) -> AttentionCache:
        newest = cache.valid.new_ones(cache.valid.shape[:-1]) if valid is None else valid
        return AttentionCache(
            torch.cat([cache.keys[..., 1:, :], k], -2),
            torch.cat([cache.values[..., 1:, :], v], -2),
            torch.cat([cache.valid[..., 1:], newest[..., None]], -1),
        )

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended.transpose(-3, -2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class TimeTransformer(nn.Module):
    """A stack of :class:`WindowedAttention` blocks and a last norm; it attends to ``blocks`` · (W − 1) steps back."""

    def __init__(self, width: int, blocks: int, heads: int, window: int):
        super().__init__()
        self.blocks = module_list(WindowedAttention(width, heads, window, blocks) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, first: int = 0, valid: Tensor | None = None) -> Tensor:
        """As :meth:`WindowedAttention.forward`; only the last block can leave the first steps out."""
        for block in self.blocks[:-1]:
            x = block(x, 0, valid)
        return self.norm(self.blocks[-1](x, first, valid))

    def begin(self, *batch: int) -> Caches:
        """One cache a block."""
        return tuple(block.begin(*batch) for block in self.blocks)

    def step(self, x: Tensor, caches: Caches, valid: Tensor | None = None) -> tuple[Tensor, Caches]:
        """As :meth:`WindowedAttention.step`."""
        x, lower = self._lower(x, caches, valid)
        x, last = self.blocks[-1].step(x, caches[-1], valid)
        return self.norm(x), (*lower, last)

    def observe(self, x: Tensor, caches: Caches, valid: Tensor | None = None) -> Caches:
        """The caches that :meth:`step` would return."""
        x, lower = self._lower(x, caches, valid)
        return (*lower, self.blocks[-1].observe(x, caches[-1], valid))

    def _lower(self, x: Tensor, caches: Caches, valid: Tensor | None) -> tuple[Tensor, list[AttentionCache]]:
        """Output and caches of all blocks but the last."""
        behind = []
        for block, cache in zip(self.blocks[:-1], caches[:-1], strict=True):
            x, new = block.step(x, cache, valid)
            behind.append(new)
        return x, behind
