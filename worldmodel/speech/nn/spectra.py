"""A likelihood of sound whose outputs are mel spectra, and the conversion of mel spectra into a wave."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.likelihoods import Likelihood, LossAndFrames
from worldmodel.speech.nn.mel import companded, expanded, log_mels, mel_filters, of_log_mels
from worldmodel.util.ranges import Count, Whole


class MelSpectra(Likelihood):
    """Outputs are log-mel spectra, one column for ``hop`` samples; the loss is their mean squared error.

    Frames (B, 1, L) are waves; the loss ignores their phase. Waves are computed from the spectra by the algorithm of
    Griffin and Lim, *Signal estimation from modified short-time Fourier transform*, 1984; they are intelligible but
    sound hollow. The likelihood is not exact: it gives no bound on bits.

    Args:
        channels: 1. bands, hop, window: of the spectra; samples, at ``rate`` a second.
        iterations: of the Griffin-Lim algorithm.
        cepstra: number of mel-cepstral coefficients that the loss compares, each divided by its variance in the batch
            (Davis and Mermelstein, 1980); 0 compares bands, where differences in loudness dominate.
    """

    exact = False

    def __init__(
        self,
        channels: int,
        bands: Count = 80,
        hop: Count = 160,
        window: Count = 400,
        rate: Count = 16_000,
        iterations: Whole = 32,
        cepstra: Whole = 0,
    ):
        super().__init__(channels)
        if channels != 1:
            raise ConfigError(f"spectra are of sound of one channel, not of {channels}")
        self.outputs, self.stride, self.window, self.iterations = bands, hop, window, iterations
        self.fft = 1 << (window - 1).bit_length()
        self.spectra = {"bands": bands, "hop": hop, "window": window, "fft": self.fft, "rate": rate}
        filters = mel_filters(bands, self.fft, rate)
        self.cepstra = cepstra
        place = (torch.arange(bands) + 0.5) * torch.pi / bands
        self.register_buffer("series", torch.cos(place[:, None] * torch.arange(cepstra)), persistent=False)
        self.register_buffer("inverse", torch.linalg.pinv(filters), persistent=False)
        self.register_buffer(
            "hann", F.pad(torch.hann_window(window), ((self.fft - window) // 2,) * 2), persistent=False
        )

    series: Tensor  # (bands, cepstra)
    inverse: Tensor  # (bands, fft // 2 + 1)
    hann: Tensor  # (fft,)

    def log_prob(self, outputs: Tensor, frames: Tensor) -> Tensor:
        """The negative mean squared error of the bands, repeated for the samples of a hop: (B, 1, L)."""
        error = (outputs.float() - self._target(frames)).square().mean(1, keepdim=True)
        return -error.repeat_interleave(self.stride, -1)

    def loss(self, outputs: Tensor, frames: Tensor) -> Tensor:
        target = self._target(frames)
        if not self.cepstra:
            return F.mse_loss(outputs.float(), target)
        error = (outputs.float() - target).movedim(1, -1) @ self.series
        target_cepstra = (target.movedim(1, -1) @ self.series).flatten(0, 1)
        return (error.flatten(0, 1).square().mean(0) / target_cepstra.var(0, correction=0).clamp(min=1e-6)).mean()

    def _target(self, frames: Tensor) -> Tensor:
        return log_mels(expanded(frames[:, 0].float()), **self.spectra).movedim(1, -1)

    def mean(self, outputs: Tensor) -> Tensor:
        magnitudes = self._magnitudes(outputs)
        wave = self._wave(magnitudes, torch.zeros_like(magnitudes))
        for _ in range(self.iterations):
            wave = self._wave(magnitudes, self._transform(wave).angle())
        margin = (self.fft - self.stride) // 2
        return companded(wave[:, None, margin : margin + magnitudes.shape[1] * self.stride])

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """The same as :meth:`mean`: there is no distribution to draw from."""
        return self.mean(outputs)

    def loss_and_frames(self, outputs: Tensor, frames: Tensor) -> LossAndFrames:
        return LossAndFrames(self.loss(outputs, frames), self.with_phases_of(outputs.detach(), frames))

    @torch.no_grad()
    def with_phases_of(self, outputs: Tensor, frames: Tensor) -> Tensor:
        """The wave of the outputs with the phases of the true frames (B, 1, L), in one pass."""
        margin = (self.fft - self.stride) // 2
        true = F.pad(expanded(frames[:, 0].float()), (margin, margin))
        wave = self._wave(self._magnitudes(outputs), self._transform(true).angle())
        return companded(wave[:, None, margin : margin + frames.shape[-1]])

    def _magnitudes(self, outputs: Tensor) -> Tensor:
        """(B, bands, M) → amplitudes (B, M, fft // 2 + 1)."""
        return (of_log_mels(outputs.float().movedim(1, -1)) @ self.inverse).clamp(min=0).sqrt()

    def _transform(self, wave: Tensor) -> Tensor:
        """(B, fft + (M − 1) hop) → (B, M, fft // 2 + 1) complex."""
        return torch.fft.rfft(wave.unfold(1, self.fft, self.stride) * self.hann)

    def _wave(self, magnitudes: Tensor, phases: Tensor) -> Tensor:
        """Inverse STFT: the wave whose spectra are nearest to these, by overlap-add."""
        pieces = torch.fft.irfft(torch.polar(magnitudes, phases), self.fft) * self.hann
        length = self.fft + (pieces.shape[1] - 1) * self.stride

        def add(parts: Tensor) -> Tensor:
            return F.fold(parts.mT, (1, length), (1, self.fft), stride=(1, self.stride))[:, 0, 0]

        weight = add(self.hann.square().expand(1, pieces.shape[1], -1))
        return add(pieces) / weight.clamp(min=0.05)
