"""Likelihoods of sound that compare spectra: of outputs that are mel spectra, with their conversion into a wave; and
the loss of a codec, an error of the wave and of its spectra at several resolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.likelihoods import Likelihood, LossAndFrames
from worldmodel.speech.nn.mel import companded, expanded, log_mels, mel_filters, of_log_mels, size_of
from worldmodel.util.ranges import Count, Counts, NonNegative, Whole

SHORTEST = 1e-4  # floor of magnitudes: the noise of µ-law near silence


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
        self.fft = size_of(window)
        self.spectra = {"bands": bands, "hop": hop, "window": window, "rate": rate}
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


class SpectralLoss(Likelihood):
    """Outputs are the companded wave; the loss is an L1 of it and of log-mel spectra of the pressure.

    loss = ``wave`` · mean |y − x| + ``spectra`` · mean over the windows of mean |log₁₀ M(y) − log₁₀ M(x)|, M the mel
    bands of STFT magnitudes, Hann windows, hops of a quarter. The multi-scale mel loss is EnCodec's (Défossez et al.,
    2022, section 3.4), in the form of DAC's (Kumar et al., 2023, section 3.4): logarithms only, short windows with few
    bands. EnCodec's L2 term of the logarithms is left out, as in DAC. The L1 of the wave, which DAC leaves out,
    preserves the phase, which SI-SDR depends on. There is no adversarial loss, unlike in both: at low rates sound is
    muffled instead of containing invented detail.

    The error of the wave is that of companded values, which weighs errors by the loudness around them. Magnitudes are
    those of pressure, because companding adds harmonics. They are scaled so that those of white noise equal its
    deviation for every window.

    Not exact: ``log_prob`` is −|y − x|, a log density up to a scale and a constant.

    Args:
        channels: C of the frames.
        windows: lengths in samples; windows longer than the sound are skipped. At 16,000 Hz, 64 … 2048 are 4 … 128 ms.
        bands: mel bands of each window.
        wave: weight of the L1 of the wave.
        spectra: weight of the mean over the windows.
        rate: samples a second, for the mel scale.

    Raises ValueError when ``bands`` and ``windows`` differ in length, or a band is too narrow for its window.
    """

    exact = False

    def __init__(
        self,
        channels: int,
        windows: Counts = (64, 128, 256, 512, 1024, 2048),
        bands: Counts = (10, 20, 40, 80, 80, 80),
        wave: NonNegative = 1.0,
        spectra: NonNegative = 1.0,
        rate: Count = 16_000,
    ):
        super().__init__(channels)
        if len(windows) != len(bands):
            raise ValueError(f"{len(windows)} windows and {len(bands)} numbers of bands; give one for each")
        self.outputs = channels
        self.windows, self.wave, self.spectra = tuple(windows), wave, spectra
        for window, count in zip(windows, bands, strict=True):
            hann = torch.hann_window(window)
            self.register_buffer(f"window{window}", hann / hann.square().sum().sqrt(), persistent=False)
            filters = mel_filters(count, window, rate)
            self.register_buffer(f"filters{window}", filters / filters.sum(0), persistent=False)  # a band is a mean

    def log_prob(self, outputs: Tensor, frames: Tensor) -> Tensor:
        return -(outputs.float() - frames.float()).abs()

    def loss(self, outputs: Tensor, frames: Tensor) -> Tensor:
        outputs, frames = outputs.float(), frames.float()
        with torch.autocast(outputs.device.type, enabled=False):
            return self.wave * F.l1_loss(outputs, frames) + self.spectra * self.distance(outputs, frames)

    def distance(self, outputs: Tensor, frames: Tensor) -> Tensor:
        """Mean absolute difference of log₁₀ mel magnitudes over windows, bands and time, ()."""
        decoded, target = (expanded(values.clamp(-1, 1)).flatten(0, 1) for values in (outputs, frames))
        windows = [window for window in self.windows if window <= decoded.shape[-1]]
        terms = [F.l1_loss(self._log_mels(decoded, window), self._log_mels(target, window)) for window in windows]
        return torch.stack(terms).mean() if terms else outputs.new_zeros(())

    def _log_mels(self, wave: Tensor, window: int) -> Tensor:
        """Pressure (M, L) → (M, L // hop − 3, bands). Without padding, whose edges would sound like clicks."""
        shape, filters = getattr(self, f"window{window}"), getattr(self, f"filters{window}")
        spectra = torch.stft(wave, window, window // 4, window=shape, center=False, return_complex=True)
        # Not abs(), whose gradient at 0 is undefined.
        magnitudes = (spectra.real.square() + spectra.imag.square() + SHORTEST**2).sqrt()
        return (magnitudes.transpose(1, 2) @ filters).log10()

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.float().clamp(-1, 1)
