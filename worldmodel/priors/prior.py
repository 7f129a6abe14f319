"""The prior of the world model: a trunk, a head, outcomes; training losses, exact likelihood and stepping."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from worldmodel.heads.base import CodeEmbedding, GridSpec, Head, nats
from worldmodel.heads.noise import Randomness
from worldmodel.heads.sampling import Ancestral, Sampler
from worldmodel.nn.float32 import full_float32
from worldmodel.nn.modules import Logits, dtype_of, uniform
from worldmodel.priors.base import LatentPrior, PriorState, Sample, Step, Terms, Trunk
from worldmodel.priors.recorded import Parts, recorded_step
from worldmodel.tokenizers.base import Autoencoder, require_codes
from worldmodel.types import Segment
from worldmodel.util.ranges import Count, Share, Weights, Whole

BINS = 65
SPAN = 8.0  # the outermost bins are ±symexp(8) ≈ ±2,980


def symexp(x: Tensor) -> Tensor:
    """sign(x)·(exp|x| − 1): the inverse of symlog (Hafner et al., DreamerV3, 2023, eq. 9)."""
    return x.sign() * torch.expm1(x.abs())


def two_hot(values: Tensor, bins: Tensor) -> Tensor:
    """Scalars (...) → weights (..., len(bins)) on the two neighbouring bins with that mean (same paper, eq. 10).

    Values outside the bins are clamped to the outermost ones.
    """
    low, share = between(values, bins)
    share = share[..., None]
    return F.one_hot(low, len(bins)) * (1 - share) + F.one_hot(low + 1, len(bins)) * share


def between(values: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Scalars (...) → the index of the bin below each, (...) int64, and the weight of the next bin, (...)."""
    values = values.clamp(bins[0], bins[-1])
    index = torch.searchsorted(bins[1:-1], values.contiguous(), right=True)
    low, high = bins.unfold(0, 2, 1)[index].unbind(-1)
    return index, (values - low) / (high - low)


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
        self.bins = nn.Buffer(symexp(torch.linspace(-SPAN, SPAN, BINS)), persistent=False)

    def forward(self, contexts: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        x = F.silu(self.enter(contexts) + self.embed(codes) + self.position)
        x = F.silu(self.mix(x))
        x = F.silu(self.hidden(torch.cat([x.mean(-2), x.amax(-2)], -1)))
        weight, bias = (torch.cat(pair) for pair in zip(self.reward.parameters(), self.end.parameters(), strict=True))
        reward, end = F.linear(x, weight, bias).float().split([BINS, 1], -1)
        return reward, end.squeeze(-1)

    def expected(self, contexts: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """contexts (M, N, C), codes (M, N) → expected reward and probability of an end, both (M,) float32."""
        rewards, ends = self(contexts, codes)
        return rewards.softmax(-1) @ self.bins.float(), ends.sigmoid()

    def losses(self, logits: tuple[Tensor, Tensor], rewards: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropies of reward and end for targets of the same leading shape, unreduced."""
        reward_logits, end_logits = logits
        low, share = between(rewards, self.bins.float())
        near = reward_logits.log_softmax(-1).gather(-1, torch.stack([low, low + 1], -1))
        reward = (near * torch.stack([share - 1, -share], -1)).sum(-1)
        return reward, F.binary_cross_entropy_with_logits(end_logits, ends.float(), reduction="none")


class Prior(LatentPrior):
    """p(grid t | grids < t, actions ≤ t), its reward and its end.

    Args:
        tokenizer: gives the grid, K and the codebook; it is not kept.
        action_names: of the actions (or classes, or speakers).
        trunk, head: constructors, called with a :class:`~worldmodel.heads.base.GridSpec`; the head with the width of
            the trunk's contexts, too.
        context: leading frames of a training segment that are seen but not predicted.
        forget: share of the training segments whose oldest frames (a random number of them) are hidden, so that dreams
            may start from fewer frames than ``context``.
        corrupt: largest share of the seen codes of a training segment that are replaced by random ones (each segment
            draws its share from 0 to this), so that dreams are robust to their own errors; 0 for none.
        corrupt_recent: number of the latest seen frames whose codes are replaced, so that older ones in a memory can be
            relied on; null for all.
        confuse: share of the training segments in whose latest ``corrupt_recent`` seen frames (null: in all) a block of
            columns shows what another segment has there, so that a memory is relied on where dreamt frames have become
            wrong; 0 for none.
        outcomes: whether frames have rewards and ends. If not, none are learnt, and those of a step are zeros.
        loss_weights: of the terms of training; 1 where none is given.
    """

    def __init__(
        self,
        tokenizer: Autoencoder,
        action_names: Sequence[str],
        trunk: Callable[..., Trunk],
        head: Callable[..., Head],
        context: Whole = 1,
        forget: Share = 0.0,
        corrupt: Share = 0.0,
        corrupt_recent: Count | None = None,
        confuse: Share = 0.0,
        outcomes: bool = True,
        loss_weights: Weights | None = None,
    ):
        super().__init__(action_names, loss_weights)
        tokenizer = require_codes(tokenizer)
        levels = tokenizer.levels if len(tokenizer.levels) > 1 else ()
        spec = GridSpec(tokenizer.grid, tokenizer.codebook(), self.action_names, levels)
        self.grid, self.num_codes, self.context = tokenizer.grid, tokenizer.num_codes, context
        self.forget, self.corrupt, self.corrupt_recent, self.confuse = forget, corrupt, corrupt_recent, confuse
        self.positions = spec.positions
        self.columns = nn.Buffer(torch.arange(1, self.grid[-1] + 1), persistent=False)  # where each column ends
        self.trunk = trunk(spec)
        self.lead = max(context, self.trunk.lead)
        self.sees_actions = self.trunk.sees_actions
        self.head = head(spec, self.trunk.width)
        self.outcomes = OutcomeHead(spec.codebook, self.positions, self.trunk.width) if outcomes else None

    def condition_index(self, name: str) -> int:
        """Also of a caption, which may be new. Raises :class:`UnknownActionError` for an unknown word."""
        index = self.trunk.learn(name)
        return super().condition_index(name) if index is None else index

    def prepare(self, sample: Sample, generator: Generator) -> str:
        return self.trunk.prepare(sample, generator)

    def contexts(self, codes: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        """codes (B, T, *grid), actions (B, T) → contexts (B, T − first, N, width), those of step t without codes t."""
        nothing = torch.full_like(codes[:, :1], -1)
        return self.trunk(torch.cat([nothing, codes[:, :-1]], 1), actions, first).to(dtype_of(self.head))

    def forward(self, codes: Tensor, actions: Tensor) -> Tensor:
        """codes (B, T, *grid) int64, actions (B, T) int64 (the action that led to the frame, −1 for none) → logits
        (B, T, N, K) of every code, given those before it."""
        contexts = self.contexts(codes, actions).flatten(0, 1)
        return self.head(codes.flatten(2).flatten(0, 1), contexts).unflatten(0, codes.shape[:2])

    def log_likelihood(self, latents: Tensor, actions: Tensor) -> Tensor:
        with full_float32(latents.device):
            return -nats(self(latents, actions), latents.flatten(2)).sum(-1)

    def predict_outcomes(self, codes: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Expected reward and probability of an end at every frame, both (B, T) float32; zeros without outcomes."""
        if self.outcomes is None:
            rewards, ends = torch.zeros(2, *actions.shape, device=actions.device)
        else:
            contexts = self.contexts(codes, actions).flatten(0, 1)
            rewards, ends = self.outcomes.expected(contexts, codes.flatten(2).flatten(0, 1))
        return rewards.view(actions.shape), ends.view(actions.shape)

    def losses(self, segment: Segment, generator: Generator | None = None) -> tuple[Terms, Terms]:
        """Terms to minimise and figures to report; steps before ``context`` and padding do not count.

        Terms: ``codes`` (nats per code), ``forecast`` (nats per code of the independent guess), ``reward`` and ``end``
        (cross-entropies, nats per frame; not without outcomes). Metrics: ``bits_per_frame``, ``bits_per_code``.
        """
        if segment.codes is None:
            raise ValueError("the prior is trained on segments of codes, not of frames")
        codes, first = segment.codes, self.lead
        history, actions = self._forget(self._disturb(codes, generator), segment, generator)
        contexts = self.contexts(history, actions, first).flatten(0, 1)
        target = codes[:, first:].flatten(2).flatten(0, 1)
        weight = segment.valid[:, first:].flatten().float()
        weight = weight / weight.sum().clamp(min=1)
        terms = {"codes": self.head.mean_nats(target, contexts)}
        terms["forecast"] = nats(self.head.forecast(contexts), target).mean(-1)
        if self.outcomes is not None:
            facts = segment.rewards[:, first:].flatten(), segment.terminated[:, first:].flatten()
            terms["reward"], terms["end"] = self.outcomes.losses(self.outcomes(contexts, target), *facts)
        means = torch.stack(list(terms.values())).float() @ weight
        terms = dict(zip(terms, means.unbind(), strict=True))
        bits = terms["codes"].detach() / math.log(2)
        return terms, {"bits_per_code": bits, "bits_per_frame": bits * self.positions}

    def _disturb(self, codes: Tensor, generator: Generator | None) -> Tensor:
        """In training, make codes of the latest seen frames wrong; targets are taken from the true ones."""
        if not self.training or self.corrupt == self.confuse == 0:
            return codes
        first = max(self.lead - (self.corrupt_recent or self.lead), 0)
        recent = codes[:, first:]
        if self.corrupt:
            recent = self._corrupt(codes, first, generator)
        if self.confuse:
            recent = self._confuse(recent, generator)
        return torch.cat([codes[:, :first], recent], 1)

    def _corrupt(self, codes: Tensor, first: int, generator: Generator | None) -> Tensor:
        """The codes of the frames from ``first`` on, some of them replaced by random ones."""
        share = self.corrupt * uniform(codes.shape[:1], codes.device, generator)
        noise = uniform(codes.shape, codes.device, generator)[:, first:]
        device = codes.device if generator is None else generator.device
        others = torch.randint(0, self.num_codes, codes.shape, generator=generator, device=device)
        wrong = noise < share.view(-1, *[1] * (codes.dim() - 1))
        return torch.where(wrong, others[:, first:].to(codes.device), codes[:, first:])

    def _confuse(self, codes: Tensor, generator: Generator | None) -> Tensor:
        """The codes, in some rows with a block of columns of another row."""
        count, columns = len(codes), codes.shape[-1]
        chosen = uniform((count, 1), codes.device, generator) < self.confuse
        borders = uniform((count, 2, 1), codes.device, generator) * (columns + 1)
        one, other = (borders < self.columns).unbind(1)
        block = chosen & (one != other)  # (B, columns): between the borders, which are in any order
        return torch.where(block.view(count, *[1] * (codes.dim() - 2), columns), codes.roll(1, 0), codes)

    def _forget(self, codes: Tensor, segment: Segment, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Codes and actions without padding and, in training, without the oldest frames of some rows; at least one
        seen frame stays."""
        actions = segment.actions
        if not self.training or self.forget == 0 or self.lead < 2:
            hidden = ~segment.valid
        else:
            kept = uniform(codes.shape[:1], codes.device, generator) >= self.forget
            device = codes.device if generator is None else generator.device
            count = torch.randint(1, self.lead, (len(codes),), generator=generator, device=device).to(codes.device)
            count = count.masked_fill(kept, -1)[:, None]
            step = torch.arange(codes.shape[1], device=codes.device)
            # The action that led to the first visible frame is unknown, too.
            actions = actions.masked_fill(step <= count, -1)
            hidden = torch.where(segment.valid, step < count, True)
        return codes.masked_fill(hidden.view(*hidden.shape, *[1] * len(self.grid)), -1), actions

    def begin(self, batch: int) -> PriorState:
        device = next(self.parameters()).device
        nothing = torch.full((batch, *self.grid), -1, dtype=torch.int64, device=device)
        return PriorState(self.trunk.begin(batch), nothing)

    def observe(self, state: PriorState, codes: Tensor, actions: Tensor) -> PriorState:
        """The state after a seen frame: codes (B, *grid), the action that led to it (B,), −1 for none."""
        return PriorState(self.trunk.observe(state.trunk, state.previous, actions), codes)

    def step(
        self, state: PriorState, actions: Tensor, sampler: Sampler, generator: Randomness = None
    ) -> tuple[Step, PriorState]:
        device = actions.device
        chosen = sampler.fastest(self.head, device, len(actions))
        if isinstance(chosen, Ancestral) and chosen.recordable(self.head, device) and not torch.is_grad_enabled():
            parts = Parts(self, self.trunk, self.head, self.arrived)
            return recorded_step(parts, chosen, state, actions, generator)
        contexts, trunk = self.trunk.step(state.trunk, state.previous, actions)
        contexts = contexts.to(dtype_of(self.head))  # the head, which decides on codes, is never in bfloat16
        codes, passes = sampler.sample(self.head, contexts, generator)
        grids, rewards, ends = self.arrived(contexts, codes)
        return Step(grids, rewards, ends, passes), PriorState(trunk, grids)

    def arrived(self, contexts: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """contexts (B, N, width), drawn codes (B, N) → grids (B, *grid), expected rewards and probabilities of an end,
        both (B,)."""
        if self.outcomes is None:
            rewards, ends = torch.zeros(2, len(codes), device=codes.device)
        else:
            rewards, ends = self.outcomes.expected(contexts, codes)
        return codes.unflatten(1, self.grid), rewards, ends
