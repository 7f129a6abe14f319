"""The interfaces of autoencoders, and of those among them that make codes: tokenizers."""

import abc
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.likelihoods import Likelihood
from worldmodel.nn.float32 import full_float32
from worldmodel.nn.modules import cast
from worldmodel.types import NO_ACTION, to_float, to_uint8

FRAMES_AT_A_TIME = 256  # of one pass of an autoencoder; more would only need more memory


class Reconstruction(NamedTuple):
    """The result of a training pass of an autoencoder."""

    frames: Tensor  # (B, C, *size) float32, about [-1, 1]: for pictures and metrics, not for a loss
    codes: Tensor | None  # (B, *grid) int64; None where there are none
    losses: dict[str, Tensor]  # named scalar terms
    nats: Tensor | None = None  # () per sub-pixel: the negative bound as trained, detached; None if there is no bound
    figures: dict[str, Tensor] | None = None  # named scalars that are reported beside the losses, detached


class Bound(NamedTuple):
    """A bound on −log p(x) in nats per frame; where it is drawn, its mean over the draws is one."""

    total: Tensor  # (B,) float32
    reconstruction: Tensor  # (B,) float32: −log p(x|z) of the z of the posterior; the rest are nats of the latents


class Autoencoder(nn.Module, abc.ABC):
    """An observation (C, *size) ↔ latents of a fixed shape.

    Public methods take and return frames as uint8. ``expected_frames`` and the methods with an underscore, which
    subclasses define, use float in [-1, 1]. ``conditions`` (B,) int64 are the actions (or classes, speakers) of the
    frames, -1 where they are unknown; a decoder without a condition ignores them.
    """

    frame_shape: tuple[int, ...]  # (C, *size)
    grid: tuple[int, ...]  # the shape of the latents of a frame
    likelihood: Likelihood
    certain: bool = True  # the posterior of the latents is a point; otherwise bounds are drawn
    condition_width: int = 0  # of the embedded condition that the decoder reads; 0 where it reads none

    def __init__(self, loss_weights: Mapping[str, float] | None = None):
        super().__init__()
        self.loss_weights = dict(loss_weights or {})  # of the terms of training; 1 where none is given

    def forward(
        self, frames: Tensor, generator: Generator | None = None, conditions: Tensor | None = None
    ) -> Reconstruction:
        """Frames (B, C, *size) uint8 → :class:`Reconstruction`; updates the codebook in training mode."""
        return self._forward(as_float(frames), generator, conditions)

    def bound(self, frames: Tensor, generator: Generator | None = None, samples: int | None = 1) -> Bound:
        """The bound on log p(frames) under the fixed prior of the latents, frames (B, C, *size) uint8.

        An uncertain posterior is drawn from ``samples`` times for each frame; None: as often as in training. Raises
        :class:`ConfigError` when the likelihood is not exact.
        """
        self.require_exact()
        with full_float32(frames.device):
            return self._bound(as_float(frames), generator, samples)

    def given(self, frames: Tensor, latents: Tensor, conditions: Tensor | None = None) -> Tensor:
        """−log p(frames | latents) in nats, (B,); frames uint8. Raises :class:`ConfigError` as :meth:`bound` does."""
        self.require_exact()
        return self._given(as_float(frames), latents, conditions)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Frames (M, C, *size) uint8, any number of them → their most probable latents, (M, *grid)."""
        with full_float32(frames.device):
            return torch.cat([self._encode(as_float(part)) for part in frames.split(FRAMES_AT_A_TIME)])

    @torch.no_grad()
    def decode(self, latents: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Latents (M, *grid), any number of them → the expected frames, (M, C, *size) uint8."""
        parts = latents.split(FRAMES_AT_A_TIME)
        known = [None] * len(parts) if conditions is None else conditions.split(FRAMES_AT_A_TIME)
        return torch.cat([to_uint8(self.expected_frames(*pair)) for pair in zip(parts, known, strict=True)])

    def latents(self, frames: Tensor, generator: Generator | None = None) -> Tensor:
        """Frames (M, C, *size) uint8 → latents (M, *grid) for a prior to learn from, drawn from the posterior."""
        return self.encode(frames)

    def reconstructions(self, frames: Tensor, generator: Generator | None = None) -> list[tuple[str, Tensor]]:
        """Named reconstructions of frames, all uint8, for pictures: of every level, where there are several."""
        return [("reconstruction", self.decode(self.encode(frames)))]

    @abc.abstractmethod
    def expected_frames(self, latents: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Latents (B, *grid) → the expected frames, (B, C, *size) float32, about [-1, 1], not rounded to uint8."""

    @abc.abstractmethod
    def _forward(self, frames: Tensor, generator: Generator | None, conditions: Tensor | None) -> Reconstruction: ...

    @abc.abstractmethod
    def _bound(self, frames: Tensor, generator: Generator | None, samples: int | None) -> Bound: ...

    @abc.abstractmethod
    def _encode(self, frames: Tensor) -> Tensor: ...

    def _given(self, frames: Tensor, latents: Tensor, conditions: Tensor | None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no likelihood of frames")

    @property
    def joined(self) -> bool:
        """Whether the frames of an episode are the windows of one signal, which is coded as a whole: sound."""
        return len(self.frame_shape) == 2

    def decode_in(self, dtype: torch.dtype) -> None:
        """Cast the decoders, and nothing that decides on codes, to another number format, in place."""
        for name, module in self.named_modules():
            if name.rpartition(".")[-1] == "decoder":
                cast(module, dtype)

    @property
    def subpixels(self) -> int:
        """D: the numbers of a frame, C · size; bits per dimension are bits per frame / D."""
        return math.prod(self.frame_shape)

    def require_exact(self) -> None:
        """Raises :class:`ConfigError` when the likelihood gives no bound on bits."""
        if not self.likelihood.exact:
            raise ConfigError(
                f"{type(self.likelihood).__name__} is no likelihood of uint8 values, so there is no bound on bits; "
                "choose Categorical or LogisticMixture as tokenizer.likelihood"
            )


class Tokenizer(Autoencoder):
    """An observation (C, *size) ↔ a grid of integers in [0, K)."""

    slots: tuple[int, ...] = ()  # the last axes of the grid, where each index has its own codebook
    num_codes: int  # K

    @torch.no_grad()
    def draw(
        self,
        codes: Tensor,
        conditions: Tensor | None = None,
        generator: Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Codes (B, *grid) → frames (B, C, *size) uint8, drawn where the decoder is stochastic, else expected."""
        return to_uint8(self._draw(codes, conditions, generator, temperature))

    def _draw(
        self, codes: Tensor, conditions: Tensor | None, generator: Generator | None, temperature: float
    ) -> Tensor:
        return self.expected_frames(codes, conditions)

    @torch.no_grad()
    def draw_episode(
        self, codes: Tensor, condition: int = NO_ACTION, generator: Generator | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Codes (T, *grid) of one episode → its frames, (T, C, *size) uint8; of sound, one signal is drawn."""
        grids = codes.flatten(0, 1)[None] if self.joined else codes
        conditions = torch.full((len(grids),), condition, device=codes.device)
        frames = to_uint8(self._draw(grids, conditions, generator, temperature))
        return frames[0].unflatten(-1, (len(codes), -1)).movedim(0, 1) if self.joined else frames

    @abc.abstractmethod
    def codebook(self) -> Tensor:
        """(K, D), or (*slots, K, D of one code): the vectors of the codes, the start of a prior's embedding."""

    def _bound(self, frames: Tensor, generator: Generator | None, samples: int | None) -> Bound:
        """−log p(frames | their codes) + N ln K: the posterior is a point, so nothing is drawn."""
        reconstruction = self._given(frames, self._encode(frames), None)
        return Bound(reconstruction + self.uniform_nats(), reconstruction)

    def trained_nats(self, losses: dict[str, Tensor]) -> Tensor | None:
        """The bound per sub-pixel, (), from the loss terms of training; None if the likelihood is not exact."""
        if not self.likelihood.exact:
            return None
        return losses["reconstruction"].detach() + self.uniform_nats() / self.subpixels

    def grid_nats(self, frames: Tensor) -> Tensor | None:
        """−log p(grid of the first tokenizer | codes) in nats, (B,), of two stacked tokenizers; None for others."""
        return None

    def encode_episode(self, frames: Tensor) -> Tensor:
        """Frames of one episode in their order, (T, C, *size) uint8 → codes (T, *grid)."""
        if not self.joined:
            return self.encode(frames)
        return self.encode(join(frames[None]))[0].unflatten(0, (len(frames), -1))

    @property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the grids of a frame, the coarsest first; one, unless the tokenizer is a hierarchy."""
        return (self.grid,)

    def books(self, codes: Tensor) -> list[Tensor]:
        """Codes (B, *grid) → those of each codebook, one part for each."""
        return list(codes.flatten(-len(self.slots)).unbind(-1)) if self.slots else [codes]

    def uniform_nats(self) -> float:
        """N ln K: the nats of the codes of a frame under a uniform prior."""
        return math.prod(self.grid) * math.log(self.num_codes)


def as_float(frames: Tensor) -> Tensor:
    """uint8 frames → float32 in [-1, 1]. Raises TypeError for other frames."""
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames are uint8, not {frames.dtype}")
    return to_float(frames)


def join(frames: Tensor) -> Tensor:
    """Windows of signals, (B, T, C, L) → the signals (B, C, T · L)."""
    return frames.movedim(1, 2).flatten(2)


def require_codes(model: Autoencoder) -> Tokenizer:
    """The same model, as a tokenizer. Raises :class:`ConfigError` for an autoencoder without codes."""
    if not isinstance(model, Tokenizer):
        raise ConfigError(
            f"{type(model).__name__} makes no codes, and this prior is over codes; choose prior=gaussian for a VAE, "
            "or another tokenizer, such as tokenizer=vqvae; or train it alone: --stage tokenizer"
        )
    return model
