"""Autoencoders whose latents are drawn from a posterior: the VAE, and VIMCO with discrete latents.

Both are compared with the VQ-VAE in its paper, and have its encoder and decoder. Their constructors raise
:class:`ConfigError` when the size of the frames cannot be halved that often or the likelihood is not exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from worldmodel.likelihoods import Categorical, Likelihood
from worldmodel.nn.convnets import CONV
from worldmodel.nn.modules import inverse_cdf, uniform
from worldmodel.tokenizers.base import Bound, Reconstruction, Tokenizer, as_float
from worldmodel.tokenizers.vqvae import ConvolutionalAutoencoder, halved
from worldmodel.util.ranges import Count, Counts, NumCodes, Positive, Weights, Whole

WIDEST = 10.0  # log standard deviations lie in (-10, 10): e^20 is far from the largest float32
NEGLIGIBLE = 1e-8  # a share of the gradient below the rounding error of float32


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


class DistancePosterior(nn.Module):
    """q(k) ∝ exp(−β ‖v − e_k‖² / 2) for vectors v of an encoder: as a quantizer chooses codes, but at random.

    The vectors e_k of each slot start at ``tables`` (slots, K, width), which the decoder reads, and β at ``sharpness``.
    """

    keep_float32 = True

    def __init__(self, tables: Tensor, sharpness: float):
        super().__init__()
        self.keys = nn.Parameter(tables.detach().clone())
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(sharpness)))

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors (B, *grid, width) float32 → log q, (B, *grid, K)."""
        scores = torch.einsum("...sd,skd->...sk", vectors, self.keys) - 0.5 * self.keys.square().sum(-1)
        return (self.log_sharpness.exp() * scores).log_softmax(-1)


class VIMCO(ConvolutionalAutoencoder, Tokenizer):
    """Mnih & Rezende, *Variational Inference for Monte Carlo Objectives* (2016), with the VQ-VAE's encoder and decoder.

    Each latent has a categorical posterior over K codes and a uniform prior. Training maximises
    L_S = E log (1/S) Σ_s w_s, w_s = p(x, z_s) / q(z_s | x), over S independent samples; the term ``bound`` is −L_S in
    nats per sub-pixel. ``frames`` and ``codes`` of a forward pass are those of the most probable codes, as ``encode``
    and ``decode`` give them.

    ``gradient`` is how the encoder learns. ``vimco``: by the unbiased estimator of the paper, which knows one number of
    each sample, its weight. ``straight_through``: to first order by the gradient of the decoder (:meth:`_pathwise`),
    which is biased and learns far faster where there are many latents.

    Args:
        frame_shape, widths, blocks, loss_weights: as of the VQ-VAE.
        num_codes: K.
        slots: latents at each position, each with its own table; the grid is (*size / 2**len(widths), slots).
        width: of the vector of a code.
        samples: S of training, at least 2.
        sharpness: β at the start, for a posterior by distances (:class:`DistancePosterior`). At 8 and a width of 4 its
            entropy is about four of nine bits, so that a decoder has something to learn from before the encoder has
            learnt anything. None: the encoder's outputs are the logits, and the posterior starts uniform.
        likelihood: constructor of an exact :class:`~worldmodel.likelihoods.Likelihood`.
        chunk: grids that are decoded at a time; it changes memory and speed, and no result.
    """

    certain = False

    def __init__(
        self,
        frame_shape: Sequence[int],
        widths: Counts,
        num_codes: NumCodes,
        slots: Count,
        width: Count,
        blocks: Whole = 2,
        samples: Annotated[int, Ge(2)] = 50,
        likelihood: Callable[..., Likelihood] = Categorical,
        chunk: Count = 32,
        sharpness: Positive | None = None,
        gradient: Literal["vimco", "straight_through"] = "vimco",
        loss_weights: Weights | None = None,
    ):
        super().__init__(loss_weights)
        self.slots, self.num_codes = (slots,), num_codes
        self.grid = (*halved(frame_shape, widths), slots)
        self.samples, self.chunk, self.gradient = samples, chunk, gradient
        self.tables = nn.Parameter(torch.randn(slots, num_codes, width))
        encoded = slots * (num_codes if sharpness is None else width)
        self._build(frame_shape, widths, blocks, encoded, slots * width, likelihood)
        self.distances = None if sharpness is None else DistancePosterior(self.tables, sharpness)
        if sharpness is not None:
            self.project = standardized(len(frame_shape) - 1, widths[-1], encoded)
        self.require_exact()

    def _posterior(self, frames: Tensor) -> Tensor:
        """Frames (B, C, *size) float in [-1, 1] → log q(code | frames), (B, *grid, K) float32."""
        vectors = self._vectors(frames).unflatten(-1, (self.grid[-1], -1))
        return vectors.log_softmax(-1) if self.distances is None else self.distances(vectors)

    def read(self, latents: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Codes (B, *grid) → what the decoder reads, (B, *spatial, slots · width)."""
        first = torch.arange(self.grid[-1], device=latents.device) * self.num_codes
        return F.embedding(latents + first, self.tables.flatten(0, 1)).flatten(-2)

    def _encode(self, frames: Tensor) -> Tensor:
        return self._posterior(frames).argmax(-1)

    def codebook(self) -> Tensor:
        return self.tables.detach().float()

    def _forward(self, frames: Tensor, generator: Generator | None, conditions: Tensor | None) -> Reconstruction:
        posterior = self._posterior(frames)
        codes = draw(posterior.detach(), self.samples, generator)
        loss = -self._objective(frames, codes, posterior).mean() / self.subpixels
        best = posterior.detach().argmax(-1)
        with torch.no_grad():
            reconstruction = self.expected_frames(best)
        return Reconstruction(reconstruction, best, {"bound": loss}, loss.detach())

    @torch.no_grad()
    def _bound(self, frames: Tensor, generator: Generator | None, samples: int | None) -> Bound:
        """−L_S with S = ``samples``, as many as in training when None; one sample: the evidence lower bound."""
        posterior = self._posterior(frames)
        codes = draw(posterior, self.samples if samples is None else samples, generator)
        conditional = self._conditional(frames, codes)
        weights = conditional - self.uniform_nats() - log_prob(posterior, codes)
        return importance_weighted(conditional, weights)

    @torch.no_grad()
    def _conditional(self, frames: Tensor, codes: Tensor) -> Tensor:
        """log p(x | z_s) of codes (S, B, *grid): (S, B) nats, decoded in chunks."""
        count, batch = codes.shape[:2]
        owner = torch.arange(batch, device=codes.device).repeat(count)
        return self._decoded(codes.flatten(0, 1), frames, owner).view(count, batch)

    def _decoded(self, codes: Tensor, frames: Tensor, owner: Tensor, added: Tensor | None = None) -> Tensor:
        """log p of frames[owner] given codes (M, *grid): (M,) nats. Only one chunk's decoder is in memory at a time.

        With gradients, several chunks are checkpointed: backward decodes each of them again. ``added`` (B, *spatial,
        slots · width) is added to what the decoder reads of each frame.
        """

        def decode(rows: Tensor, part: Tensor) -> Tensor:
            vectors = self.read(part) if added is None else self.read(part) + added[rows]
            return self.likelihood.log_prob(self._outputs(vectors), frames[rows]).flatten(1).sum(1)

        parts, run = list(zip(owner.split(self.chunk), codes.split(self.chunk), strict=True)), decode
        if len(parts) > 1 and torch.is_grad_enabled():
            run = partial(checkpoint, decode, use_reentrant=False, preserve_rng_state=False)  # it draws nothing
        return torch.cat([run(*part) for part in parts])

    def _objective(self, frames: Tensor, codes: Tensor, posterior: Tensor) -> Tensor:
        """L_S of each frame, (B,), by codes (S, B, *grid) of the posterior's log q, with the gradient of training.

        With w̃ the weights divided by their sum, ∂L/∂ log w_s = w̃_s. These are known once all samples were decoded
        without gradient. Only samples whose w̃_s is not negligible are then decoded again, with gradient: a few of 50,
        since the log weights of an image differ by tens of nats.
        """
        log_q = log_prob(posterior, codes)
        weights = self._conditional(frames, codes) - self.uniform_nats() - log_q.detach()
        value = weights.logsumexp(0) - math.log(len(weights))
        if not torch.is_grad_enabled():
            return value
        estimator = self._score if self.gradient == "vimco" else self._pathwise
        surrogate = estimator(frames, codes, posterior, log_q, weights)
        return value + (surrogate - surrogate.detach())

    def _score(self, frames: Tensor, codes: Tensor, posterior: Tensor, log_q: Tensor, weights: Tensor) -> Tensor:
        """(B,) with the gradient of VIMCO. The gradient of E L_S is the expectation of (equations 3 and 4 of the paper,
        the baseline of 5 to 9)

            Σ_s w̃_s ∇ log w_s + Σ_j (L − L₋ⱼ) ∇ log q(z_j | x),

        where L₋ⱼ has the geometric mean of the other weights in the place of w_j. So ∇ log p(x|z_s) is multiplied by
        w̃_s, and ∇ log q(z_s|x) by L − L₋ₛ − w̃_s.
        """
        shares, value = weights.softmax(0), weights.logsumexp(0) - math.log(len(weights))
        return ((value - leave_one_out(weights) - shares) * log_q).sum(0) + self._decoder(frames, codes, shares)

    def _pathwise(self, frames: Tensor, codes: Tensor, posterior: Tensor, log_q: Tensor, weights: Tensor) -> Tensor:
        """(B,) with a gradient to first order: Σ_s w̃_s ∇ log p(x | e(z_s) + ē − stop(ē)) + ∇ H(q).

        e(z) are the vectors that the decoder reads, ē is their mean under q, and H(q), the entropy, is the mean of
        −log q: what a change of q does to the sample is taken to be what it does to the mean (Bengio et al.,
        *Estimating or Propagating Gradients Through Stochastic Neurons*, 2013).
        """
        mean = torch.einsum("...sk,skd->...sd", posterior.exp(), self.tables.detach().float()).flatten(-2)
        entropy = -(posterior.exp() * posterior).flatten(1).sum(1)
        return entropy + self._decoder(frames, codes, weights.softmax(0), mean - mean.detach())

    def _decoder(self, frames: Tensor, codes: Tensor, shares: Tensor, added: Tensor | None = None) -> Tensor:
        """Σ_s w̃_s log p(x | z_s) with its gradient, (B,), by w̃ (S, B)."""
        sample, owner = (shares > NEGLIGIBLE).nonzero(as_tuple=True)
        terms = shares[sample, owner] * self._decoded(codes[sample, owner], frames, owner, added)
        return torch.zeros_like(shares[0]).index_add(0, owner, terms)


def standardized(rank: int, channels: int, outputs: int) -> nn.Sequential:
    """Features (B, channels, *size) → (B, outputs, *size), each of mean 0 and variance 1 over a batch at the start, if
    the channels are independent. An untrained encoder gives features of almost no variance."""
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[rank](channels, affine=False)
    norm.keep_float32 = True  # type: ignore[assignment]
    project = CONV[rank](channels, outputs, 1)
    nn.init.normal_(project.weight, std=channels**-0.5)
    return nn.Sequential(norm, project)


def draw(posterior: Tensor, count: int, generator: Generator | None = None) -> Tensor:
    """Independent codes of log-probabilities (B, *grid, K): (count, B, *grid) int64.

    One uniform number and a binary search for each code, where Gumbel noise would take K numbers.
    """
    noise = uniform((*posterior.shape[:-1], count), posterior.device, generator)
    return inverse_cdf(posterior.exp(), noise).movedim(-1, 0)


def log_prob(posterior: Tensor, codes: Tensor) -> Tensor:
    """Log-probabilities (B, *grid, K), codes (S, B, *grid) → log q of whole grids, (S, B) nats."""
    return posterior.gather(-1, codes.movedim(0, -1)).flatten(1, -2).sum(1).t()


def leave_one_out(weights: Tensor) -> Tensor:
    """Log weights (S, B) → L₋ⱼ (S, B): log of the mean weight, with the geometric mean of the others for the j-th."""
    count = len(weights)
    others = (weights.sum(0) - weights) / (count - 1)
    own = torch.eye(count, dtype=torch.bool, device=weights.device)[..., None]
    return torch.where(own, others, weights[None]).logsumexp(1) - math.log(count)
