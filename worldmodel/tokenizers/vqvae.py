"""VQ-VAE: convolutional encoder → quantiser → convolutional decoder, for any rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.nn.convnets import CONV, ConvDecoder, ConvEncoder
from worldmodel.quantizers import Quantizer
from worldmodel.tokenizers.base import Reconstruction, Tokenizer


class VQVAE(Tokenizer):
    """The autoencoder of *Neural Discrete Representation Learning* (2017).

    Args:
        frame_shape: (C, *size) of the observations.
        quantizer: constructor of a :class:`~worldmodel.quantizers.Quantizer`, called with ``codes``.
        widths: output channels of the stride-2 convolutions; their number fixes the grid, size / 2**len(widths). Where
            the quantizer makes several codes of a vector, these are the grid's last axes.
        blocks: residual blocks of the encoder and of the decoder.
        codes: K; None for a quantizer that brings it, as FSQ does with its levels.

    Raises :class:`ConfigError` when the size of the frames cannot be halved that often.
    """

    def __init__(
        self,
        frame_shape: Sequence[int],
        quantizer: Callable[..., Quantizer],
        widths: Sequence[int],
        blocks: int = 2,
        codes: int | None = None,
    ):
        super().__init__()
        channels, *size = frame_shape
        factor = 2 ** len(widths)
        if any(extent % factor for extent in size):
            raise ConfigError(
                f"frames of {'×'.join(map(str, size))} cannot be halved {len(widths)} times; "
                f"choose a size divisible by {factor} or fewer tokenizer.widths"
            )
        rank = len(size)
        self.frame_shape = tuple(frame_shape)
        self.quantizer = quantizer() if codes is None else quantizer(codes=codes)
        self.codes, self.slots = self.quantizer.codes, self.quantizer.shape
        self.grid = (*(extent // factor for extent in size), *self.slots)
        self.encoder = ConvEncoder(rank, channels, widths, blocks)
        self.project = CONV[rank](widths[-1], self.quantizer.width, 1)
        self.decoder = ConvDecoder(rank, self.quantizer.width, channels, widths, blocks)
        if rank == 2:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _vectors(self, frames: Tensor) -> Tensor:
        """Frames → what is quantised, (B, *spatial, D) float32."""
        dtype = self.project.weight.dtype
        layout = torch.channels_last if frames.dim() == 4 else torch.contiguous_format
        x = self.encoder(frames.to(dtype=dtype, memory_format=layout))
        return self.project(x).movedim(1, -1).float()

    def _frames(self, vectors: Tensor) -> Tensor:
        """(B, *spatial, D) → (B, C, *size) float32."""
        return self.decoder(vectors.to(self.project.weight.dtype).movedim(-1, 1)).float()

    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Reconstruction:
        quantized = self.quantizer(self._vectors(frames), generator)
        reconstruction = self._frames(quantized.vectors)
        losses = {"reconstruction": F.mse_loss(reconstruction, frames.float()), **quantized.losses}
        return Reconstruction(reconstruction, quantized.codes, losses)

    def encode(self, frames: Tensor) -> Tensor:
        return self.quantizer.encode(self._vectors(frames))

    def decode(self, codes: Tensor) -> Tensor:
        return self._frames(self.quantizer.lookup(codes))

    def codebook(self) -> Tensor:
        return self.quantizer.codebook().detach()
