"""VQ-VAE: convolutional encoder → quantiser → convolutional decoder, for any rank. VAE and VIMCO share its networks."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.likelihoods import Likelihood, SquaredError
from worldmodel.nn.convnets import CONV, ConvDecoder, ConvEncoder, Encoder
from worldmodel.nn.float32 import full_float32
from worldmodel.nn.modules import channels_last, dtype_of, to_channels_last, uniform
from worldmodel.quantizers import Quantizer
from worldmodel.tokenizers.base import Autoencoder, Reconstruction, Tokenizer, as_float
from worldmodel.types import NO_ACTION
from worldmodel.util.ranges import Counts, NumCodes, Weights, Whole

HIDDEN_CONDITIONS = 0.05
"""Share of the training examples whose condition is hidden from a decoder that reads one."""


def shrunk(frame_shape: Sequence[int], factor: int, change: str | None = None) -> tuple[int, ...]:
    """The size of frames (C, *size) divided by a factor. Raises :class:`ConfigError`, which ends in ``change``."""
    size = frame_shape[1:]
    if any(extent % factor for extent in size):
        change = change or f"made {factor} times smaller; choose another encoder"
        raise ConfigError(f"frames of {'×'.join(map(str, size))} cannot be {change}")
    return tuple(extent // factor for extent in size)


def halved(frame_shape: Sequence[int], widths: Sequence[int]) -> tuple[int, ...]:
    """The size of frames (C, *size) after as many halvings as there are widths. Raises :class:`ConfigError`."""
    factor = 2 ** len(widths)
    remedy = f"choose a size divisible by {factor} or fewer tokenizer.widths"
    return shrunk(frame_shape, factor, f"halved {len(widths)} times; {remedy}")


class ConvolutionalAutoencoder(Autoencoder):
    """Frames → encoder → 1-wide convolution → latents → decoder → likelihood; for frames of any size, so that a signal
    of many windows is coded as one long frame."""

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
        project: Callable[[int, int, int], nn.Module] | None = None,
    ) -> None:
        """Creates the modules; the encoder has ``encoded`` output channels, the decoder ``decoded`` input channels.

        ``project`` (rank, inputs, outputs) makes the last layers of the encoder; None: a 1-wide convolution.
        """
        channels, *size = frame_shape
        rank = len(size)
        self.frame_shape = tuple(frame_shape)
        self.encoder = encoder(rank, channels, widths, blocks)
        top = widths[-1]
        self.project = CONV[rank](top, encoded, 1) if project is None else project(rank, top, encoded)
        self.likelihood = likelihood(channels=channels)
        outputs = None if self.likelihood.outputs == channels else self.likelihood.outputs
        self.decoder = decoder(rank, decoded, channels, self._decoder_widths(widths, decoder), blocks, outputs)
        if rank == 2:
            to_channels_last(self)

    def _decoder_widths(self, widths: Sequence[int], decoder: Callable[..., nn.Module]) -> Sequence[int]:
        """Widths of the doublings from the grid to the outputs, which may be coarser than the frame by ``stride``."""
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
        """Frames (B, C, *size) → the output of the encoder, (B, *spatial, encoded) float32."""
        x = self.encoder(channels_last(frames, dtype_of(self.project)))
        return self.project(x).movedim(1, -1).float()

    def _outputs(self, vectors: Tensor) -> Tensor:
        """What the decoder reads, (B, *spatial, decoded) → the parameters of the likelihood, (B, outputs, *size)."""
        return self.decoder(vectors.to(dtype_of(self.decoder)).movedim(-1, 1))

    def read(self, latents: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Latents (B, *grid), conditions (B,) → what the decoder reads, (B, *spatial, decoded)."""
        return latents

    def log_likelihood(self, frames: Tensor, latents: Tensor, conditions: Tensor | None = None) -> Tensor:
        """log p(frames | latents) in nats, (B,); frames (B, C, *size) float in [-1, 1]."""
        return self._log_prob(frames, self.read(latents, conditions))

    def _log_prob(self, frames: Tensor, vectors: Tensor) -> Tensor:
        """log p(frames | what the decoder reads) in nats, (B,)."""
        return self.likelihood.log_prob(self._outputs(vectors), frames).flatten(1).sum(1)

    def expected_frames(self, latents: Tensor, conditions: Tensor | None = None) -> Tensor:
        return self.likelihood.mean(self._outputs(self.read(latents, conditions)))

    def _given(self, frames: Tensor, latents: Tensor, conditions: Tensor | None) -> Tensor:
        return -self.log_likelihood(frames, latents, conditions)


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
            an encoder has a ``factor``.
        condition_width: of the embedded condition (action, class, speaker) that the decoder reads beside the codes; 0
            for none. num_actions: A, the number of conditions.
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
        super().__init__(loss_weights)
        if encoder is ConvEncoder:
            halved(frame_shape, widths)  # its message names the settings
        self.quantizer = quantizer() if num_codes is None else quantizer(num_codes=num_codes)
        self.num_codes, self.slots = self.quantizer.num_codes, self.quantizer.shape
        self.condition_width = condition_width
        # The first condition is that of an unknown one, −1.
        self.condition = nn.Embedding(num_actions + 1, condition_width) if condition_width else None
        width = self.quantizer.width
        self._build(frame_shape, widths, blocks, width, width + condition_width, likelihood, encoder, decoder)
        self.grid = (*shrunk(frame_shape, self.encoder.factor), *self.slots)

    def _forward(self, frames: Tensor, generator: Generator | None, conditions: Tensor | None) -> Reconstruction:
        quantized = self.quantizer(self._vectors(frames), generator)
        if self.training and self.condition is not None and conditions is not None:  # so that "unknown" is learnt, too
            hidden = uniform(conditions.shape, conditions.device, generator) < HIDDEN_CONDITIONS
            conditions = conditions.masked_fill(hidden, NO_ACTION)
        outputs = self._outputs(self._with(quantized.vectors, conditions))
        result = self.likelihood.loss_and_frames(outputs, frames)
        losses = {"reconstruction": result.loss, **quantized.losses}
        losses |= self.likelihood.auxiliary_losses(outputs, frames)
        mixed = self.training and self.quantizer.soft  # N ln K does not pay for a mixture of codes
        nats = None if mixed else self.trained_nats(losses)
        return Reconstruction(result.frames, quantized.codes, losses, nats)

    def vectors(self, frames: Tensor) -> Tensor:
        """Frames (B, C, *size) uint8 → what is quantised, (B, *spatial, D) float32."""
        with full_float32(frames.device):
            return self._vectors(as_float(frames))

    def _encode(self, frames: Tensor) -> Tensor:
        return self.quantizer.encode(self._vectors(frames))

    def _draw(
        self, codes: Tensor, conditions: Tensor | None, generator: Generator | None, temperature: float
    ) -> Tensor:
        return self.likelihood.sample(self._outputs(self.read(codes, conditions)), generator, temperature)

    def read(self, latents: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Codes (B, *grid), conditions (B,) → what the decoder reads, (B, *spatial, D + condition_width).

        Codes of a residual quantiser may be −1 for none.
        """
        return self._with(self.quantizer.lookup(latents), conditions)

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
