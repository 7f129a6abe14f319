"""The prior of the world model: a trunk, a head, outcomes; training losses, exact likelihood and stepping."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worldmodel.heads.base import GridSpec, Head, nats
from worldmodel.heads.sampling import Randomness, Sampler
from worldmodel.priors.base import LatentPrior, PriorOutput, PriorState, Step, Trunk
from worldmodel.priors.outcomes import OutcomeHead
from worldmodel.tokenizers.base import Autoencoder, require_codes
from worldmodel.types import Segment
from worldmodel.util.ranges import Share, Weights, Whole


class Prior(LatentPrior):
    """p(grid t | grids < t, actions ≤ t), its reward and its end.

    Args:
        tokenizer: gives the grid, K and the codebook; it is not kept.
        action_names: of the actions (or classes, or speakers).
        trunk, head: constructors, called with a :class:`~worldmodel.heads.base.GridSpec`; the head with the width of
            the trunk's contexts, too.
        context: leading frames of a training segment that are seen but not predicted (0 for one-step sources).
        forget: share of the training segments whose oldest frames (a random number of them) are hidden, so that dreams
            may start from fewer frames than ``context``.
        corrupt: largest share of the seen codes of a training segment that are replaced by random ones (each segment
            draws its share from 0 to this), so that a dream survives its own mistakes; 0 for none.
        outcomes: whether frames have rewards and ends. Without, none are learnt, and a step's are zeros.
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
        outcomes: bool = True,
        loss_weights: Weights | None = None,
    ):
        super().__init__(action_names)
        self.loss_weights = dict(loss_weights or {})
        tokenizer = require_codes(tokenizer)
        levels = tokenizer.levels if len(tokenizer.levels) > 1 else ()
        spec = GridSpec(tokenizer.grid, tokenizer.codebook(), self.action_names, levels)
        self.grid, self.num_codes, self.context = tokenizer.grid, tokenizer.num_codes, context
        self.forget, self.corrupt = forget, corrupt
        self.positions = spec.positions
        self.trunk = trunk(spec)
        self.head = head(spec, self.trunk.width)
        self.outcomes = OutcomeHead(spec.codebook, self.positions, self.trunk.width) if outcomes else None

    @property
    def sees_actions(self) -> bool:
        return self.trunk.sees_actions

    def condition_index(self, name: str) -> int:
        """Also of a caption, which may be new. Raises :class:`UnknownActionError` for a word that the data lack."""
        index = self.trunk.learn(name)
        return super().condition_index(name) if index is None else index

    def contexts(self, codes: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        """codes (B, T, *grid), actions (B, T) → contexts (B, T − first, N, width); step t does not see codes t."""
        nothing = torch.full_like(codes[:, :1], -1)
        return self.trunk(torch.cat([nothing, codes[:, :-1]], 1), actions, first).to(self.head_dtype)

    def forward(self, codes: Tensor, actions: Tensor) -> PriorOutput:
        """codes (B, T, *grid) int64, actions (B, T) int64 (the action that led to the frame, −1 for none)."""
        batch = codes.shape[:2]
        contexts = self.contexts(codes, actions).flatten(0, 1)
        flat = codes.flatten(2).flatten(0, 1)
        logits = self.head(flat, contexts).unflatten(0, batch)
        forecast = self.head.forecast(contexts).unflatten(0, batch)
        if self.outcomes is None:
            return PriorOutput(logits, forecast, None, None)
        rewards, ends = self.outcomes(contexts, flat)
        return PriorOutput(logits, forecast, rewards.unflatten(0, batch), ends.unflatten(0, batch))

    def log_likelihood(self, latents: Tensor, actions: Tensor) -> Tensor:
        logits = self(latents, actions).logits
        return -nats(logits, latents.flatten(2)).sum(-1)

    def predict_outcomes(self, codes: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Expected reward and probability of an end at every frame, both (B, T) float32; zeros without outcomes."""
        if self.outcomes is None:
            nothing = torch.zeros(actions.shape, device=actions.device)
            return nothing, nothing.clone()
        contexts = self.contexts(codes, actions).flatten(0, 1)
        rewards, ends = self.outcomes(contexts, codes.flatten(2).flatten(0, 1))
        expected = self.outcomes.expected_reward(rewards)
        return expected.unflatten(0, codes.shape[:2]), ends.sigmoid().unflatten(0, codes.shape[:2])

    def losses(
        self, segment: Segment, generator: torch.Generator | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Terms to minimise and figures to report; steps before ``context`` and padding do not count.

        Terms: ``codes`` (nats per code), ``forecast`` (nats per code of the independent guess), ``reward`` and ``end``
        (cross-entropies, nats per frame; not without outcomes). Metrics: ``bits_per_frame``, ``bits_per_code``.
        """
        if segment.codes is None:
            raise ValueError("the prior is trained on segments of codes, not of frames")
        codes, first = segment.codes, self.context
        absent = ~segment.valid.view(*segment.valid.shape, *[1] * len(self.grid))
        history = self._corrupt(codes, generator).masked_fill(absent, -1)
        contexts = self.contexts(*self._forget(history, segment.actions, generator), first).flatten(0, 1)
        target = codes[:, first:].flatten(2).flatten(0, 1)
        weight = segment.valid[:, first:].flatten().float()
        weight = weight / weight.sum().clamp(min=1)
        code = self.head.mean_nats(target, contexts) @ weight
        guess = nats(self.head.forecast(contexts), target).mean(-1) @ weight
        terms = {"codes": code, "forecast": guess}
        if self.outcomes is not None:
            facts = segment.rewards[:, first:].flatten(), segment.terminated[:, first:].flatten()
            reward, end = self.outcomes.losses(self.outcomes(contexts, target), *facts)
            terms |= {"reward": reward @ weight, "end": end @ weight}
        bits = code.detach() / math.log(2)
        return terms, {"bits_per_code": bits, "bits_per_frame": bits * self.positions}

    def _corrupt(self, codes: Tensor, generator: torch.Generator | None) -> Tensor:
        """In training, replace some codes by random ones; targets are taken from the true ones."""
        if not self.training or self.corrupt == 0:
            return codes
        device = codes.device if generator is None else generator.device
        share = self.corrupt * torch.rand(len(codes), generator=generator, device=device)
        draw = torch.rand(codes.shape, generator=generator, device=device)
        others = torch.randint(0, self.num_codes, codes.shape, generator=generator, device=device)
        wrong = draw < share.view(-1, *[1] * (codes.dim() - 1))
        return torch.where(wrong.to(codes.device), others.to(codes.device), codes)

    def _forget(self, codes: Tensor, actions: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """In training, hide the oldest frames of some rows; at least one seen frame stays."""
        if not self.training or self.forget == 0 or self.context < 2:
            return codes, actions
        device = codes.device if generator is None else generator.device
        chance = torch.rand(len(codes), generator=generator, device=device)
        count = torch.randint(1, self.context, (len(codes),), generator=generator, device=device)
        hidden = torch.where(chance < self.forget, count, 0).to(codes.device)
        # The action that led to the first visible frame is unknown, too.
        unknown = (torch.arange(codes.shape[1], device=codes.device) <= hidden[:, None]) & (hidden[:, None] > 0)
        gone = torch.arange(codes.shape[1], device=codes.device) < hidden[:, None]
        shape = (*gone.shape, *[1] * len(self.grid))
        return codes.masked_fill(gone.view(shape), -1), actions.masked_fill(unknown, -1)

    def begin(self, batch: int) -> PriorState:
        device = next(self.parameters()).device
        nothing = torch.full((batch, *self.grid), -1, dtype=torch.int64, device=device)
        return PriorState(self.trunk.begin(batch), nothing)

    def observe(self, state: PriorState, codes: Tensor, actions: Tensor) -> PriorState:
        """Take in a frame that was seen: codes (B, *grid), the action that led to it (B,), −1 for none."""
        return PriorState(self.trunk.observe(state.trunk, state.previous, actions), codes)

    def step(
        self, state: PriorState, actions: Tensor, sampler: Sampler, generator: Randomness = None
    ) -> tuple[Step, PriorState]:
        contexts, trunk = self.trunk.step(state.trunk, state.previous, actions)
        contexts = contexts.to(self.head_dtype)  # the trunk may run in bfloat16; the head decides on codes and does not
        codes, passes = sampler.sample(self.head, contexts, generator)
        grids = codes.unflatten(1, self.grid)
        if self.outcomes is None:
            nothing = torch.zeros(len(codes), device=codes.device)
            return Step(grids, nothing, nothing.clone(), passes), PriorState(trunk, grids)
        rewards, ends = self.outcomes(contexts, codes)
        step = Step(grids, self.outcomes.expected_reward(rewards), ends.sigmoid(), passes)
        return step, PriorState(trunk, grids)

    @property
    def head_dtype(self) -> torch.dtype:
        return next(self.head.parameters()).dtype
