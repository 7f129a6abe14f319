"""What the three systems of the paper's table share: encoder, decoder and likelihood, for frames of any rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.likelihoods.base import Likelihood
from worldmodel.nn.convnets import CONV, ConvDecoder, ConvEncoder, Encoder
from worldmodel.nn.modules import to_channels_last
from worldmodel.nn.precision import dtype_of
from worldmodel.tokenizers.base import Autoencoder


def shrunk(frame_shape: Sequence[int], factor: int) -> tuple[int, ...]:
    """The size of frames (C, *size) by a factor smaller. Raises :class:`ConfigError`."""
    size = frame_shape[1:]
    if any(extent % factor for extent in size):
        raise ConfigError(
            f"frames of {'×'.join(map(str, size))} cannot be made {factor} times smaller; choose another encoder"
        )
    return tuple(extent // factor for extent in size)


def halved(frame_shape: Sequence[int], widths: Sequence[int]) -> tuple[int, ...]:
    """The size of frames (C, *size) after as many halvings as there are widths. Raises :class:`ConfigError`."""
    size, factor = frame_shape[1:], 2 ** len(widths)
    if any(extent % factor for extent in size):
        raise ConfigError(
            f"frames of {'×'.join(map(str, size))} cannot be halved {len(widths)} times; "
            f"choose a size divisible by {factor} or fewer tokenizer.widths"
        )
    return tuple(extent // factor for extent in size)


class ConvolutionalAutoencoder(Autoencoder):
    """Frames → encoder → 1-wide convolution → (whatever the latents are) → decoder → likelihood.

    Nothing here depends on the size of a frame: a signal of many windows is coded as one long frame.
    """

    def _build(
        self,
        frame_shape: Sequence[int],
        widths: Sequence[int],
        blocks: int,
        encoded: int,
        decoded: int,
        likelihood: Callable[..., Likelihood],
        encoder: Callable[..., Encoder] = ConvEncoder,
        decoder: Callable[..., nn.Module] = ConvDecoder,
    ) -> None:
        """Makes the modules: ``encoded`` channels come from the encoder, ``decoded`` channels go into the decoder.

        Where a place of the likelihood's outputs stands for ``stride`` places of the frame, the decoder leaves out the
        doublings that are not needed.
        """
        channels, *size = frame_shape
        rank = len(size)
        self.frame_shape = tuple(frame_shape)
        self.encoder = encoder(rank, channels, widths, blocks)
        self.project = CONV[rank](widths[-1], encoded, 1)
        self.likelihood = likelihood(channels=channels)
        outputs = None if self.likelihood.outputs == channels else self.likelihood.outputs
        self.decoder = decoder(rank, decoded, channels, self._decoder_widths(widths, decoder), blocks, outputs)
        if rank == 2:
            to_channels_last(self)

    def _decoder_widths(self, widths: Sequence[int], decoder: Callable[..., nn.Module]) -> Sequence[int]:
        """Those of the doublings that lead from the grid to the places of the likelihood's outputs."""
        if decoder is not ConvDecoder:
            return widths  # it has strides of its own
        factor, stride = self.encoder.factor, self.likelihood.stride
        doublings = (factor // stride).bit_length() - 1
        if 2**doublings * stride != factor or not 1 <= doublings <= len(widths):
            raise ConfigError(
                f"a code stands for {factor} places and tokenizer.likelihood takes {stride} at a time; the decoder "
                f"doubles, so that the first must be the second times 2 to 2**{len(widths)}, by tokenizer.widths"
            )
        return widths[len(widths) - doublings :]

    def _vectors(self, frames: Tensor) -> Tensor:
        """Frames (B, C, *size) → what the encoder says, (B, *spatial, encoded) float32."""
        dtype = self.project.weight.dtype
        layout = torch.channels_last if frames.dim() == 4 else torch.contiguous_format
        x = self.encoder(frames.to(dtype=dtype, memory_format=layout))
        return self.project(x).movedim(1, -1).float()

    def _outputs(self, vectors: Tensor) -> Tensor:
        """What the decoder reads, (B, *spatial, decoded) → the parameters of the likelihood, (B, outputs, *size)."""
        return self.decoder(vectors.to(dtype_of(self.decoder)).movedim(-1, 1))

    def _frames(self, vectors: Tensor) -> Tensor:
        """(B, *spatial, decoded) → the expected frames, (B, C, *size) float32."""
        return self.likelihood.mean(self._outputs(vectors))

    def log_likelihood(self, frames: Tensor, vectors: Tensor) -> Tensor:
        """log p(frames | vectors): frames (B, C, *size), what the decoder reads (B, *spatial, decoded) → (B,) nats."""
        return self.likelihood.log_prob(self._outputs(vectors), frames).flatten(1).sum(1)
