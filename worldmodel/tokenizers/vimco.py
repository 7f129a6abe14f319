"""VIMCO: an autoencoder with discrete latents that are drawn from a posterior, trained by a bound of several samples.

It is compared with the VQ-VAE in its paper, and has its encoder and decoder. The constructor raises
:class:`ConfigError` when the size of the frames cannot be halved that often or the likelihood is not exact.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from worldmodel.likelihoods import Categorical, Likelihood
from worldmodel.nn.convnets import CONV
from worldmodel.nn.modules import inverse_cdf, uniform
from worldmodel.tokenizers.base import Bound, Reconstruction, Tokenizer
from worldmodel.tokenizers.variational import importance_weighted
from worldmodel.tokenizers.vqvae import ConvolutionalAutoencoder, halved
from worldmodel.util.ranges import Count, Counts, NumCodes, Positive, Weights, Whole

NEGLIGIBLE = 1e-8  # a share of the gradient below the rounding error of float32


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

    Args:
        frame_shape, widths, blocks, loss_weights: as of the VQ-VAE.
        num_codes: K.
        slots: latents at each position, each with its own table; the grid is (*size / 2**len(widths), slots).
        width: of the vector of a code.
        samples: S of training, at least 2.
        sharpness: β at the start, for a posterior by distances (:class:`DistancePosterior`). At 8 and a width of 4 its
            entropy is about four of nine bits, so that the codes contain information before the encoder is trained.
            None: the encoder's outputs are the logits, and the posterior starts uniform.
        gradient: of the encoder. ``vimco``: the unbiased estimator of the paper, which uses one number of each sample,
            its weight. ``straight_through``: a first-order approximation by the gradient of the decoder
            (:meth:`_straight_through`), which is biased and learns far faster where there are many latents.
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
        project = None if sharpness is None else standardized
        self._build(frame_shape, widths, blocks, encoded, slots * width, likelihood, project=project)
        self.distances = None if sharpness is None else DistancePosterior(self.tables, sharpness)
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
            return self._log_prob(frames[rows], vectors)

        parts, run = list(zip(owner.split(self.chunk), codes.split(self.chunk), strict=True)), decode
        if len(parts) > 1 and torch.is_grad_enabled():
            run = partial(checkpoint, decode, use_reentrant=False, preserve_rng_state=False)  # it draws nothing
        return torch.cat([run(*part) for part in parts])

    def _objective(self, frames: Tensor, codes: Tensor, posterior: Tensor) -> Tensor:
        """L_S of each frame, (B,), by codes (S, B, *grid) that were drawn from the posterior, log q (B, *grid, K), with
        the gradient that training follows.

        With w̃ the weights divided by their sum, the gradient of E L_S is the expectation of (Mnih & Rezende, equations
        3 and 4, the baseline of 5 to 9)

            Σ_s w̃_s ∇ log w_s + Σ_j (L − L₋ⱼ) ∇ log q(z_j | x),

        where L₋ⱼ has the geometric mean of the other weights in the place of w_j. So ∇ log p(x|z_s) is multiplied by
        w̃_s, and ∇ log q(z_s|x) by L − L₋ₛ − w̃_s. These factors are known once all samples were decoded without
        gradient. Only samples whose w̃_s is not negligible are then decoded again, with gradient: a few of 50, since the
        log weights of an image differ by tens of nats.
        """
        log_q = log_prob(posterior, codes)
        weights = self._conditional(frames, codes) - self.uniform_nats() - log_q.detach()
        value = weights.logsumexp(0) - math.log(len(weights))
        if not torch.is_grad_enabled():
            return value
        shares = weights.softmax(0)
        if self.gradient == "vimco":
            surrogate, added = ((value - leave_one_out(weights) - shares) * log_q).sum(0), None
        else:
            surrogate, added = self._straight_through(posterior)
        sample, owner = (shares > NEGLIGIBLE).nonzero(as_tuple=True)
        pathwise = shares[sample, owner] * self._decoded(codes[sample, owner], frames, owner, added)
        surrogate = surrogate.index_add(0, owner, pathwise)
        return value + (surrogate - surrogate.detach())

    def _straight_through(self, posterior: Tensor) -> tuple[Tensor, Tensor]:
        """H(q), (B,), and ē − stop(ē), (B, *spatial, slots · width), which is 0 and has the gradient of ē, the mean
        under q of what the decoder reads.

        The first-order gradient of L_S is Σ_s w̃_s ∇ log p(x | e(z_s) + ē − stop(ē)) + ∇ H(q): a change of q is
        assumed to change what the decoder reads of each sample as much as it changes the mean (Bengio et al.,
        *Estimating or Propagating Gradients Through Stochastic Neurons*, 2013). The entropy H(q), the mean of −log q,
        has its exact gradient.
        """
        q = posterior.exp()
        mean = torch.einsum("...sk,skd->...sd", q, self.tables.detach().float()).flatten(-2)
        return -(q * posterior).flatten(1).sum(1), mean - mean.detach()


def standardized(rank: int, channels: int, outputs: int) -> nn.Sequential:
    """Batch normalisation and a 1-wide convolution: features (B, channels, *size) → (B, outputs, *size) with a variance
    of about 1 at the start. The features of an untrained encoder have almost none."""
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
