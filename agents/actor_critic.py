"""The networks of an actor and a critic over windows of code grids."""

import itertools
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from worldmodel.heads.base import CodeEmbedding
from worldmodel.nn.convnets import CONV
from worldmodel.priors.prior import BINS, SPAN, symexp, two_hot
from worldmodel.tokenizers import Tokenizer
from worldmodel.types import NO_ACTION
from worldmodel.util.ranges import Count, Weights


class RecentFrames(NamedTuple):
    """The last frames that an agent observed, and the actions that led to them."""

    grids: Tensor  # (B, history, *grid) int64, oldest first, −1 before the first frame
    actions: Tensor  # (B, history) int64, NO_ACTION where it is unknown

    def appended(self, grids: Tensor, actions: Tensor) -> Self:
        """Append the next grids (B, *grid) and the actions (B,) that led to them; the oldest are dropped."""
        new = zip(self, (grids, actions), strict=True)
        return type(self)(*(torch.cat([old[:, 1:], value[:, None]], 1) for old, value in new))


class ActorCriticOutput(NamedTuple):
    """Outputs of an actor and its critic for B states."""

    logits: Tensor  # (B, A) float32, of the actions
    value: Tensor  # (B, BINS) float32, logits of the bins of the value


class CodeReader(nn.Module):
    """Windows of grids → features (B, width): embedded codes, two convolutions, a linear layer.

    Args:
        tokenizer: its grid and codebook are read.
        history: grids per window. width: of the features. embed: width of an embedded code. channels: of the
            convolutions.
    """

    def __init__(self, tokenizer: Tokenizer, history: int, width: int, embed: Count = 32, channels: Count = 64):
        super().__init__()
        grid = tokenizer.grid
        conv = CONV[len(grid)]
        self.embed = CodeEmbedding(tokenizer.codebook(), embed)
        stride = 2 if max(grid) > 4 else 1
        self.convs = nn.Sequential(
            conv(history * embed, channels, 3, padding=1),
            nn.GroupNorm(1, channels),
            nn.SiLU(),
            conv(channels, channels, 3, stride=stride, padding=1),
            nn.GroupNorm(1, channels),
            nn.SiLU(),
        )
        with torch.no_grad():
            size = self.convs(torch.zeros(1, history * embed, *grid)).numel()
        self.out = nn.Linear(size, width)

    def forward(self, grids: Tensor) -> Tensor:
        vectors = self.embed(grids).movedim(1, -2).flatten(-2)  # (B, *grid, history · E)
        return self.out(self.convs(vectors.movedim(-1, 1)).flatten(1))


class FrameReader(nn.Module):
    """Windows of grids → features of the decoded frames, for codes that are hard to learn from. Slower, because
    every state is decoded. Real frames also pass through the tokenizer, so that they look like dreamt ones.

    Args:
        tokenizer: decodes; it is not trained.
        history: frames per window. width: of the features. channels: of the convolutions.
    """

    def __init__(self, tokenizer: Tokenizer, history: int, width: int, channels: Count = 32):
        super().__init__()
        self._tokenizer = (tokenizer,)  # in a tuple, where PyTorch does not look for parameters
        shape = tokenizer.frame_shape
        conv = CONV[len(shape) - 1]
        sizes = [history * shape[0], channels, 2 * channels, 2 * channels, 2 * channels]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [conv(inputs, outputs, 4, stride=2, padding=1), nn.GroupNorm(1, outputs), nn.SiLU()]
        self.convs = nn.Sequential(*layers)
        with torch.no_grad():
            size = self.convs(torch.zeros(1, sizes[0], *shape[1:])).numel()
        self.out = nn.Linear(size, width)

    def forward(self, grids: Tensor) -> Tensor:
        tokenizer = self._tokenizer[0].to(grids.device)
        present = (grids.flatten(2) >= 0).all(-1)
        with torch.no_grad():
            frames = tokenizer.expected_frames(grids.clamp(min=0).flatten(0, 1)).unflatten(0, present.shape)
            frames = frames.masked_fill(~present.view(*present.shape, *[1] * (frames.dim() - 2)), 0)
        return self.out(self.convs(frames.flatten(1, 2)).flatten(1))


class Tower(nn.Module):
    """Recent frames → features (B, width) → outputs (B, outputs), which are 0 before training.

    Every layer is normalised, because similar frames differ in few codes and the difference must stay visible.
    """

    def __init__(self, reader: nn.Module, num_actions: int, history: int, width: int, layers: int, outputs: int):
        super().__init__()
        self.reader = reader
        self.act = nn.Embedding(num_actions + 1, 16)
        self.enter = nn.Linear(16 * history, width)
        blocks = [[nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width)] for _ in range(layers)]
        self.body = nn.Sequential(*(layer for block in blocks for layer in block), nn.LayerNorm(width), nn.SiLU())
        self.out = nn.Linear(width, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, recent: RecentFrames) -> Tensor:
        parts = self.reader(recent.grids), self.enter(self.act(recent.actions + 1).flatten(1))
        x = sum(norm(part) for norm, part in zip(self.norms, parts, strict=True))
        return self.out(self.body(x)).float()


class ActorCritic(nn.Module):
    """Policy and value of recent frames.

    The value is a distribution over bins that are equally wide in symlog (Hafner et al., *DreamerV3*, 2023, section
    "Critic learning"), like the predicted rewards, so that returns of any size need no scaling. Initially all actions
    have equal probability and the value is 0. The networks share no weights: while the critic learns the scale of the
    returns, it shifts all features in the same way, and a policy on shared features stopped depending on its input.

    Args:
        tokenizer: of the codes. num_actions: A.
        history: number of recent frames. width, layers: of the networks. reader: constructor of the input network,
            :class:`CodeReader` or :class:`FrameReader`.
        loss_weights: of the terms of the loss; 1 if not given.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        num_actions: int,
        history: Count = 3,
        width: Count = 256,
        layers: Count = 2,
        reader: Callable[..., nn.Module] = CodeReader,
        loss_weights: Weights | None = None,
    ):
        super().__init__()
        self.loss_weights = dict(loss_weights or {})
        self.grid, self.num_actions, self.history = tokenizer.grid, num_actions, history
        self.policy, self.critic = (
            Tower(reader(tokenizer, history=history, width=width), num_actions, history, width, layers, outputs)
            for outputs in (num_actions, BINS)
        )
        self.register_buffer("bins", symexp(torch.linspace(-SPAN, SPAN, BINS)), persistent=False)

    bins: Tensor
    discount: float | None = None  # γ of a step with which the critic was trained; None if it was not saved

    def begin(self, batch: int) -> RecentFrames:
        """The input before the first frame."""
        device = self.bins.device
        grids = torch.full((batch, self.history, *self.grid), -1, dtype=torch.int64, device=device)
        return RecentFrames(grids, torch.full((batch, self.history), NO_ACTION, dtype=torch.int64, device=device))

    def forward(self, recent: RecentFrames) -> ActorCriticOutput:
        return ActorCriticOutput(self.policy(recent), self.critic(recent))

    def expected(self, value: Tensor) -> Tensor:
        """Logits of bins (..., BINS) → the expected value (...)."""
        return value.softmax(-1) @ self.bins

    def value_loss(self, value: Tensor, returns: Tensor) -> Tensor:
        """Cross-entropy of the returns (...) under the logits (..., BINS), unreduced."""
        return -(two_hot(returns, self.bins) * value.log_softmax(-1)).sum(-1)


DISCOUNT = 0.985  # default γ of a step


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
