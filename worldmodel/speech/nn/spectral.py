"""The loss of a codec of sound: an error of the wave, and of its spectra at several resolutions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.likelihoods import Likelihood
from worldmodel.speech.nn.mel import expanded, mel_filters
from worldmodel.util.ranges import Count, Counts, NonNegative

SHORTEST = 1e-4  # floor of magnitudes: the noise of µ-law near silence


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

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """The same as :meth:`mean`: there is no distribution to draw from."""
        return self.mean(outputs)
