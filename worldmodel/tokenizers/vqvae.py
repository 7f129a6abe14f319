"""VQ-VAE: convolutional encoder → quantiser → convolutional decoder, for any rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from worldmodel.likelihoods.base import Likelihood
from worldmodel.likelihoods.squared_error import SquaredError
from worldmodel.nn.convnets import ConvDecoder, ConvEncoder, Encoder
from worldmodel.quantizers import Quantizer
from worldmodel.tokenizers.base import Reconstruction, Tokenizer, as_float
from worldmodel.tokenizers.convolutional import ConvolutionalAutoencoder, halved, shrunk
from worldmodel.types import NO_ACTION
from worldmodel.util.ranges import Counts, NumCodes, Weights, Whole

HIDDEN_CONDITIONS = 0.05
"""Share of the training examples whose condition is hidden from a decoder that reads one."""


class VQVAE(ConvolutionalAutoencoder, Tokenizer):
    """The autoencoder of *Neural Discrete Representation Learning* (2017).

    Args:
        frame_shape: (C, *size) of the observations.
        quantizer: constructor of a :class:`~worldmodel.quantizers.Quantizer`, called with ``num_codes``.
        widths: output channels of the stride-2 convolutions; their number fixes the grid, size / 2**len(widths). Where
            the quantizer makes several codes of a vector, these are the grid's last axes.
        blocks: residual blocks of the encoder and of the decoder.
        num_codes: K; None for a quantizer that brings it, as FSQ does with its levels.
        likelihood: constructor of a :class:`~worldmodel.likelihoods.Likelihood`; the term ``reconstruction`` is its
            loss: the mean squared error by default, nats per sub-pixel for one that is exact.
        encoder, decoder: constructors, called as :class:`~worldmodel.nn.convnets.ConvEncoder` and ``ConvDecoder`` are;
            an encoder states its ``factor``.
        condition_width: of the embedded condition (action, class, speaker) that the decoder reads beside the codes; 0:
            it reads none, and the codes must hold everything. num_actions: A, needed for it.
        loss_weights: of the terms of training; 1 where none is given.

    Raises :class:`ConfigError` when the size of the frames cannot be halved that often.
    """

    def __init__(
        self,
        frame_shape: Sequence[int],
        quantizer: Callable[..., Quantizer],
        widths: Counts,
        blocks: Whole = 2,
        num_codes: NumCodes | None = None,
        likelihood: Callable[..., Likelihood] = SquaredError,
        encoder: Callable[..., Encoder] = ConvEncoder,
        decoder: Callable[..., nn.Module] = ConvDecoder,
        condition_width: Whole = 0,
        num_actions: Whole = 0,
        loss_weights: Weights | None = None,
    ):
        super().__init__()
        self.loss_weights = dict(loss_weights or {})
        if encoder is ConvEncoder:
            halved(frame_shape, widths)  # tells what is wrong in the terms of the settings
        self.quantizer = quantizer() if num_codes is None else quantizer(num_codes=num_codes)
        self.num_codes, self.slots = self.quantizer.num_codes, self.quantizer.shape
        self.condition_width = condition_width
        # The first condition is that of an unknown one, −1.
        self.condition = nn.Embedding(num_actions + 1, condition_width) if condition_width else None
        width = self.quantizer.width
        self._build(frame_shape, widths, blocks, width, width + condition_width, likelihood, encoder, decoder)
        self.grid = (*shrunk(frame_shape, self.encoder.factor), *self.slots)

    def _reconstruction(
        self, frames: Tensor, generator: torch.Generator | None, conditions: Tensor | None
    ) -> Reconstruction:
        quantized = self.quantizer(self._vectors(frames), generator)
        if self.training and self.condition is not None and conditions is not None:  # so that "unknown" is learnt, too
            device = conditions.device if generator is None else generator.device
            hidden = (
                torch.rand(len(conditions), device=device, generator=generator).to(conditions.device)
                < HIDDEN_CONDITIONS
            )
            conditions = conditions.masked_fill(hidden, NO_ACTION)
        outputs = self._outputs(self._with(quantized.vectors, conditions))
        result = self.likelihood.loss_and_frames(outputs, frames)
        losses = {"reconstruction": result.loss, **quantized.losses}
        losses |= self.likelihood.auxiliary_losses(outputs, frames)
        mixed = self.training and self.quantizer.soft  # N ln K does not pay for a mixture of codes
        nats = None if mixed else self.trained_nats(losses)
        return Reconstruction(result.frames, quantized.codes, losses, nats)

    def _given(self, frames: Tensor, latents: Tensor, conditions: Tensor | None) -> Tensor:
        return -self.log_likelihood(frames, self.read(latents, conditions))

    def vectors(self, frames: Tensor) -> Tensor:
        """Frames (B, C, *size) uint8 → what is quantised, (B, *spatial, D) float32."""
        return self._vectors(as_float(frames))

    def _encode(self, frames: Tensor) -> Tensor:
        return self.quantizer.encode(self._vectors(frames))

    def expected_frames(self, latents: Tensor, conditions: Tensor | None = None) -> Tensor:
        return self._frames(self.read(latents, conditions))

    def _draw(
        self, codes: Tensor, conditions: Tensor | None, generator: torch.Generator | None, temperature: float
    ) -> Tensor:
        return self.likelihood.sample(self._outputs(self.read(codes, conditions)), generator, temperature)

    def read(self, codes: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Codes (B, *grid), conditions (B,) → what the decoder reads, (B, *spatial, D + condition_width).

        Codes of a residual quantiser may be −1 for none.
        """
        return self._with(self.quantizer.lookup(codes), conditions)

    def _with(self, vectors: Tensor, conditions: Tensor | None) -> Tensor:
        """Vectors of codes (B, *spatial, D) → with the embedded condition beside each."""
        if self.condition is None:
            return vectors
        if conditions is None:
            conditions = torch.full((len(vectors),), NO_ACTION, device=vectors.device)
        embedded = self.condition(conditions + 1).view(len(vectors), *[1] * (vectors.dim() - 2), -1)
        return torch.cat([vectors, embedded.expand(*vectors.shape[:-1], -1)], -1)

    def codebook(self) -> Tensor:
        return self.quantizer.codebook().detach()
