"""Independent VQ-VAEs of several rates, as in Jukebox."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.likelihoods import Likelihood, SquaredError
from worldmodel.nn.convnets import ConvDecoder, ConvEncoder, Encoder
from worldmodel.nn.modules import module_list
from worldmodel.quantizers import Quantizer
from worldmodel.tokenizers.base import Reconstruction, Tokenizer
from worldmodel.tokenizers.vqvae import VQVAE
from worldmodel.util.ranges import Levels, NumCodes, Weights, Whole


class SeparateLevels(Tokenizer):
    """The levels of *Jukebox* (Dhariwal et al., 2020, section 3): each level is an independent VQ-VAE.

    In VQ-VAE-2, coarse levels become unused when the fine ones are good. Here each level codes the whole observation.
    Only the finest one is decoded; a prior draws the coarser codes first and finer ones given them
    (:mod:`worldmodel.heads.hierarchy`).

    The codes of a window are one row, coarsest level first: (B, N), N the sum of the sizes of the levels. A signal of m
    windows has m such rows, (B, m · N), although each level encodes the signal as a whole.

    Args:
        frame_shape: (C, *size) of the observations.
        quantizer: constructor of a :class:`~worldmodel.quantizers.Quantizer`, called with ``num_codes`` for each level.
        widths: for each level, finest first, the channels after each of its halvings; 3, 5 and 7 halvings are
            Jukebox's 8×, 32× and 128×.
        blocks, num_codes, likelihood, encoder, decoder, condition_width, num_actions: as for :class:`VQVAE`.
        loss_weights: weights of the loss terms, 1 by default.

    Loss terms are means over the levels; the figures ``reconstruction_8x``, … are those of each level, named by its
    downsampling factor. A bound on bits counts the decoder of the finest level and the codes of all levels.

    Raises :class:`ConfigError` for levels that do not become coarser one by one, or frames that cannot be halved.
    """

    def __init__(
        self,
        frame_shape: Sequence[int],
        quantizer: Callable[..., Quantizer],
        widths: Levels,
        blocks: Whole = 2,
        num_codes: NumCodes = 512,
        likelihood: Callable[..., Likelihood] = SquaredError,
        encoder: Callable[..., Encoder] = ConvEncoder,
        decoder: Callable[..., nn.Module] = ConvDecoder,
        condition_width: Whole = 0,
        num_actions: Whole = 0,
        loss_weights: Weights | None = None,
    ):
        super().__init__(loss_weights)
        halvings = [len(level) for level in widths]
        if len(widths) < 2 or halvings != sorted(set(halvings)):
            fault = f"tokenizer.widths has levels of {', '.join(map(str, halvings))} halvings"
            rule = "two levels or more, the finest first, each of more halvings than the one before it"
            raise ConfigError(f"{fault}; there must be {rule}")
        shared = blocks, num_codes, likelihood, encoder, decoder, condition_width, num_actions
        # The coarsest first, unlike widths.
        self.models = module_list(VQVAE(frame_shape, quantizer, level, *shared) for level in reversed(widths))
        self.frame_shape, self.num_codes, self.condition_width = tuple(frame_shape), num_codes, condition_width
        finest = self.models[-1]
        if finest.slots or finest.quantizer.soft:
            raise ConfigError("a level has one whole code at each place; choose a quantizer without slots or mixtures")
        self.likelihood = finest.likelihood
        self.sizes = [math.prod(grid) for grid in self.levels]
        self.grid = (sum(self.sizes),)

    @property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        return tuple(model.grid for model in self.models)

    @property
    def names(self) -> list[str]:
        """The downsampling factors, coarsest first: 128x, 32x, 8x."""
        return [f"{model.encoder.factor}x" for model in self.models]

    def _forward(self, frames: Tensor, generator: torch.Generator | None, conditions: Tensor | None) -> Reconstruction:
        results = [model._forward(frames, generator, conditions) for model in self.models]
        losses = {name: torch.stack([each.losses[name] for each in results]).mean() for name in results[0].losses}
        own = [each.losses["reconstruction"].detach() for each in results]
        figures = {f"reconstruction_{name}": value for name, value in zip(self.names, own, strict=True)}
        codes = self.merge([each.codes for each in results if each.codes is not None])
        nats = self.trained_nats({"reconstruction": own[-1]})
        return Reconstruction(results[-1].frames, codes, losses, nats, figures)

    def _given(self, frames: Tensor, latents: Tensor, conditions: Tensor | None) -> Tensor:
        return self.models[-1]._given(frames, self.part(latents, -1), conditions)

    def _encode(self, frames: Tensor) -> Tensor:
        """Frames (B, C, *size) → (B, N); a signal of m windows (B, C, m · L) → (B, m · N)."""
        return self.merge([model._encode(frames) for model in self.models])

    def expected_frames(self, latents: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Codes (B, m · N) → (B, C, *size), by the decoder of the finest level."""
        return self.models[-1].expected_frames(self.part(latents, -1), conditions)

    def _draw(
        self, codes: Tensor, conditions: Tensor | None, generator: torch.Generator | None, temperature: float
    ) -> Tensor:
        return self.models[-1]._draw(self.part(codes, -1), conditions, generator, temperature)

    def reconstructions(self, frames: Tensor, generator: torch.Generator | None = None) -> list[tuple[str, Tensor]]:
        """The reconstruction of each level, coarsest first."""
        codes = self.encode(frames)
        return [(name, self.models[n].decode(self.part(codes, n))) for n, name in enumerate(self.names)]

    def merge(self, parts: Sequence[Tensor]) -> Tensor:
        """Codes of each level, coarsest first, (B, m · n or the grid) → rows of windows, (B, m · N)."""
        rows = [part.flatten(1).unflatten(1, (-1, size)) for part, size in zip(parts, self.sizes, strict=True)]
        return torch.cat(rows, 2).flatten(1)

    def part(self, codes: Tensor, level: int) -> Tensor:
        """Codes (B, m · N) → those of a level: (B, m · n) for a signal, else (B, *grid)."""
        own = self.books(codes)[level]
        return own if self.joined else own.unflatten(1, self.levels[level])

    def books(self, codes: Tensor) -> list[Tensor]:
        """Codes (B, m · N) → those of each level, (B, m · n), the coarsest first."""
        windows = codes.unflatten(1, (-1, self.grid[0]))
        return [part.flatten(1) for part in windows.split(self.sizes, 2)]

    def codebook(self) -> Tensor:
        """(levels, K, D), the coarsest first."""
        return torch.stack([model.codebook() for model in self.models])
