"""Predictive sampling returns the ancestral samples, all of them; both draw from the head's distribution."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tiny import tiny_prior

from worldmodel.errors import ConfigError
from worldmodel.heads import Ancestral, GridSpec, Predictive, TransformerHead, make_sampler

every_order = pytest.mark.parametrize("order", ["quincunx", "raster"])


def head_and_contexts(count: int, dtype: torch.dtype, order: str = "quincunx") -> tuple[Any, torch.Tensor]:
    """A head of 64 positions and 512 codes with strong dependencies between them."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"context_width": 16, "width": 32, "heads": 2, "embed": 16, "order": order}
    head = TransformerHead(GridSpec((8, 8), torch.randn(512, 8)), **shape)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return head.to(dtype).eval(), torch.randn(count, 64, 16, dtype=dtype)


@every_order
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.0, None), (0.0, 1)])
def test_predictive_equals_ancestral_on_two_hundred_grids(
    dtype: torch.dtype, temperature: float, top_k: int | None, order: str
) -> None:
    head, contexts = head_and_contexts(200, dtype, order)
    results = []
    for sampler in (Ancestral(temperature, top_k, together=False), Predictive(temperature, top_k)):
        generator = torch.Generator().manual_seed(7)
        parts = [sampler.sample(head, part, generator) for part in contexts.split(50)]
        results.append(torch.cat([codes for codes, _ in parts]))
    assert torch.equal(results[0], results[1])
    assert len(results[0].unique()) > (10 if temperature == 0 else 100)


def test_positions_that_are_drawn_together_are_drawn_as_one_by_one() -> None:
    head, contexts = head_and_contexts(100, torch.float64)
    assert sum(head.groups) == 64 and len(head.groups) < 20
    one, two = (
        Ancestral(together=together).sample(head, contexts, torch.Generator().manual_seed(7))[0]
        for together in (True, False)
    )
    assert torch.equal(one, two)


@every_order
def test_predictive_equals_ancestral_with_few_candidates(order: str) -> None:
    head, contexts = head_and_contexts(60, torch.float32, order)
    one, two = (
        sampler(0.7, 20).sample(head, contexts, torch.Generator().manual_seed(7))[0]
        for sampler in (Ancestral, Predictive)
    )
    assert torch.equal(one, two)


@every_order
def test_a_batch_of_one_draws_the_same_as_ancestral(order: str) -> None:
    head, contexts = head_and_contexts(20, torch.float32, order)
    for row in contexts.split(1):
        one, ones = Ancestral().sample(head, row, torch.Generator().manual_seed(3))
        two, passes = Predictive().sample(head, row, torch.Generator().manual_seed(3))
        assert torch.equal(one, two)
        assert float(ones) == len(head.groups)
        assert 1 <= float(passes) <= 64


@every_order
def test_near_ties_are_settled_alike(order: str) -> None:
    head, contexts = head_and_contexts(8, torch.float32, order)
    with torch.no_grad():  # every code has a twin that differs by rounding alone
        head.logits.weight[256:] = head.logits.weight[:256]
        head.logits.bias[256:] = head.logits.bias[:256] * (1 + 1e-7)
    first, _ = Ancestral(0.0, 1).sample(head, contexts)
    second, _ = Predictive(0.0, 1).sample(head, contexts)
    single = torch.cat([Predictive(0.0, 1).sample(head, row)[0] for row in contexts.split(1)])
    assert torch.equal(first, second)
    assert torch.equal(first, single)


def test_samples_follow_the_distribution() -> None:
    torch.manual_seed(0)
    head = TransformerHead(GridSpec((1, 3), torch.randn(3, 2)), 4, width=8, heads=2, embed=4).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.7)
    grids = torch.tensor(list(itertools.product(range(3), repeat=3)))
    context = torch.randn(1, 3, 4)
    with torch.no_grad():
        logits = head(grids, context.expand(27, -1, -1))
    exact = logits.log_softmax(-1).gather(-1, grids[..., None]).squeeze(-1).sum(1).exp()
    count = 20000
    codes, _ = Predictive().sample(head, context.expand(count, -1, -1), torch.Generator().manual_seed(0))
    found = torch.bincount(codes @ torch.tensor([9, 3, 1]), minlength=27) / count
    assert (found - exact).abs().max() < 4 * (0.25 / count) ** 0.5
    assert exact.max() > 0.1


def test_temperature_zero_takes_the_code_of_the_least_expected_distance() -> None:
    head, contexts = head_and_contexts(4, torch.float64)
    codes, _ = Ancestral(0.0).sample(head, contexts)
    with torch.no_grad():
        likely = head(codes, contexts).softmax(-1)
    distances = torch.cdist(head.vectors, head.vectors).square()
    assert torch.equal((likely @ distances.to(likely)).argmin(-1), codes)
    assert not torch.equal(likely.argmax(-1), codes)


def test_temperature_zero_of_one_candidate_takes_the_most_probable_code() -> None:
    head, contexts = head_and_contexts(4, torch.float32)
    codes, _ = Ancestral(0.0, 1).sample(head, contexts)
    with torch.no_grad():
        assert torch.equal(head(codes, contexts).argmax(-1), codes)


def test_top_k_draws_nothing_else() -> None:
    head, contexts = head_and_contexts(4, torch.float32)
    codes, _ = Ancestral(1.0, top_k=3).sample(head, contexts, torch.Generator().manual_seed(0))
    with torch.no_grad():
        best = head(codes, contexts).topk(3, -1).indices
    assert (best == codes[..., None]).any(-1).all()


def test_the_same_seed_gives_the_same_codes_and_another_seed_others() -> None:
    head, contexts = head_and_contexts(2, torch.float32)
    draw = [make_sampler().sample(head, contexts, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


def test_a_row_with_a_generator_of_its_own_is_drawn_as_if_it_were_alone() -> None:
    head, contexts = head_and_contexts(4, torch.float64)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    whole = [Ancestral().sample(head, contexts, generators)[0] for _ in range(2)]
    for row in (2, 0):
        generator = torch.Generator().manual_seed(row)
        for drawn in whole:  # a generator goes on where it was
            assert torch.equal(Ancestral().sample(head, contexts[row : row + 1], [generator])[0][0], drawn[row])
    assert not torch.equal(*whole)
    one = Ancestral().sample(head, contexts[:1], torch.Generator().manual_seed(0))[0]  # the same as for a batch of one
    assert torch.equal(one[0], whole[0][0])
    with pytest.raises(ValueError):
        Ancestral().sample(head, contexts, generators[:3])


def test_a_row_with_a_key_is_drawn_as_if_it_were_alone() -> None:
    head, contexts = head_and_contexts(4, torch.float64)
    keys = torch.tensor([7, -(2**63), 2**63 - 1, 0])
    whole = Ancestral().sample(head, contexts, keys)[0]
    assert torch.equal(Predictive().sample(head, contexts, keys)[0], whole)
    for row in range(4):
        one = slice(row, row + 1)
        assert torch.equal(Ancestral().sample(head, contexts[one], keys[one])[0][0], whole[row])
    assert not torch.equal(Ancestral().sample(head, contexts, keys + 1)[0], whole)
    with pytest.raises(ValueError, match="noise for 4 rows"):
        Ancestral().sample(head, contexts, keys[:3])


def test_a_perfect_forecast_takes_one_pass() -> None:
    head, contexts = head_and_contexts(3, torch.float32)
    with torch.no_grad():  # codes that depend on nothing but a bias, which the forecast knows
        head.logits.weight.zero_()
        head.logits.bias.copy_(torch.randn(512) * 5)
        head.guess[-1].weight.zero_()
        head.guess[-1].bias.copy_(head.logits.bias)
    codes, passes = Predictive().sample(head, contexts, torch.Generator().manual_seed(0))
    assert float(passes) == 1
    assert codes.shape == (3, 64)


def test_bad_settings_are_named() -> None:
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="no finite number from 0 on"):
            make_sampler("ancestral", temperature=wrong)
    with pytest.raises(ConfigError, match="temperature -1"):
        make_sampler("auto", -1)
    with pytest.raises(ConfigError, match="top_k 0"):
        make_sampler("auto", 1.0, 0)
    with pytest.raises(ConfigError, match="choose auto, ancestral, predictive"):
        make_sampler("gibbs")


def test_a_trunk_in_bfloat16_feeds_a_head_in_float32() -> None:
    prior = tiny_prior()
    prior.trunk.bfloat16()
    codes, actions = torch.randint(0, 16, (2, 5, 4, 4)), torch.zeros(2, 5, dtype=torch.int64)
    with torch.no_grad():
        assert prior.log_likelihood(codes, actions).dtype == torch.float32
        step, _ = prior.step(prior.begin(2), torch.tensor([1, 2]), Predictive(), torch.Generator().manual_seed(0))
    assert step.rewards.dtype == torch.float32


def test_a_whole_step_is_equal_under_both_samplers() -> None:
    prior = tiny_prior()
    state = prior.observe(prior.begin(2), torch.randint(0, 16, (2, 4, 4)), torch.tensor([-1, -1]))
    with torch.no_grad():
        one, two = (
            prior.step(state, torch.tensor([1, 2]), kind(), torch.Generator().manual_seed(0))[0]
            for kind in (Ancestral, Predictive)
        )
    assert torch.equal(one.codes, two.codes)
    assert torch.equal(one.rewards, two.rewards)
    assert torch.equal(one.ends, two.ends)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_cuda_graph_draws_what_the_eager_steps_draw(temperature: float) -> None:
    head, contexts = head_and_contexts(5, torch.float32)
    head, contexts = head.cuda(), contexts.cuda()
    for _ in range(2):  # recorded, then replayed with other noise and another weight
        draws = [
            kind(temperature).sample(head, contexts, torch.Generator("cuda").manual_seed(7))[0]
            for kind in (Ancestral, Predictive)
        ]
        assert torch.equal(draws[0], draws[1])
        with torch.no_grad():
            head.logits.bias.add_(torch.randn(512, device="cuda"))
