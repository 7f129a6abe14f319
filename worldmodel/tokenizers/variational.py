"""The VAE, and the bound of several samples that VIMCO shares with it.

It is compared with the VQ-VAE in its paper, and has its encoder and decoder. The constructor raises
:class:`ConfigError` when the size of the frames cannot be halved that often or the likelihood is not exact.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from worldmodel.likelihoods import Categorical, Likelihood
from worldmodel.tokenizers.base import Bound, Reconstruction, as_float
from worldmodel.tokenizers.vqvae import ConvolutionalAutoencoder, halved
from worldmodel.util.ranges import Count, Counts, Weights, Whole

WIDEST = 10.0  # log standard deviations lie in (-10, 10): e^20 is far from the largest float32


def importance_weighted(conditional: Tensor, weights: Tensor) -> Bound:
    """The bound of S samples z_s of q, L_S = E log (1/S) Σ_s w_s, w_s = p(x, z_s) / q(z_s|x) (Burda et al., *Importance
    Weighted Autoencoders*, 2016).

    ``weights`` (S, B) are log w_s, ``conditional`` (S, B) log p(x|z_s), in nats. The reconstruction of the bound is the
    mean of −log p(x|z_s) weighted by w_s, since samples with a small weight hardly change the bound.
    """
    total = math.log(len(weights)) - weights.logsumexp(0)
    return Bound(total, -(weights.softmax(0) * conditional).sum(0))


class Gaussian(NamedTuple):
    """Independent normal distributions."""

    mean: Tensor  # (B, *grid) float32
    log_std: Tensor  # (B, *grid) float32

    def sample(self, generator: Generator | None = None) -> Tensor:
        """(B, *grid), reparameterised: gradients flow to the mean and the standard deviation."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device).to(self.mean.device)
        return self.mean + self.log_std.exp() * noise

    def log_prob(self, latents: Tensor) -> Tensor:
        """(B, *grid) → (B,) nats."""
        scaled = (latents - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * scaled.square() - self.log_std - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def kl(self) -> Tensor:
        """KL(self ‖ N(0, I)): (B,) nats."""
        terms = 0.5 * (self.mean.square() + torch.exp(2 * self.log_std) - 1) - self.log_std
        return terms.flatten(1).sum(1)


class VAE(ConvolutionalAutoencoder):
    """Kingma & Welling, *Auto-Encoding Variational Bayes* (2014), with the encoder and decoder of the VQ-VAE.

    Terms: ``reconstruction`` and ``kl``, whose plain sum is the negative evidence lower bound in nats per sub-pixel.

    Args:
        frame_shape, widths, blocks, loss_weights: as of the VQ-VAE.
        latents: numbers at each position; the grid is (*size / 2**len(widths), latents).
        likelihood: constructor of an exact :class:`~worldmodel.likelihoods.Likelihood`.
    """

    certain = False

    def __init__(
        self,
        frame_shape: Sequence[int],
        widths: Counts,
        latents: Count,
        blocks: Whole = 2,
        likelihood: Callable[..., Likelihood] = Categorical,
        loss_weights: Weights | None = None,
    ):
        super().__init__(loss_weights)
        self.grid = (*halved(frame_shape, widths), latents)
        self._build(frame_shape, widths, blocks, 2 * latents, latents, likelihood)
        self.require_exact()

    def posterior(self, frames: Tensor) -> Gaussian:
        """Frames (B, C, *size) uint8 → q(z | frames)."""
        return self._posterior(as_float(frames))

    def _posterior(self, frames: Tensor) -> Gaussian:
        mean, log_std = self._vectors(frames).chunk(2, -1)
        # Smooth, nearly the identity for usual values, and with a gradient everywhere.
        return Gaussian(mean, WIDEST * torch.tanh(log_std / WIDEST))

    @torch.no_grad()
    def latents(self, frames: Tensor, generator: Generator | None = None) -> Tensor:
        return self.posterior(frames).sample(generator)

    def _encode(self, frames: Tensor) -> Tensor:
        return self._posterior(frames).mean

    def _forward(self, frames: Tensor, generator: Generator | None, conditions: Tensor | None) -> Reconstruction:
        posterior = self._posterior(frames)
        outputs = self._outputs(posterior.sample(generator))
        result = self.likelihood.loss_and_frames(outputs, frames)
        losses = {"reconstruction": result.loss, "kl": posterior.kl().mean() / self.subpixels}
        nats = (losses["reconstruction"] + losses["kl"]).detach()
        return Reconstruction(result.frames, None, losses, nats)

    def _bound(self, frames: Tensor, generator: Generator | None, samples: int | None) -> Bound:
        """The evidence lower bound for one sample, with its KL divergence in closed form; else importance weighted."""
        posterior = self._posterior(frames)
        if samples is None or samples == 1:
            reconstruction = -self.log_likelihood(frames, posterior.sample(generator))
            return Bound(reconstruction + posterior.kl(), reconstruction)
        prior = Gaussian(torch.zeros_like(posterior.mean), torch.zeros_like(posterior.mean))
        conditional, weights = [], []
        for _ in range(samples):
            latents = posterior.sample(generator)
            conditional.append(self.log_likelihood(frames, latents))
            weights.append(conditional[-1] + prior.log_prob(latents) - posterior.log_prob(latents))
        return importance_weighted(torch.stack(conditional), torch.stack(weights))
