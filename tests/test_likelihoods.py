"""Likelihoods: distributions over 256 levels, in every corner, with the gradients of their formulas."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.likelihoods import Categorical, LogisticMixture, SquaredError
from worldmodel.likelihoods.base import NUM_VALUES, Likelihood, frames_of
from worldmodel.types import to_float

EXACT = {
    "categorical": Categorical,
    "logistic": partial(LogisticMixture, components=1),
    "mixture": partial(LogisticMixture, components=4),
}


@pytest.fixture(params=EXACT, name="likelihood")
def make_likelihood(request: pytest.FixtureRequest) -> Likelihood:
    make: Callable[..., Likelihood] = EXACT[request.param]
    return make(channels=2)


def random_outputs(likelihood: Likelihood, size: tuple[int, ...] = (3, 2), spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return spread * torch.randn(1, likelihood.outputs, *size, generator=generator)


def every_level(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    """(256, C, *size): log-probabilities of all levels under the outputs of one frame."""
    size = outputs.shape[2:]
    levels = to_float(torch.arange(NUM_VALUES, dtype=torch.uint8)).view(-1, 1, *[1] * len(size))
    frames = levels.expand(-1, likelihood.channels, *size)
    return likelihood.log_prob(outputs.expand(NUM_VALUES, *[-1] * (outputs.dim() - 1)), frames)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.1, 2.0, 30.0])
def test_the_probabilities_of_all_levels_sum_to_one(likelihood: Likelihood, spread: float, dtype: torch.dtype) -> None:
    outputs = random_outputs(likelihood, spread=spread).to(dtype)
    nats = every_level(likelihood, outputs)
    assert nats.dtype == torch.float32 and nats.shape == (NUM_VALUES, 2, 3, 2)
    torch.testing.assert_close(nats.double().exp().sum(0), torch.ones(2, 3, 2, dtype=torch.float64), rtol=0, atol=2e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layouts_make_no_difference(likelihood: Likelihood, layout: torch.memory_format) -> None:
    outputs = random_outputs(likelihood)
    frames = frames_of(torch.arange(12).view(1, 2, 3, 2) * 20)
    plain = likelihood.log_prob(outputs, frames)
    torch.testing.assert_close(likelihood.log_prob(outputs.contiguous(memory_format=layout), frames), plain)
    assert torch.equal(likelihood.log_prob(outputs[..., 0], frames[..., 0]), plain[..., 0])  # sound has rank 1


@pytest.mark.parametrize("value", [0.0, 1e2, -1e2, 1e4, -1e4])
def test_extremes_are_finite_and_have_gradients(likelihood: Likelihood, value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (1, likelihood.outputs, 2, 3), generator=generator) * 2 - 1
    for outputs in (torch.full((1, likelihood.outputs, 2, 3), value), signs * value):
        leaf = outputs.clone().requires_grad_()
        for level in (0, 1, 127, 254, 255):
            nats = likelihood.log_prob(leaf, frames_of(torch.full((1, 2, 2, 3), level)))
            (grad,) = torch.autograd.grad(nats.sum(), leaf)
            assert nats.isfinite().all() and grad.isfinite().all()
            assert (nats <= 1e-6).all()


@pytest.mark.parametrize("offset", [-30.0, -1.0, 1.0, 30.0])
def test_a_mean_that_is_far_off_is_pulled_back(offset: float) -> None:
    """Where a difference of two sigmoids is 0 in float32, the gradient must not vanish."""
    likelihood = LogisticMixture(1, components=1)
    outputs = torch.tensor([0.0, offset, -20.0]).view(1, 3, 1).requires_grad_()  # weight, mean, the narrowest scale
    nats = likelihood.log_prob(outputs, torch.full((1, 1, 1), 1 / 255))
    (grad,) = torch.autograd.grad(nats.sum(), outputs)
    assert nats < -100
    assert torch.sign(grad[0, 1, 0]) == -torch.sign(torch.tensor(offset))


def test_the_mass_of_a_bin_is_a_difference_of_two_sigmoids() -> None:
    likelihood = LogisticMixture(2, components=3)
    outputs = random_outputs(likelihood, spread=1.0)
    weights, means, scales = (part.double() for part in likelihood._parameters_of(outputs))
    edges = (torch.arange(1, NUM_VALUES, dtype=torch.float64) - 0.5) * 2 / 255 - 1
    below = torch.sigmoid((edges[:, None] - means[..., None, :]) / scales[..., None, :].exp())  # (…, 255, components)
    zero = torch.zeros_like(below[..., :1, :])
    mass = (torch.cat([below, zero + 1], -2) - torch.cat([zero, below], -2)) @ weights.exp()[..., None]
    expected = mass[..., 0].movedim(-1, 0).movedim(-1, 2)  # (1, *size, C, 256) → (256, 1, C, *size)
    torch.testing.assert_close(every_level(likelihood, outputs).double().exp()[:, None], expected, rtol=1e-4, atol=1e-7)


def test_mean_and_samples_are_those_of_the_probabilities(likelihood: Likelihood) -> None:
    outputs = random_outputs(likelihood, size=(2,), spread=1.0)
    probabilities = every_level(likelihood, outputs).double().exp()  # (256, C, L)
    levels = to_float(torch.arange(NUM_VALUES, dtype=torch.uint8)).double()
    expected = torch.einsum("l,lcx->cx", levels, probabilities)
    torch.testing.assert_close(likelihood.mean(outputs)[0].double(), expected, rtol=0, atol=1 / 255)
    count = 20000
    draws = likelihood.sample(outputs.expand(count, -1, -1), torch.Generator().manual_seed(0))
    drawn = ((draws + 1) * 127.5).round().long()
    torch.testing.assert_close(draws, frames_of(drawn))
    below = torch.stack([(drawn <= level).double().mean(0) for level in (0, 30, 127, 200, 254)])
    cumulative = probabilities.cumsum(0)[[0, 30, 127, 200, 254]]
    torch.testing.assert_close(below, cumulative, rtol=0, atol=5 * 0.5 / count**0.5)
    again = likelihood.sample(outputs.expand(count, -1, -1), torch.Generator().manual_seed(0))
    assert torch.equal(draws, again)


def test_categorical_is_the_plain_cross_entropy() -> None:
    likelihood = Categorical(3)
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 768, 40, 30, generator=generator).requires_grad_()  # more rows than fit one block
    levels = torch.randint(0, NUM_VALUES, (2, 3, 40, 30), generator=generator)
    weights = torch.rand(2, 3, 40, 30, generator=generator)
    nats = likelihood.log_prob(outputs, frames_of(levels))
    plain = -F.cross_entropy(outputs.unflatten(1, (3, NUM_VALUES)).transpose(1, 2), levels, reduction="none")
    torch.testing.assert_close(nats, plain)
    (grad,) = torch.autograd.grad((nats * weights).sum(), outputs)
    (expected,) = torch.autograd.grad((plain * weights).sum(), outputs)
    torch.testing.assert_close(grad, expected)


def test_squared_error_is_the_mean_squared_error_bit_for_bit() -> None:
    likelihood = SquaredError(3)
    assert not likelihood.exact and likelihood.outputs == 3
    outputs, frames = (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(2))
    assert torch.equal(likelihood.loss(outputs, frames), F.mse_loss(outputs, frames))
    torch.testing.assert_close(-likelihood.log_prob(outputs, frames).mean(), likelihood.loss(outputs, frames))
    assert torch.equal(likelihood.mean(outputs), outputs)


@pytest.mark.parametrize(("name", "steps", "most"), [("categorical", 500, 0.71), ("mixture", 500, 0.75)])
def test_the_loss_is_in_nats_per_sub_pixel(name: str, steps: int, most: float) -> None:
    """Two levels of equal frequency cost ln 2 for what can have two peaks; flat scores cost ln 256."""
    likelihood = EXACT[name](channels=1)  # type: ignore[operator]
    frames = frames_of(torch.tensor([10, 200, 10, 200]).view(4, 1, 1))
    outputs = torch.zeros(1, likelihood.outputs, 1, requires_grad=True)
    if name == "categorical":
        assert likelihood.loss(outputs.expand(4, -1, -1), frames).item() == pytest.approx(5.545177, abs=1e-5)
    optimizer = torch.optim.Adam([outputs], 0.1)
    for _ in range(steps):
        loss = likelihood.loss(outputs.expand(4, -1, -1), frames)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 0.6931 <= loss.item() < most
