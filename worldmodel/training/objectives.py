"""Objectives: a batch in, named losses and metrics out. They stand between the loop and the models, and are thin."""

import dataclasses
import math

import torch
from torch import Tensor

from worldmodel.priors import LatentPrior
from worldmodel.quantizers import all_reduce, count_codes
from worldmodel.tokenizers import Autoencoder, Tokenizer
from worldmodel.tokenizers.base import join
from worldmodel.tokenizers.scene import GridVQVAE
from worldmodel.training.base import Augmentation, Losses, Objective
from worldmodel.types import Segment, to_float

MARGIN = 3  # frames of augmented segments beside those that a prior learns from: one at each end, and one to cut from


class TokenizerObjective(Objective):
    """Reconstruction of the valid frames of a segment, and the tokenizer's own terms.

    Metrics: ``psnr`` in dB (peak 2: frames span [-1, 1]); in training also ``usage`` (the share of codes used) and
    ``perplexity`` (exp of the codes' entropy in nats) over the last ``window`` steps of all processes, about an epoch.
    Where there are several codebooks, of slots or of levels, both are means over them. With an exact likelihood also
    ``bits_per_dim``: the negative bound as trained, the cost of the latents with it, in bits per sub-pixel. And the
    figures that the tokenizer reports.

    ``augment``: what is shown instead of the examples in training.
    """

    headline = ("psnr", "bits_per_dim", "usage")
    counters = ("history", "slot")  # their size follows that of the data, which may have grown or lost an episode

    def __init__(self, tokenizer: Autoencoder, window: int = 100, augment: Augmentation | None = None):
        super().__init__()
        self.tokenizer, self.augment = tokenizer, augment
        self.loss_weights = tokenizer.loss_weights
        if isinstance(tokenizer, Tokenizer):
            books = len(tokenizer.books(torch.zeros((1, *tokenizer.grid))))
            self.register_buffer("history", torch.zeros((window, books, tokenizer.num_codes), dtype=torch.int32))
            self.register_buffer("slot", torch.zeros((), dtype=torch.int64))

    history: Tensor  # uses of each code in each step
    slot: Tensor  # the oldest row of history

    def forward(self, batch: Segment, generator: torch.Generator) -> Losses:
        if batch.frames is None:
            raise ValueError("a tokenizer is trained on frames; this segment has codes only")
        frames, conditions = self._examples(batch.frames, batch)
        if self.training and self.augment is not None:
            frames = self.augment(frames, generator)
        result = self.tokenizer(frames, generator, conditions)
        error = (result.frames.detach().clamp(-1, 1) - to_float(frames)).square().mean()
        metrics = {**(result.figures or {}), "psnr": -10 * torch.log10(error.clamp(min=1e-10) / 4)}
        if result.nats is not None:
            metrics["bits_per_dim"] = result.nats / math.log(2)
        if self.training and result.codes is not None:
            metrics |= self._usage(result.codes)
        return Losses(result.losses, metrics)

    def _examples(self, raw: Tensor, batch: Segment) -> tuple[Tensor, Tensor]:
        """What is coded at once, (M, C, *size) uint8, and the condition of each, (M,): frames, or windows of sound."""
        if not self.tokenizer.joined:
            return batch.steps_of(raw), batch.steps_of(batch.actions)
        if batch.padded:
            raise ValueError("signals are coded whole, and a part of this segment is padding")
        return join(raw), batch.actions[:, -1]

    @torch.no_grad()
    def _usage(self, codes: Tensor) -> dict[str, Tensor]:
        assert isinstance(self.tokenizer, Tokenizer)
        vocabulary = self.history.shape[-1]
        books = self.tokenizer.books(codes)  # -1 where a code was left out, counted apart
        found = [count_codes(part.flatten() + 1, vocabulary + 1)[1:] for part in books]
        self.history.index_copy_(0, self.slot[None], all_reduce(torch.stack(found).to(torch.int32))[None])
        self.slot.copy_((self.slot + 1) % len(self.history))
        uses = self.history.sum(0, dtype=torch.float64)
        entropy = torch.special.entr(uses / uses.sum(-1, keepdim=True)).sum(-1)
        return {"usage": (uses > 0).double().mean(), "perplexity": entropy.exp().mean()}


class SecondObjective(Objective):
    """The terms of a second stage for the grids of codes of a first. Metric: ``bits_per_frame``, those of its own few
    codes included."""

    headline = ("bits_per_frame",)

    def __init__(self, second: GridVQVAE):
        super().__init__()
        self.second = second
        self.loss_weights = second.loss_weights

    def forward(self, batch: Segment, generator: torch.Generator) -> Losses:
        if batch.codes is None:
            raise ValueError("a second stage is trained on codes, not on frames")
        grids = batch.steps_of(batch.codes)
        terms, _ = self.second(grids, generator)
        own = math.prod(self.second.grid) * math.log2(self.second.num_codes)
        bits = terms["grid"].detach() * grids[0].numel() / math.log(2) + own
        return Losses(terms, {"bits_per_frame": bits})


class PriorObjective(Objective):
    """The terms and metrics that a prior states for a segment: of codes, or of latents that are drawn for its frames.

    ``model`` draws them. It stays as it is: it is no part of what is trained or saved. ``augment``: of the windows of
    sound of a training segment, which is ``MARGIN`` frames longer. Their signal is varied and cut at a random sample,
    so that the same sound has other codes every time; the codes near both ends are left out.
    """

    headline = ("bits_per_frame",)

    def __init__(self, prior: LatentPrior, model: Autoencoder | None = None, augment: Augmentation | None = None):
        super().__init__()
        self.prior, self.augment = prior, augment
        self.loss_weights = prior.loss_weights
        self._model = (model,)  # in a tuple, where PyTorch does not look for parameters

    def forward(self, batch: Segment, generator: torch.Generator) -> Losses:
        (model,) = self._model
        if batch.frames is not None and isinstance(model, Tokenizer) and self.augment is not None:
            batch = self._varied(batch, batch.frames, model, self.augment, generator)
        elif batch.frames is not None and model is not None:
            latents = model.to(batch.frames.device).latents(batch.frames.flatten(0, 1), generator)
            latents = latents.unflatten(0, batch.actions.shape)
            batch = dataclasses.replace(batch, frames=None, codes=latents)
        return Losses(*self.prior.losses(batch, generator))

    @staticmethod
    def _varied(
        batch: Segment, frames: Tensor, tokenizer: Tokenizer, augment: Augmentation, generator: torch.Generator
    ) -> Segment:
        """The segment with codes of its varied signals instead of its frames, without the margin."""
        steps, size = frames.shape[1], frames.shape[-1]
        first = torch.randint(size, (), generator=generator, device=generator.device).to(frames.device)
        samples = first + torch.arange((steps - 1) * size, device=frames.device)  # the host does not wait for the first
        signals = augment(join(frames), generator)[..., samples]
        codes = tokenizer.to(frames.device).encode(signals).unflatten(1, (steps - 1, -1))
        names = ("actions", "rewards", "terminated", "truncated", "valid")
        return Segment(**{name: getattr(batch, name)[:, 1:-2] for name in names}, codes=codes[:, 1:-1])
