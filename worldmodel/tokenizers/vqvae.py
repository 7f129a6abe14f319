"""VQ-VAE: convolutional encoder → quantiser → convolutional decoder, for any rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worldmodel.nn.likelihoods import Likelihood, SquaredError
from worldmodel.quantizers import Quantizer
from worldmodel.tokenizers.base import Reconstruction, Tokenizer
from worldmodel.tokenizers.convolutional import ConvolutionalAutoencoder, halved


class VQVAE(ConvolutionalAutoencoder, Tokenizer):
    """The autoencoder of *Neural Discrete Representation Learning* (2017).

    Args:
        frame_shape: (C, *size) of the observations.
        quantizer: constructor of a :class:`~worldmodel.quantizers.Quantizer`, called with ``codes``.
        widths: output channels of the stride-2 convolutions; their number fixes the grid, size / 2**len(widths). Where
            the quantizer makes several codes of a vector, these are the grid's last axes.
        blocks: residual blocks of the encoder and of the decoder.
        codes: K; None for a quantizer that brings it, as FSQ does with its levels.
        likelihood: constructor of a :class:`~worldmodel.nn.likelihoods.Likelihood`; the term ``reconstruction`` is its
            loss: the mean squared error by default, nats per sub-pixel for one that is exact.

    Raises :class:`ConfigError` when the size of the frames cannot be halved that often.
    """

    def __init__(
        self,
        frame_shape: Sequence[int],
        quantizer: Callable[..., Quantizer],
        widths: Sequence[int],
        blocks: int = 2,
        codes: int | None = None,
        likelihood: Callable[..., Likelihood] = SquaredError,
    ):
        super().__init__()
        spatial = halved(frame_shape, widths)
        self.quantizer = quantizer() if codes is None else quantizer(codes=codes)
        self.codes, self.slots = self.quantizer.codes, self.quantizer.shape
        self.grid = (*spatial, *self.slots)
        self._build(frame_shape, widths, blocks, self.quantizer.width, self.quantizer.width, likelihood)

    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Reconstruction:
        quantized = self.quantizer(self._vectors(frames), generator)
        outputs = self._outputs(quantized.vectors)
        losses = {"reconstruction": self.likelihood.loss(outputs, frames), **quantized.losses}
        mixed = self.training and self.quantizer.soft  # N ln K does not pay for a mixture of codes
        nats = None if mixed else self.trained_nats(losses)
        return Reconstruction(self.likelihood.glance(outputs.detach(), frames), quantized.codes, losses, nats)

    def given(self, frames: Tensor, codes: Tensor) -> Tensor:
        self.require_exact()
        return -self.log_likelihood(frames, self.quantizer.lookup(codes))

    def encode(self, frames: Tensor) -> Tensor:
        return self.quantizer.encode(self._vectors(frames))

    def decode(self, codes: Tensor) -> Tensor:
        return self._frames(self.quantizer.lookup(codes))

    def codebook(self) -> Tensor:
        return self.quantizer.codebook().detach()
