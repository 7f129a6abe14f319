"""The interfaces of autoencoders, and of those among them that make codes: tokenizers."""

from __future__ import annotations

import abc
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.likelihoods.base import Likelihood
from worldmodel.nn.precision import cast
from worldmodel.types import NO_ACTION


class Reconstruction(NamedTuple):
    """What an autoencoder returns in training."""

    frames: Tensor  # (B, C, *size) float32, about [-1, 1]: what is to be looked at and measured, no loss
    codes: Tensor | None  # (B, *grid) int64; None where there are none
    losses: dict[str, Tensor]  # named scalar terms
    nats: Tensor | None = None  # () per sub-pixel: the negative bound as trained, detached; None if there is no bound
    figures: dict[str, Tensor] | None = None  # named scalars that are looked at beside the losses, detached


class Bound(NamedTuple):
    """A bound on −log p(x) and its parts, in nats per frame; with samples it is one on average over the draws."""

    total: Tensor  # (B,) float32
    reconstruction: Tensor  # (B,) float32: −log p(x|z) of the z of the posterior

    @property
    def latents(self) -> Tensor:
        """(B,): what the latents cost."""
        return self.total - self.reconstruction


def importance_weighted(conditional: Tensor, weights: Tensor) -> Bound:
    """The bound of S samples z_s of q, L_S = E log (1/S) Σ_s w_s, w_s = p(x, z_s) / q(z_s|x) (Burda et al., 2016).

    ``weights`` (S, B) are log w_s, ``conditional`` (S, B) log p(x|z_s), in nats.

    Its reconstruction is the mean of −log p(x|z_s) with the shares of the w_s, as the samples enter the bound: in the
    plain mean those that hardly count would drown the others.
    """
    total = math.log(len(weights)) - weights.logsumexp(0)
    return Bound(total, -(weights.softmax(0) * conditional).sum(0))


class Autoencoder(nn.Module, abc.ABC):
    """An observation (C, *size) ↔ latents of a fixed shape. Sizes are facts of the data, passed at construction."""

    frame_shape: tuple[int, ...]  # (C, *size)
    grid: tuple[int, ...]  # the shape of the latents of a frame
    likelihood: Likelihood
    certain: bool = True  # the posterior of the latents is a point; otherwise bounds are drawn
    told: bool = False  # the decoder knows the condition (action, class, speaker): methods take ``conditions``

    @abc.abstractmethod
    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Reconstruction:
        """Frames (B, C, *size) float in [-1, 1] → :class:`Reconstruction`; updates the codebook in training mode."""

    @abc.abstractmethod
    def bound(self, frames: Tensor, generator: torch.Generator | None = None, samples: int = 1) -> Bound:
        """The bound on log p(frames) under the fixed prior of the latents, by ``samples`` draws of each frame.

        Frames (B, C, *size) float in [-1, 1] → :class:`Bound`. Where it draws, its mean over the draws is the bound,
        and the same generator gives the same figure. Raises :class:`ConfigError` when the likelihood is not exact.
        """

    @abc.abstractmethod
    def reconstruct(self, frames: Tensor) -> Tensor:
        """Frames (B, C, *size) → the expected frames under their most probable latents, about [-1, 1]."""

    def stages(self, frames: Tensor, generator: torch.Generator | None = None) -> list[tuple[str, Tensor]]:
        """Named reconstructions to be looked at: of every stage, where there are several."""
        return [("reconstruction", self.reconstruct(frames))]

    @property
    def joined(self) -> bool:
        """Whether the frames of an episode are the windows of one signal, which is coded as a whole: sound."""
        return len(self.frame_shape) == 2

    def decode_in(self, dtype: torch.dtype) -> None:
        """Bring the decoder, and nothing that decides on codes, into another number format, in place."""
        for name, module in self.named_modules():
            if name.rpartition(".")[-1] == "decoder":
                cast(module, dtype)

    @property
    def subpixels(self) -> int:
        """D: the numbers of a frame, C · size; bits per dimension are bits per frame / D."""
        return math.prod(self.frame_shape)

    def require_exact(self) -> None:
        """Raises :class:`ConfigError` when no bound on bits can be made of the likelihood."""
        if not self.likelihood.exact:
            raise ConfigError(
                f"{type(self.likelihood).__name__} is no likelihood of levels, so there is no bound on bits; "
                "choose Categorical or LogisticMixture as tokenizer.likelihood"
            )


class Tokenizer(Autoencoder):
    """An observation (C, *size) ↔ a grid of integers in [0, K)."""

    slots: tuple[int, ...] = ()  # the last axes of the grid, where every place has a codebook of its own
    codes: int  # K

    @abc.abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """(B, C, *size) float in [-1, 1] → (B, *grid) int64."""

    @abc.abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """(B, *grid) int64 → (B, C, *size) float32, about [-1, 1]."""

    def draw(
        self,
        codes: Tensor,
        conditions: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Frames as the decoder draws them, where it draws: those of :meth:`decode` are what it expects.

        Codes (B, *grid), conditions (B,) for a decoder that is told one → (B, C, *size) float32.
        """
        return self.decode(codes)

    def draw_episode(
        self,
        codes: Tensor,
        condition: int = NO_ACTION,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Codes (T, *grid) of one episode → its frames, (T, C, *size) float32; of sound, one signal is drawn."""
        conditions = torch.full((1 if self.joined else len(codes),), condition, device=codes.device)
        if not self.joined:
            return self.draw(codes, conditions, generator, temperature)
        signal = self.draw(codes.flatten(0, 1)[None], conditions, generator, temperature)
        return signal[0].unflatten(-1, (len(codes), -1)).movedim(0, 1)

    @abc.abstractmethod
    def codebook(self) -> Tensor:
        """(K, D), or (*slots, K, D of one code): the vectors of the codes, the start of a prior's embedding."""

    def bound(self, frames: Tensor, generator: torch.Generator | None = None, samples: int = 1) -> Bound:
        """−log p(frames | their codes) + N ln K: the posterior is a point, so nothing is drawn."""
        reconstruction = self.given(frames, self.encode(frames))
        return Bound(reconstruction + self.uniform_nats(), reconstruction)

    def trained_nats(self, losses: dict[str, Tensor]) -> Tensor | None:
        """The same per sub-pixel, (), from the loss terms of training; None if the likelihood is not exact."""
        if not self.likelihood.exact:
            return None
        return losses["reconstruction"].detach() + self.uniform_nats() / self.subpixels

    def given(self, frames: Tensor, codes: Tensor) -> Tensor:
        """−log p(frames | codes) in nats, (B,). Raises :class:`ConfigError` when the likelihood is not exact."""
        self.require_exact()
        raise NotImplementedError(f"{type(self).__name__} does not say how likely a frame is")

    def grid_nats(self, frames: Tensor) -> Tensor | None:
        """−log p(the first stage's grid | codes) in nats, (B,), of a tokenizer of two stages; None for others."""
        return None

    def reconstruct(self, frames: Tensor) -> Tensor:
        return self.decode(self.encode(frames))

    def encode_episode(self, frames: Tensor) -> Tensor:
        """Frames of one episode in their order, (T, C, *size) float → codes (T, *grid)."""
        if not self.joined:
            return self.encode(frames)
        return self.encode(join(frames[None]))[0].unflatten(0, (len(frames), -1))

    @property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the grids of a frame, the coarsest first; one, unless the tokenizer is a hierarchy."""
        return (self.grid,)

    def books(self, codes: Tensor) -> list[Tensor]:
        """Codes (B, *grid) → those of each codebook, one part for each."""
        if not self.slots:
            return [codes]
        return list(codes.flatten(-len(self.slots)).unbind(-1))

    def uniform_nats(self) -> float:
        """N ln K: what the codes of a frame cost under a uniform prior."""
        return math.prod(self.grid) * math.log(self.codes)


def join(frames: Tensor) -> Tensor:
    """Windows of signals, (B, T, C, L) → the signals (B, C, T · L)."""
    return frames.movedim(1, 2).flatten(2)


def require_codes(model: Autoencoder) -> Tokenizer:
    """The same model, known to make codes. Raises :class:`ConfigError` for one that does not."""
    if not isinstance(model, Tokenizer):
        raise ConfigError(
            f"{type(model).__name__} makes no codes, and this prior is over codes; choose prior=gaussian for a VAE, "
            "or another tokenizer, such as tokenizer=vqvae; or train it alone: --stage tokenizer"
        )
    return model
