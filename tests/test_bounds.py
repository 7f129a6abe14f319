"""Bounds against brute force: every code of tiny models is enumerated, every latent integrated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.likelihoods import Categorical, LogisticMixture, SquaredError
from worldmodel.quantizers import VectorQuantizer
from worldmodel.tokenizers import VAE, VIMCO, VQVAE, Autoencoder, Tokenizer, vimco
from worldmodel.tokenizers.variational import Gaussian, importance_weighted
from worldmodel.types import to_float

LIKELIHOODS = {"categorical": Categorical, "mixture": partial(LogisticMixture, components=2)}


def blown_up(model: Autoencoder, factor: float = 3.0) -> Autoencoder:
    """Larger weights, so that posteriors are far from flat and codes matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model.eval()


def tiny_vqvae(likelihood: Callable[..., Categorical | LogisticMixture] = Categorical) -> VQVAE:
    """Frames 4×2 → 2×1 codes of 3."""
    torch.manual_seed(0)
    model = VQVAE((1, 4, 2), partial(VectorQuantizer, width=2), [4], blocks=1, num_codes=3, likelihood=likelihood)
    assert isinstance(blown_up(model), VQVAE)
    return model


def tiny_vimco(samples: int = 2, factor: float = 3.0, **settings: object) -> VIMCO:
    """Frames 2×2 → one place with 2 slots of 3 codes: 9 grids."""
    torch.manual_seed(0)
    facts = {"frame_shape": (1, 2, 2), "widths": [4], "num_codes": 3, "slots": 2, "width": 2, "blocks": 1}
    model = VIMCO(samples=samples, **(facts | {"chunk": 4000} | settings))  # type: ignore[arg-type]
    assert isinstance(blown_up(model, factor), VIMCO)
    return model


def tiny_vae(latents: int) -> VAE:
    """Frames 2×2 → one place with one or two numbers."""
    torch.manual_seed(1)
    model = VAE((1, 2, 2), [4], latents, blocks=1)
    assert isinstance(blown_up(model, 2.0), VAE)
    return model


def some_frames(model: Autoencoder, count: int = 1) -> Tensor:
    shape = (count, *model.frame_shape)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def all_grids(model: Tokenizer) -> Tensor:
    """(K^N, *grid): every grid of codes there is."""
    codes = itertools.product(range(model.num_codes), repeat=math.prod(model.grid))
    return torch.tensor(list(codes)).view(-1, *model.grid)


def conditional(model: VQVAE | VIMCO, frame: Tensor) -> Tensor:
    """log p(frame | z) for every grid, (K^N,)."""
    grids = all_grids(model)
    return model.log_likelihood(to_float(frame.expand(len(grids), *model.frame_shape)), grids)


def evidence(model: VQVAE | VIMCO, frame: Tensor) -> Tensor:
    """log p(frame), exactly: the mean over all grids, which are equally probable."""
    return conditional(model, frame).logsumexp(0) - model.uniform_nats()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_vqvae_is_below_the_evidence_and_its_arithmetic_is_exact(name: str) -> None:
    model = tiny_vqvae(LIKELIHOODS[name])
    frames = some_frames(model, 5)
    bound = model.bound(frames)
    torch.testing.assert_close(bound.total - bound.reconstruction, torch.full((5,), 2 * math.log(3)))
    for index, frame in enumerate(frames):
        every = conditional(model, frame)
        own = (all_grids(model) == model.encode(frame[None])).flatten(1).all(1)
        torch.testing.assert_close(-every[own], bound.reconstruction[index : index + 1])
        assert -bound.total[index] < evidence(model, frame)
    assert (conditional(model, frames[0]).std() > 1).item()  # the codes matter


def test_forward_reports_the_bound_as_trained() -> None:
    """Where nothing is drawn the figure of a forward pass is that of the bound."""
    model = tiny_vqvae()
    frames = some_frames(model, 5)
    nats = model(frames).nats
    assert nats is not None
    torch.testing.assert_close(nats, model.bound(frames).total.mean() / 8)
    assert not nats.requires_grad
    assert tiny_squared()(frames).nats is None


def tiny_squared() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE((1, 4, 2), partial(VectorQuantizer, width=2), [4], blocks=1, num_codes=3).eval()


def test_a_squared_error_has_no_bound() -> None:
    model = tiny_squared()
    with pytest.raises(
        ConfigError, match=r"SquaredError is no likelihood of uint8 values.*choose Categorical or Logistic"
    ):
        model.bound(some_frames(model))
    with pytest.raises(ConfigError, match="SquaredError"):
        VAE((1, 2, 2), [4], 1, likelihood=SquaredError)
    with pytest.raises(ConfigError, match="SquaredError"):
        tiny_vimco(likelihood=SquaredError)


def exact_mean_of_bound(model: VIMCO, frame: Tensor, samples: int) -> Tensor:
    """L_S by the sum over all K^(N·S) tuples of samples, with its gradient, ()."""
    posterior = model._posterior(to_float(frame))
    log_q = vimco.log_prob(posterior, all_grids(model)[:, None])[:, 0].double()  # (9,)
    weights = conditional(model, frame[0]).double() - model.uniform_nats() - log_q
    tuples = torch.tensor(list(itertools.product(range(len(log_q)), repeat=samples)))  # (9^S, S)
    values = weights[tuples].logsumexp(1) - math.log(samples)
    return (log_q[tuples].sum(1).exp() * values).sum()


def test_vimco_bounds_rise_with_the_samples_towards_the_evidence() -> None:
    model = tiny_vimco()
    frame = some_frames(model)
    with torch.no_grad():
        exact = [float(exact_mean_of_bound(model, frame, samples)) for samples in (1, 2, 3, 4)]
        truth = float(evidence(model, frame[0]))
    assert exact[0] < exact[1] - 0.05 < exact[2] < exact[3] < truth
    many = frame.expand(4000, -1, -1, -1)
    for samples, mean in zip((1, 2, 3, 4), exact, strict=True):
        drawn = -model.bound(many, torch.Generator().manual_seed(samples), samples).total
        assert abs(drawn.mean() - mean) < 4 * drawn.std() / len(many) ** 0.5
    drawn = -model.bound(many[:200], torch.Generator().manual_seed(0), 300).total
    assert float(drawn.mean()) == pytest.approx(truth, abs=0.05)


@pytest.mark.parametrize(("samples", "codes", "sharpness"), [(2, 3, None), (3, 2, None), (2, 3, 0.8)])
def test_the_gradient_of_vimco_is_that_of_its_bound_in_expectation(
    samples: int, codes: int, sharpness: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tuple of samples is handed to a training step; their gradients, weighted by the tuples' probabilities, must
    add up to the gradient of the exact L_S, for the encoder, the tables and the decoder."""
    model = tiny_vimco(samples, 3.0 if sharpness is None else 4.5, num_codes=codes, sharpness=sharpness)
    frame = some_frames(model)
    exact_mean_of_bound(model, frame, samples).backward()
    expected = gradients(model)
    grids = all_grids(model)
    with torch.no_grad():
        log_q = vimco.log_prob(model._posterior(to_float(frame)), grids[:, None])[:, 0]
    assert 0.3 < torch.special.entr(log_q.exp()).sum() < 0.97 * math.log(len(grids))  # neither a point nor flat
    assert conditional(model, frame[0]).std() > 1
    value = 0.0
    for chosen in itertools.product(range(len(grids)), repeat=samples):
        drawn = grids[list(chosen)][:, None]
        monkeypatch.setattr(vimco, "draw", lambda *_, drawn=drawn: drawn)
        loss = model(frame).losses["bound"] * -model.subpixels
        probability = log_q[list(chosen)].sum().exp()
        (probability * loss).backward()
        value += float(probability * loss.detach())
    assert value == pytest.approx(float(exact_mean_of_bound(model, frame, samples).detach()), rel=1e-5)
    found = gradients(model)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=2e-4, atol=2e-5 * float(gradient.abs().max()), msg=name)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Those of all parameters, which lose them."""
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
        found[name], parameter.grad = parameter.grad, None
    return found


def larger_vimco(chunk: int, **settings: object) -> VIMCO:
    return tiny_vimco(20, 4.0, **({"frame_shape": (3, 8, 8), "chunk": chunk, "num_codes": 5} | settings))


def test_the_posterior_by_distances_is_a_softmax_of_squared_distances() -> None:
    torch.manual_seed(0)
    tables, vectors = torch.randn(2, 5, 3), torch.randn(4, 2, 2, 2, 3)  # 2 slots of 5 codes, a grid of 2×2 places
    log_q = vimco.DistancePosterior(tables, 1.7)(vectors)
    distances = torch.stack([(vectors[..., s, None, :] - tables[s]).square().sum(-1) for s in (0, 1)], -2)
    torch.testing.assert_close(log_q, torch.log_softmax(-1.7 / 2 * distances, -1))


def test_straight_through_gradients_are_those_of_the_samples_moved_by_the_mean() -> None:
    """Written out for all samples at once: Σ_s w̃_s ∇ log p(x | e(z_s) + ē − stop(ē)) + ∇ H(q)."""
    model = larger_vimco(1000, sharpness=0.5, gradient="straight_through")
    frames = some_frames(model, 3)
    value = model(frames, torch.Generator().manual_seed(0)).losses["bound"]
    value.backward()
    found = gradients(model)
    x = to_float(frames)
    posterior = model._posterior(x)
    codes = vimco.draw(posterior.detach(), model.samples, torch.Generator().manual_seed(0))
    mean = torch.stack([posterior[..., s, :].exp() @ model.tables[s].detach() for s in (0, 1)], -2).flatten(-2)
    joint = []
    for drawn in codes:
        read = model.read(drawn) + mean - mean.detach()
        joint.append(model.likelihood.log_prob(model._outputs(read), x).flatten(1).sum(1))
    given = torch.stack(joint)
    weights = given.detach() - model.uniform_nats() - vimco.log_prob(posterior, codes).detach()
    bound = (weights.logsumexp(0) - math.log(len(codes))).mean()
    assert float(value.detach()) == pytest.approx(-float(bound) / model.subpixels, rel=1e-5)
    entropy = torch.special.entr(posterior.exp()).flatten(1).sum(1)
    (-((weights.softmax(0) * given).sum(0) + entropy).mean() / model.subpixels).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6 + 1e-5 * float(gradient.abs().max()))


def step_gradients(model: VIMCO) -> tuple[dict[str, Tensor], float]:
    loss = model(some_frames(model, 3), torch.Generator().manual_seed(0)).losses["bound"]
    loss.backward()
    return gradients(model), float(loss.detach())


@pytest.mark.parametrize(("chunk", "gradient"), [(1, "vimco"), (7, "vimco"), (7, "straight_through")])
def test_chunks_change_nothing(chunk: int, gradient: str) -> None:
    whole, parts = (step_gradients(larger_vimco(size, gradient=gradient)) for size in (1000, chunk))
    assert parts[1] == pytest.approx(whole[1], rel=1e-6)
    for name, gradient in whole[0].items():
        torch.testing.assert_close(parts[0][name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
    frames = some_frames(larger_vimco(1), 3)
    bounds = [larger_vimco(size).bound(frames, torch.Generator().manual_seed(0)) for size in (1000, chunk)]
    torch.testing.assert_close(bounds[0].total, bounds[1].total)


def test_samples_of_no_weight_are_left_out_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    original = VIMCO._decoded

    def counting(self: VIMCO, codes: Tensor, *rest: Tensor) -> Tensor:
        decoded.append(len(codes))
        return original(self, codes, *rest)

    monkeypatch.setattr(VIMCO, "_decoded", counting)
    few = step_gradients(larger_vimco(1000))
    monkeypatch.setattr(vimco, "NEGLIGIBLE", -1.0)
    every = step_gradients(larger_vimco(1000))
    assert decoded[0] == 60 and decoded[1] < 60 and decoded[2:] == [60, 60]
    assert few[1] == every[1]
    for name, gradient in every[0].items():
        torch.testing.assert_close(few[0][name], gradient, rtol=1e-3, atol=1e-6 * float(gradient.abs().max()))


def test_the_leave_one_out_baseline_is_that_of_the_paper() -> None:
    weights = torch.tensor([[0.5, -300.0], [2.0, -310.0], [-1.0, -250.0]], dtype=torch.float64)
    baseline = vimco.leave_one_out(weights)
    for j, b in itertools.product(range(3), range(2)):
        others = [float(weights[s, b]) for s in range(3) if s != j]
        geometric = sum(others) / 2
        expected = math.log(sum(math.exp(w + 300) for w in [*others, geometric]) / 3) - 300
        assert float(baseline[j, b]) == pytest.approx(expected)


def test_codes_are_drawn_by_their_probabilities() -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.2, 0.3, 0.0]])
    codes = vimco.draw(probabilities.log(), 40000, torch.Generator().manual_seed(0))
    assert codes.shape == (40000, 1)
    shares = torch.bincount(codes.flatten(), minlength=6) / 40000
    torch.testing.assert_close(shares, probabilities[0], rtol=0, atol=0.01)
    assert shares[probabilities[0] == 0].sum() == 0


@pytest.mark.parametrize("latents", [1, 2])
def test_vae_bounds_against_the_integral(latents: int) -> None:
    model = tiny_vae(latents)
    frame = some_frames(model)
    axis = torch.linspace(-7, 7, 1401 if latents == 1 else 281)
    z = torch.cartesian_prod(*[axis] * latents).view(-1, 1, 1, latents)
    cell = latents * math.log(float(axis[1] - axis[0]))
    with torch.no_grad():
        given = -model.given(frame.expand(len(z), -1, -1, -1), z)
        zero = torch.zeros_like(z)
        joint = given + Gaussian(zero, zero).log_prob(z)
        truth = float(joint.logsumexp(0) + cell)
        posterior = model.posterior(frame)
        density = posterior.log_prob(z)
        lower = float(((joint - density) * (density + cell).exp()).sum())  # the evidence lower bound by its definition
        assert float((density + cell).exp().sum()) == pytest.approx(1, abs=1e-3)
        many = frame.expand(2000, -1, -1, -1)
        drawn = {s: -model.bound(many, torch.Generator().manual_seed(s), s).total for s in (1, 2, 10)}
    error = {s: 4 * float(value.std()) / 2000**0.5 for s, value in drawn.items()}
    mean = {s: float(value.mean()) for s, value in drawn.items()}
    assert abs(mean[1] - lower) < error[1]
    assert mean[1] < mean[2] < mean[10] < truth + error[10]
    assert lower < truth - 0.05 and truth - mean[10] < 0.5 * (truth - lower)


def test_the_divergence_of_the_vae_is_that_of_torch() -> None:
    model = tiny_vae(2)
    frames = some_frames(model, 4)
    posterior = model.posterior(frames)
    own = torch.distributions.Normal(posterior.mean, posterior.log_std.exp())
    standard = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    expected = torch.distributions.kl_divergence(own, standard).flatten(1).sum(1)
    torch.testing.assert_close(posterior.kl(), expected)
    z = posterior.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(posterior.log_prob(z), own.log_prob(z).flatten(1).sum(1))
    result = model(frames, torch.Generator().manual_seed(0))
    torch.testing.assert_close(result.losses["kl"], expected.mean() / 4)
    bound = model.bound(frames, torch.Generator().manual_seed(0))
    torch.testing.assert_close(bound.total - bound.reconstruction, expected)
    # The plain sum of the terms is the negative evidence lower bound of the same draw, in nats per sub-pixel.
    torch.testing.assert_close(sum(result.losses.values()), bound.total.mean() / 4)
    assert result.nats is not None
    torch.testing.assert_close(result.nats, bound.total.mean() / 4)


@pytest.mark.parametrize("make", [partial(tiny_vae, 2), partial(tiny_vimco, 4), tiny_vqvae])
def test_a_generator_fixes_the_figure(make: Callable[[], Autoencoder]) -> None:
    model = make()
    frames = some_frames(model, 4)
    first, second = (model.bound(frames, torch.Generator().manual_seed(5), samples=3) for _ in range(2))
    assert torch.equal(first.total, second.total) and torch.equal(first.reconstruction, second.reconstruction)
    other = model.bound(frames, torch.Generator().manual_seed(6), samples=3).total
    assert torch.equal(first.total, other) == isinstance(model, VQVAE)  # a point posterior draws nothing


def test_the_parts_of_a_weighted_bound_are_those_of_the_samples_that_count() -> None:
    conditional, weights = torch.tensor([[-10.0], [-500.0]]), torch.tensor([[-15.0], [-600.0]])
    bound = importance_weighted(conditional, weights)
    assert float(bound.total) == pytest.approx(15 + math.log(2))
    assert float(bound.reconstruction) == pytest.approx(10)
    equal = importance_weighted(torch.tensor([[-10.0], [-20.0]]), torch.tensor([[-30.0], [-30.0]]))
    assert (float(equal.total), float(equal.reconstruction)) == pytest.approx((30, 15))
