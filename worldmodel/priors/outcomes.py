"""Reward and termination of a frame, read off its context and its codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.heads.base import CodeEmbedding
from worldmodel.nn.modules import Logits

BINS = 65
SPAN = 8.0  # the outermost bins stand at ±symexp(8) ≈ ±2,980


def symexp(x: Tensor) -> Tensor:
    """sign(x)·(exp|x| − 1): the inverse of symlog (Hafner et al., DreamerV3, 2023, eq. 9)."""
    return x.sign() * torch.expm1(x.abs())


def two_hot(values: Tensor, bins: Tensor) -> Tensor:
    """Scalars (...) → weights (..., len(bins)) on the two neighbouring bins with that mean (same paper, eq. 10).

    Values outside the bins are clamped to the outermost ones.
    """
    values = values.clamp(bins[0], bins[-1])
    above = torch.searchsorted(bins, values.contiguous(), right=True).clamp(1, len(bins) - 1)
    low, high = bins[above - 1], bins[above]
    share = ((values - low) / (high - low))[..., None]
    return F.one_hot(above - 1, len(bins)) * (1 - share) + F.one_hot(above, len(bins)) * share


class OutcomeHead(nn.Module):
    """contexts (M, N, C) and codes (M, N) of the *same* frame → logits of reward (M, BINS) and of termination (M,)."""

    def __init__(self, codebook: Tensor, positions: int, context_width: int, width: int = 64):
        super().__init__()
        self.embed = CodeEmbedding(codebook, width)
        self.enter = nn.Linear(context_width, width)
        self.position = nn.Parameter(torch.zeros(positions, width))
        self.mix = nn.Linear(width, width)
        self.hidden = nn.Linear(2 * width, 2 * width)
        self.reward = Logits(2 * width, BINS)
        self.end = Logits(2 * width, 1)
        self.register_buffer("bins", symexp(torch.linspace(-SPAN, SPAN, BINS)), persistent=False)

    bins: Tensor

    def forward(self, contexts: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        x = F.silu(self.enter(contexts) + self.embed(codes) + self.position)
        x = F.silu(self.mix(x))
        x = F.silu(self.hidden(torch.cat([x.mean(-2), x.amax(-2)], -1)))
        return self.reward(x).float(), self.end(x).squeeze(-1).float()

    def expected_reward(self, logits: Tensor) -> Tensor:
        """(..., BINS) → (...) float32."""
        return logits.softmax(-1) @ self.bins.float()

    def losses(self, logits: tuple[Tensor, Tensor], rewards: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropies of reward and end for targets of the same leading shape, unreduced."""
        reward_logits, end_logits = logits
        targets = two_hot(rewards, self.bins.float())
        reward = -(targets * reward_logits.log_softmax(-1)).sum(-1)
        return reward, F.binary_cross_entropy_with_logits(end_logits, ends.float(), reduction="none")
