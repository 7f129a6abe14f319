"""Returns of imagined trajectories."""

from __future__ import annotations

import torch
from torch import Tensor

DISCOUNT = 0.985
"""Default γ of a step."""


def lambda_returns(rewards: Tensor, values: Tensor, discounts: Tensor, mix: float) -> Tensor:
    """TD(λ) targets of H steps.

    R_t = r_t + γ_t ((1 − λ) v_{t+1} + λ R_{t+1}), R_H = v_H (Sutton and Barto, 2018, section 12.1; in imagination
    Hafner et al., *Dreamer*, 2020, eq. 6).

    Args:
        rewards: (B, H), r_t is received at state t + 1.
        values: (B, H + 1), of the states 0 to H.
        discounts: (B, H), γ_t = γ · P(state t + 1 is not terminal).
        mix: λ; 0 bootstraps after one step, 1 sums all rewards.

    Returns (B, H), of the states 0 to H − 1.
    """
    following, returns = values[:, -1], []
    for t in range(rewards.shape[1] - 1, -1, -1):
        following = rewards[:, t] + discounts[:, t] * ((1 - mix) * values[:, t + 1] + mix * following)
        returns.append(following)
    return torch.stack(returns[::-1], 1)


def reach(discounts: Tensor) -> Tensor:
    """Weights of the states 0 to H − 1 of a trajectory, (B, H): the product of the discounts before each."""
    first = torch.ones_like(discounts[:, :1])
    return torch.cat([first, discounts[:, :-1]], 1).cumprod(1)
