"""Every quantiser keeps the same contract; the vector quantiser is exact, stays alive and sums over processes."""

from __future__ import annotations

import copy

import pytest
import torch

from worldmodel.quantizers import FiniteScalarQuantizer, Quantizer, VectorQuantizer, nearest

MAKERS = {
    "ema": lambda: VectorQuantizer(codes=32, width=4),
    "loss": lambda: VectorQuantizer(codes=32, width=4, update="loss"),
    "fsq": lambda: FiniteScalarQuantizer(levels=[5, 4, 3, 2]),
}


@pytest.fixture(params=MAKERS)
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    torch.manual_seed(0)
    return MAKERS[request.param]()


def test_shapes_range_and_agreement(quantizer: Quantizer) -> None:
    vectors = torch.randn(2, 3, 5, quantizer.width)
    quantizer.eval()
    result = quantizer(vectors)
    assert result.vectors.shape == vectors.shape
    assert result.codes.shape == (2, 3, 5)
    assert result.codes.min() >= 0
    assert result.codes.max() < quantizer.codes
    assert torch.equal(result.codes, quantizer.encode(vectors))
    torch.testing.assert_close(result.vectors, quantizer.lookup(result.codes))


def test_a_code_vector_is_its_own_code(quantizer: Quantizer) -> None:
    codes = torch.arange(quantizer.codes)
    table = quantizer.lookup(codes)
    if isinstance(
        quantizer, FiniteScalarQuantizer
    ):  # lookup gives what leaves the squashing, encode takes what enters it
        digits = (table + 1) / 2 * (quantizer.levels - 1)
        table = torch.atanh((digits + 0.5) / quantizer.levels * 2 - 1)
    assert torch.equal(quantizer.encode(table), codes)
    assert quantizer.codebook().shape == (quantizer.codes, quantizer.width)


def test_gradient_passes_straight_through(quantizer: Quantizer) -> None:
    quantizer.eval()
    vectors = torch.randn(6, quantizer.width) * 0.1
    vectors.requires_grad_()
    quantizer(vectors).vectors.sum().backward()
    assert vectors.grad is not None
    if isinstance(quantizer, VectorQuantizer):
        assert torch.equal(vectors.grad, torch.ones_like(vectors))
    else:
        assert (vectors.grad > 0).all()


def test_nearest_agrees_with_brute_force_far_from_the_origin() -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(5000, 16, generator=generator) + 30
    table = torch.randn(512, 16, generator=generator) + 30
    exact = torch.cdist(vectors.double(), table.double()).argmin(1)
    assert torch.equal(nearest(vectors, table), exact)


def test_bfloat16_vectors_are_compared_in_float32() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(codes=512, width=64).eval()
    vectors = torch.randn(1000, 64).bfloat16()
    assert torch.equal(quantizer(vectors).codes, nearest(vectors.float(), quantizer.table))


@pytest.mark.parametrize("training", [False, True])
def test_autocast_does_not_reach_the_distances(quantizer: Quantizer, training: bool) -> None:
    """Off the origin, where bfloat16 loses the digits that decide."""
    vectors = torch.randn(3000, quantizer.width, generator=torch.Generator().manual_seed(1)) + 1
    quantizer(vectors, torch.Generator().manual_seed(0))  # lays the codebook on data
    plain, cast = (copy.deepcopy(quantizer).train(training) for _ in range(2))
    expected = plain(vectors, torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = cast(vectors, torch.Generator().manual_seed(2))
        assert torch.equal(cast.encode(vectors), plain.encode(vectors))
    assert torch.equal(found.codes, expected.codes)
    assert found.vectors.dtype == torch.float32 and torch.equal(found.vectors, expected.vectors)
    assert all(torch.equal(a, b) for a, b in zip(cast.buffers(), plain.buffers(), strict=True))


def test_ema_finds_the_clusters_and_no_code_stays_dead() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(16, 4, generator=generator) * 5
    quantizer = VectorQuantizer(codes=32, width=4, decay=0.9, revive_after=5)
    for _ in range(60):
        labels = torch.randint(16, (512,), generator=generator)
        quantizer(centres[labels] + 0.01 * torch.randn(512, 4, generator=generator), generator)
    distance = torch.cdist(centres, quantizer.table).min(1).values
    assert distance.max() < 0.05
    uses = torch.bincount(quantizer.encode(centres.repeat(64, 1) + 0.01 * torch.randn(1024, 4)), minlength=32)
    assert (uses > 0).sum() >= 16


@pytest.mark.parametrize("update", ["ema", "loss"])
def test_revival_moves_the_vector_the_count_and_the_sum(update: str) -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(codes=8, width=2, update=update, revive_after=3)
    vectors = torch.randn(64, 2)
    quantizer(vectors)
    with torch.no_grad():
        quantizer.table[0] = 1000.0
        quantizer.sums[0] = 1000.0 * quantizer.counts[0]
    for _ in range(3):
        quantizer(vectors)
    assert quantizer.table[0].norm() < 10
    torch.testing.assert_close(quantizer.sums[0], quantizer.table[0] * quantizer.counts[0])
    assert quantizer.counts[0] == 1


def test_the_first_batch_lays_the_codebook_on_the_data() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(codes=64, width=8)
    vectors = torch.randn(2000, 8) * 0.1 + 7
    codes = quantizer(vectors, torch.Generator().manual_seed(0)).codes
    assert len(codes.unique()) == 64


def test_evaluation_changes_nothing() -> None:
    quantizer = VectorQuantizer(codes=8, width=2).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.randn(100, 2))
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


def test_commitment_pulls_the_encoder_and_codebook_loss_pulls_the_codes() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(codes=8, width=2, update="loss").eval()
    vectors = torch.randn(10, 2, requires_grad=True)
    result = quantizer(vectors)
    result.losses["commitment"].backward(retain_graph=True)
    assert vectors.grad is not None
    assert quantizer.table.grad is None
    vectors.grad = None
    result.losses["codebook"].backward()
    assert quantizer.table.grad is not None
    assert vectors.grad is None


def test_fsq_lookup_is_a_bijection_and_huge_products_are_never_built() -> None:
    quantizer = FiniteScalarQuantizer([3, 4, 5])
    assert len({tuple(v.tolist()) for v in quantizer.codebook()}) == 60
    huge = FiniteScalarQuantizer([8] * 12)
    codes = huge.encode(torch.randn(100, 12))
    assert huge.codes == 8**12
    assert huge.lookup(codes).shape == (100, 12)
    assert huge.lookup(codes).abs().max() <= 1


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="ema or loss"):
        VectorQuantizer(codes=8, width=2, update="adam")
    with pytest.raises(ValueError, match="at least 2 levels"):
        FiniteScalarQuantizer([8, 1])
