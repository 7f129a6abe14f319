"""Objectives: a batch in, named losses and metrics out. They stand between the loop and the models, and are thin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worldmodel.priors import Prior
from worldmodel.quantizers import all_reduce
from worldmodel.tokenizers import Autoencoder, Tokenizer
from worldmodel.training.base import Losses, Objective
from worldmodel.types import Segment, to_float


class TokenizerObjective(Objective):
    """Reconstruction of the valid frames of a segment, and the tokenizer's own terms.

    Metrics: ``psnr`` in dB (peak 2: frames span [-1, 1]); in training also ``usage`` (the share of codes used) and
    ``perplexity`` (exp of the codes' entropy in nats) over the last ``window`` steps of all processes, about an epoch.
    Where a grid has slots with codebooks of their own, both are means over these. With an exact likelihood also
    ``bits_per_dim``: the negative bound as trained, the cost of the latents with it, in bits per sub-pixel.
    """

    headline = ("psnr", "bits_per_dim", "usage")
    counters = ("history", "slot")  # their size follows that of the data, which may have grown or lost an episode

    def __init__(self, tokenizer: Autoencoder, window: int = 100):
        super().__init__()
        self.tokenizer = tokenizer
        if isinstance(tokenizer, Tokenizer):
            shape = (window, *tokenizer.slots, tokenizer.codes)
            self.register_buffer("history", torch.zeros(shape, dtype=torch.int32))  # uses in each step
            self.register_buffer("slot", torch.zeros((), dtype=torch.int64))  # the oldest row of history

    history: Tensor
    slot: Tensor

    def forward(self, batch: Segment, generator: torch.Generator) -> Losses:
        if batch.frames is None:
            raise ValueError("a tokenizer is trained on frames; this segment has codes only")
        frames = to_float(batch.frames[batch.valid])  # (M, C, *size)
        result = self.tokenizer(frames, generator)
        error = (result.frames.detach().clamp(-1, 1) - frames).square().mean()
        metrics = {"psnr": -10 * torch.log10(error.clamp(min=1e-10) / 4)}
        if result.nats is not None:
            metrics["bits_per_dim"] = result.nats / math.log(2)
        if self.training and result.codes is not None:
            metrics |= self._usage(result.codes)
        return Losses(result.losses, metrics)

    @torch.no_grad()
    def _usage(self, codes: Tensor) -> dict[str, Tensor]:
        _, *slots, vocabulary = self.history.shape
        counts = code_counts(codes, tuple(slots), vocabulary).to(torch.int32)
        self.history.index_copy_(0, self.slot[None], all_reduce(counts)[None])
        self.slot.copy_((self.slot + 1) % len(self.history))
        uses = self.history.sum(0, dtype=torch.float64)
        entropy = torch.special.entr(uses / uses.sum(-1, keepdim=True)).sum(-1)
        return {"usage": (uses > 0).double().mean(), "perplexity": entropy.exp().mean()}


def code_counts(codes: Tensor, slots: tuple[int, ...], vocabulary: int) -> Tensor:
    """How often each code occurs in each slot: codes (..., *slots) int64 in [0, K) → (*slots, K) int64."""
    books = math.prod(slots)
    offsets = vocabulary * torch.arange(books, device=codes.device)  # the books one behind the other
    return torch.bincount((codes.reshape(-1, books) + offsets).flatten(), minlength=books * vocabulary).view(*slots, -1)


class PriorObjective(Objective):
    """The terms and metrics that a prior states for a segment of codes: likelihood, rewards, ends."""

    headline = ("bits_per_frame",)

    def __init__(self, prior: Prior):
        super().__init__()
        self.prior = prior

    def forward(self, batch: Segment, generator: torch.Generator) -> Losses:
        terms, metrics = self.prior.losses(batch, generator)
        return Losses(terms, metrics)
