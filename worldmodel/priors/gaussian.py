"""A learned prior over the continuous latents of a VAE: a PixelCNN over sites, mixtures of Gaussians within them.

As for the codes of a VQ-VAE, it replaces the fixed prior of training; E_q [−log p(x|z) + log q(z|x) − log p_ψ(z)] is
the bound.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.heads.noise import Randomness
from worldmodel.heads.sampling import Sampler
from worldmodel.nn.pixelcnn import GatedPixelCNN
from worldmodel.priors.base import LatentPrior, PriorState, Step, Terms
from worldmodel.tokenizers.base import Autoencoder, Bound
from worldmodel.tokenizers.variational import VAE
from worldmodel.types import Segment
from worldmodel.util.ranges import Count, Weights

LEAST_LOG_SCALE = -6.0


class GaussianPrior(LatentPrior):
    """p(z | condition) over latents (h, w, S): raster order over the sites, one after the other within a site.

    Args:
        tokenizer: the VAE; gives the shape of the latents, and is not kept.
        action_names: of the classes. condition: width of an embedded class.
        width, layers: of the PixelCNN. hidden: features of each latent. components: of its mixture.
        loss_weights: as of :class:`~worldmodel.priors.Prior`.
    """

    remembers = False
    keep_float32 = True  # densities may be very narrow

    def __init__(
        self,
        tokenizer: Autoencoder,
        action_names: Sequence[str],
        width: Count = 64,
        layers: Count = 6,
        condition: Count = 32,
        hidden: Count = 64,
        components: Count = 4,
        loss_weights: Weights | None = None,
    ):
        super().__init__(action_names, loss_weights)
        if not isinstance(tokenizer, VAE):
            raise ConfigError(
                "prior=gaussian is over the continuous latents of a VAE; choose tokenizer=vae, or for codes "
                "prior=conv, prior=pixelcnn or prior=hierarchy"
            )
        self.grid, self.components = tokenizer.grid, components
        slots = self.grid[-1]
        self.condition = nn.Embedding(len(action_names) + 1, condition)
        self.net = GatedPixelCNN(slots, condition, width, width, layers)
        self.enter = nn.Linear(width, slots * hidden)
        self.earlier = nn.Parameter(torch.randn(slots, slots, hidden) / math.sqrt(slots))  # to later ones
        # (S, S, 1): 1 where the first latent comes before the second.
        self.known = nn.Buffer(torch.ones(slots, slots).triu(1)[:, :, None], persistent=False)
        self.out = nn.Parameter(torch.randn(slots, hidden, 3 * components) * 0.1 / math.sqrt(hidden))
        self.bias = nn.Parameter(torch.randn(slots, 3 * components) * 0.5)  # different initial components

    def _features(self, latents: Tensor, conditions: Tensor) -> Tensor:
        """latents (B, h, w, S), conditions (B,) with −1 for none → (B, h, w, S, hidden), which see earlier sites."""
        embedded = self.condition(conditions + 1)[:, None, None].expand(-1, *self.grid[:2], -1)
        return self.enter(self.net(latents, embedded)).unflatten(-1, (self.grid[-1], -1))

    def _mixture(self, features: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """→ log weights, means, log scales, each (B, h, w, S, components)."""
        x = features + torch.einsum("...i,ijh->...jh", latents, self.earlier * self.known)
        parts = torch.einsum("...sh,shp->...sp", F.silu(x), self.out) + self.bias
        weights, means, scales = parts.float().chunk(3, -1)
        return weights.log_softmax(-1), means, scales.clamp(min=LEAST_LOG_SCALE)

    def log_likelihood(self, latents: Tensor, actions: Tensor) -> Tensor:
        return self._log_density(latents.flatten(0, 1), actions.flatten()).view(actions.shape)

    def _log_density(self, latents: Tensor, conditions: Tensor) -> Tensor:
        """log p(z | condition) in nats, (B,); latents (B, h, w, S), conditions (B,)."""
        weights, means, scales = self._mixture(self._features(latents, conditions), latents)
        distance = (latents[..., None] - means) * (-scales).exp()
        each = weights - scales - 0.5 * distance.square() - 0.5 * math.log(2 * math.pi)
        return each.logsumexp(-1).flatten(1).sum(1)

    def losses(self, segment: Segment, generator: Generator | None = None) -> tuple[Terms, Terms]:
        """Terms: ``latents``, nats per latent. Metric: bits per frame, of a density: it may be negative."""
        if segment.codes is None:
            raise ValueError("the prior is trained on segments of latents, not of frames")
        nats = -self._log_density(segment.steps_of(segment.codes), segment.steps_of(segment.actions)).mean()
        return {"latents": nats / math.prod(self.grid)}, {"bits_per_frame": nats.detach() / math.log(2)}

    def bound(
        self, model: Autoencoder, frames: Tensor, conditions: Tensor, generator: Generator | None = None
    ) -> Bound:
        """By one sample a frame."""
        assert isinstance(model, VAE)  # the constructor has checked it
        posterior = model.posterior(frames)
        latents = posterior.sample(generator)
        reconstruction = model.given(frames, latents)
        total = reconstruction + posterior.log_prob(latents) - self._log_density(latents, conditions)
        return Bound(total, reconstruction)

    def begin(self, batch: int) -> PriorState:
        return PriorState((), self.condition.weight.new_zeros(batch, *self.grid))

    def step(
        self, state: PriorState, actions: Tensor, sampler: Sampler, generator: Randomness = None
    ) -> tuple[Step, PriorState]:
        """Raises :class:`ConfigError` for a sampler with ``top_k``, which goes with codes."""
        if sampler.top_k is not None:
            raise ConfigError(f"top_k {sampler.top_k} goes with codes, and this run has none")
        assert generator is None or isinstance(generator, Generator)
        latents = self.sample(actions, generator, sampler.temperature)
        rewards, ends = torch.zeros(2, len(latents), device=latents.device)
        return Step(latents, rewards, ends, torch.tensor(float(math.prod(self.grid)))), state

    @torch.no_grad()
    def sample(self, conditions: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Latents (B, h, w, S) under conditions (B,); ``temperature`` scales the spread within a component."""
        height, width, slots = self.grid
        latents = self.condition.weight.new_zeros(len(conditions), *self.grid)
        device = latents.device if generator is None else generator.device
        for row in range(height):
            for column in range(width):
                features = self._features(latents, conditions)[:, row : row + 1, column : column + 1]
                for slot in range(slots):
                    here = latents[:, row : row + 1, column : column + 1]
                    parts = [part[:, 0, 0, slot] for part in self._mixture(features, here)]
                    chosen = torch.multinomial(parts[0].exp().to(device), 1, generator=generator).to(latents.device)
                    mean, scale = (part.gather(1, chosen)[:, 0] for part in parts[1:])
                    noise = torch.randn(len(conditions), generator=generator, device=device).to(latents.device)
                    latents[:, row, column, slot] = mean + temperature * scale.exp() * noise
        return latents
