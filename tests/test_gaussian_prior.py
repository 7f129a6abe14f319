"""The learned prior over a VAE's latents: a density, autoregressive in sites and latents of a site; its bound."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.heads import Ancestral
from worldmodel.priors.gaussian import GaussianPrior
from worldmodel.quantizers import VectorQuantizer
from worldmodel.tokenizers import VAE, VQVAE
from worldmodel.training.objectives import PriorObjective
from worldmodel.types import Segment


def make(latents: int = 2) -> tuple[VAE, GaussianPrior]:
    torch.manual_seed(0)
    vae = VAE((3, 8, 8), [4, 4], latents, blocks=1)
    prior = GaussianPrior(vae, "abc", width=8, layers=3, condition=4, hidden=6, components=2)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return vae.eval(), prior.eval()


def segment_of(latents: Tensor, classes: Tensor) -> Segment:
    """One-step episodes of latents (B, *grid)."""
    flags = torch.zeros(len(classes), 1, dtype=torch.bool)
    return Segment(classes[:, None], torch.zeros(len(classes), 1), flags, flags, ~flags, codes=latents[:, None])


def test_a_step_is_a_sample_and_candidates_go_with_codes() -> None:
    _, prior = make()
    classes = torch.tensor([0, 2])
    drawn = prior.sample(classes, torch.Generator().manual_seed(1), 0.5)
    step, _ = prior.step(prior.begin(2), classes, Ancestral(0.5), torch.Generator().manual_seed(1))
    assert torch.equal(step.codes, drawn) and not step.rewards.any() and not step.ends.any()
    assert prior.condition_index("c") == 2 and prior.num_actions == 3
    with pytest.raises(ConfigError, match="top_k 3 goes with codes"):
        prior.step(prior.begin(2), classes, Ancestral(1.0, 3))


def test_a_latent_sees_those_before_it_and_no_other() -> None:
    _, prior = make(3)
    prior.double()
    order = torch.arange(12).view(2, 2, 3)
    for index in range(12):
        latents = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
        parts = prior._mixture(prior._features(latents, torch.zeros(1, dtype=torch.int64)), latents)
        means = parts[1].sum(-1).flatten()
        (gradient,) = torch.autograd.grad(means[index], latents)
        assert torch.equal(gradient[0] != 0, order < index)


def test_the_density_integrates_to_one() -> None:
    """Over two latents of a grid of one site, on a fine lattice."""
    torch.manual_seed(0)
    vae = VAE((3, 4, 4), [4, 4], 2, blocks=1)
    prior = GaussianPrior(vae, "a", width=8, layers=2, condition=4, hidden=6, components=3).double()
    line = torch.linspace(-12, 12, 601, dtype=torch.float64)
    lattice = torch.cartesian_prod(line, line).view(-1, 1, 1, 2)
    density = prior.log_likelihood(lattice[:, None], torch.zeros(len(lattice), 1, dtype=torch.int64)).detach().exp()
    assert float(density.sum() * (line[1] - line[0]) ** 2) == pytest.approx(1, abs=1e-3)


def test_samples_follow_what_was_learnt() -> None:
    """Two latents, the second the negative of the first; under class 1 both are 3 larger."""
    torch.manual_seed(0)
    prior = GaussianPrior(VAE((3, 4, 4), [4, 4], 2, blocks=1), "ab", width=16, layers=2, hidden=16, components=2)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(250):
        first = torch.randn(128, generator=generator)
        classes = torch.randint(0, 2, (128,), generator=generator)
        pair = torch.stack([first, -first + 0.1 * torch.randn(128, generator=generator)], -1) + 3 * classes[:, None]
        loss = prior.losses(segment_of(pair[:, None, None], classes))[0]["latents"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for label in (0, 1):
        drawn = prior.sample(torch.full((400,), label), torch.Generator().manual_seed(2)).view(400, 2) - 3 * label
        assert drawn.mean(0).abs().max() < 0.3 and 0.7 < drawn[:, 0].std() < 1.3
        assert torch.corrcoef(drawn.T)[0, 1] < -0.9


def test_the_bound_replaces_the_fixed_prior() -> None:
    vae, prior = make()
    frames = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    conditions = torch.tensor([0, 1, 2, -1])
    with torch.no_grad():
        bound = prior.bound(vae, frames, conditions, torch.Generator().manual_seed(3))
        posterior = vae.posterior(frames)
        latents = posterior.sample(torch.Generator().manual_seed(3))
        reconstruction = vae.given(frames, latents)
        cost = posterior.log_prob(latents) - prior.log_likelihood(latents[:, None], conditions[:, None])[:, 0]
    torch.testing.assert_close(bound.reconstruction, reconstruction)
    torch.testing.assert_close(bound.total, reconstruction + cost)


def test_training_leaves_the_vae_alone() -> None:
    vae, prior = make()
    objective = PriorObjective(prior, vae)
    assert all(name.startswith("prior.") for name in objective.state_dict())
    frames = torch.randint(0, 256, (5, 1, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flags = torch.zeros(5, 1, dtype=torch.bool)
    segment = Segment(torch.ones(5, 1, dtype=torch.int64), torch.zeros(5, 1), flags, flags, ~flags, frames)
    losses = objective(segment, torch.Generator().manual_seed(0))
    losses.terms["latents"].backward()
    assert all(parameter.grad is None for parameter in vae.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in prior.parameters())
    nats = float(losses.terms["latents"].detach()) * math.prod(prior.grid)
    assert float(losses.metrics["bits_per_frame"]) == pytest.approx(nats / math.log(2))


def test_it_is_a_prior_of_a_vae() -> None:
    tokenizer = VQVAE((3, 8, 8), partial(VectorQuantizer, width=4), [4, 4], blocks=1, num_codes=8)
    with pytest.raises(ConfigError, match="latents of a VAE"):
        GaussianPrior(tokenizer, "abc")


def test_a_seed_gives_the_same_latents() -> None:
    _, prior = make()
    one, two, other = (
        prior.sample(torch.tensor([0, 2]), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )  # fmt: skip
    assert isinstance(one, Tensor) and torch.equal(one, two) and not torch.equal(one, other)


def test_samples_of_several_sites_depend_on_those_before() -> None:
    """All four sites of a 2×2 grid hold the same number, up to a little noise."""
    torch.manual_seed(0)
    prior = GaussianPrior(VAE((3, 8, 8), [4, 4], 1, blocks=1), "a", width=16, layers=3, hidden=16, components=2)
    generator, optimizer = torch.Generator().manual_seed(1), torch.optim.Adam(prior.parameters(), 1e-2)
    classes = torch.zeros(128, dtype=torch.int64)
    for _ in range(300):
        same = torch.randn(128, 1, 1, 1, generator=generator).expand(-1, 2, 2, 1)
        noisy = same + 0.1 * torch.randn(same.shape, generator=generator)
        loss = prior.losses(segment_of(noisy, classes))[0]["latents"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = prior.sample(classes[:100], torch.Generator().manual_seed(2)).flatten(1)
    correlation = torch.corrcoef(drawn.T)
    assert correlation.min() > 0.9 and 0.6 < drawn.std() < 1.5
