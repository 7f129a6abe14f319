"""Every quantiser keeps the same contract; the vector quantiser is exact, stays alive and sums over processes."""

from __future__ import annotations

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from worldmodel.quantizers import (
    NO_CODE,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    ProductQuantizer,
    Quantizer,
    ResidualQuantizer,
    VectorQuantizer,
    nearest,
)

MAKERS = {
    "ema": lambda: VectorQuantizer(num_codes=32, width=4),
    "loss": lambda: VectorQuantizer(num_codes=32, width=4, update="loss"),
    "fsq": lambda: FiniteScalarQuantizer(levels=[5, 4, 3, 2]),
    "gumbel": lambda: GumbelQuantizer(num_codes=32, width=4),
    "gumbel, hard": lambda: GumbelQuantizer(num_codes=32, width=4, hard=True),
    "product": lambda: ProductQuantizer(3, partial(VectorQuantizer, width=4), num_codes=32),
    "product of products": lambda: ProductQuantizer(
        2, lambda: ProductQuantizer(3, partial(FiniteScalarQuantizer, [4, 3]))
    ),
    "residual": lambda: ResidualQuantizer(3, partial(VectorQuantizer, width=4), num_codes=32),
    "residual, dropout": lambda: ResidualQuantizer(3, partial(VectorQuantizer, width=4), num_codes=32, dropout=0.5),
    "product of residuals": lambda: ProductQuantizer(
        2, lambda: ResidualQuantizer(3, partial(VectorQuantizer, width=4), num_codes=16)
    ),
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
    assert result.codes.shape == (2, 3, 5, *quantizer.shape)
    assert result.codes.min() >= 0
    assert result.codes.max() < quantizer.num_codes
    assert torch.equal(result.codes, quantizer.encode(vectors))
    torch.testing.assert_close(result.vectors, quantizer.lookup(result.codes))


def test_the_codebook_lists_the_vectors_of_the_codes(quantizer: Quantizer) -> None:
    """(K, D), or (*shape, K, D of one code): looking codes up is picking from it, slot by slot; stages are added up."""
    table = quantizer.codebook()
    slots = math.prod(quantizer.shape)
    inner = quantizer.parts[0] if isinstance(quantizer, ProductQuantizer) else quantizer
    stages = inner.shape[0] if isinstance(inner, ResidualQuantizer) else 1
    assert table.shape == (*quantizer.shape, quantizer.num_codes, quantizer.width * stages // slots)
    codes = torch.randint(quantizer.num_codes, (7, *quantizer.shape), generator=torch.Generator().manual_seed(0))
    books = table.reshape(slots, quantizer.num_codes, -1)
    picked = [book[code] for book, code in zip(books, codes.reshape(7, slots).T, strict=True)]
    sums = [sum(picked[start : start + stages]) for start in range(0, slots, stages)]
    assert torch.equal(quantizer.lookup(codes), torch.cat(sums, -1))


@pytest.mark.parametrize("name", ["ema", "loss", "fsq"])
def test_a_code_vector_is_its_own_code(name: str) -> None:
    torch.manual_seed(0)
    quantizer = MAKERS[name]()
    codes = torch.arange(quantizer.num_codes)
    table = quantizer.lookup(codes)
    if isinstance(
        quantizer, FiniteScalarQuantizer
    ):  # lookup gives what leaves the squashing, encode takes what enters it
        digits = (table + 1) / 2 * (quantizer.levels - 1)
        table = torch.atanh((digits + 0.5) / quantizer.levels * 2 - 1)
    assert torch.equal(quantizer.encode(table), codes)


def test_gradient_passes_straight_through(quantizer: Quantizer) -> None:
    part = quantizer.parts[0] if isinstance(quantizer, ProductQuantizer) else quantizer
    quantizer.train(isinstance(part, GumbelQuantizer))  # which has no gradient in evaluation
    vectors = torch.randn(6, quantizer.width) * 0.1
    vectors.requires_grad_()
    quantizer(vectors, torch.Generator().manual_seed(0)).vectors.sum().backward()
    assert vectors.grad is not None
    if isinstance(part, VectorQuantizer | ResidualQuantizer):
        assert torch.equal(vectors.grad, torch.ones_like(vectors))
    elif isinstance(part, GumbelQuantizer):
        assert (vectors.grad != 0).all()
    else:
        assert (vectors.grad > 0).all()


def test_nearest_agrees_with_brute_force_far_from_the_origin() -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(5000, 16, generator=generator) + 30
    table = torch.randn(512, 16, generator=generator) + 30
    exact = torch.cdist(vectors.double(), table.double()).argmin(1)
    assert torch.equal(nearest(vectors, table), exact)


def test_nearest_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    vectors, table = torch.randn(100, 4, generator=generator), torch.randn(16, 4, generator=generator)
    exact = torch.cdist(vectors.double(), table.double()).argmin(1)
    for numbers in (1, 16 * 7, 16 * 50, 16 * 1000):  # rows one by one, with a rest, without, all at once
        monkeypatch.setattr("worldmodel.quantizers.vector.AT_A_TIME", numbers)
        assert torch.equal(nearest(vectors, table), exact)
    assert nearest(vectors[:0], table).shape == (0,)


def test_bfloat16_vectors_are_compared_in_float32() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(num_codes=512, width=64).eval()
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
    quantizer = VectorQuantizer(num_codes=32, width=4, decay=0.9, revive_after=5)
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
    quantizer = VectorQuantizer(num_codes=8, width=2, update=update, revive_after=3)
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
    quantizer = VectorQuantizer(num_codes=64, width=8)
    vectors = torch.randn(2000, 8) * 0.1 + 7
    codes = quantizer(vectors, torch.Generator().manual_seed(0)).codes
    assert len(codes.unique()) == 64


def test_evaluation_changes_nothing(quantizer: Quantizer) -> None:
    quantizer.eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.randn(100, quantizer.width))
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


def test_commitment_pulls_the_encoder_and_codebook_loss_pulls_the_codes() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(num_codes=8, width=2, update="loss").eval()
    vectors = torch.randn(10, 2, requires_grad=True)
    result = quantizer(vectors)
    result.losses["commitment"].backward(retain_graph=True)
    assert vectors.grad is not None
    assert quantizer.table.grad is None
    vectors.grad = None
    result.losses["codebook"].backward()
    assert quantizer.table.grad is not None
    assert vectors.grad is None


@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_those_of_the_plain_formula(training: bool) -> None:
    """What reaches the encoder: that of the decoder, and β times the derivative of mean (z − e)²."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(num_codes=32, width=4).train(training)
    vectors, weights = torch.randn(2, 50, 4, dtype=torch.float64), torch.randn(2, 50, 4, dtype=torch.float64)
    ours = vectors.float().requires_grad_()
    quantizer(ours, torch.Generator().manual_seed(0))  # lays the codebook
    table = quantizer.table.clone().double()
    result = quantizer(ours, torch.Generator().manual_seed(0))
    ((result.vectors * weights).sum() + 0.25 * result.losses["commitment"]).backward()
    plain = vectors.clone().requires_grad_()
    chosen = table[torch.cdist(plain.detach().float().double(), table).argmin(-1)]
    straight = plain + (chosen - plain).detach()
    ((straight * weights).sum() + 0.25 * ((plain - chosen) ** 2).mean()).backward()
    assert ours.grad is not None and plain.grad is not None
    torch.testing.assert_close(ours.grad.double(), plain.grad, rtol=1e-5, atol=1e-7)


def test_fsq_lookup_is_a_bijection_and_huge_products_are_never_built() -> None:
    quantizer = FiniteScalarQuantizer([3, 4, 5])
    assert len({tuple(v.tolist()) for v in quantizer.codebook()}) == 60
    huge = FiniteScalarQuantizer([8] * 12)
    codes = huge.encode(torch.randn(100, 12))
    assert huge.num_codes == 8**12
    assert huge.lookup(codes).shape == (100, 12)
    assert huge.lookup(codes).abs().max() <= 1


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="GumbelQuantizer does not"):
        ResidualQuantizer(2, partial(GumbelQuantizer, width=2), num_codes=8)
    with pytest.raises(ValueError, match=r"not go from 0\.5 to 1"):
        GumbelQuantizer(num_codes=8, width=2, start=0.5, end=1)


@pytest.mark.parametrize("training", [False, True])
def test_a_product_is_its_parts_side_by_side(training: bool) -> None:
    torch.manual_seed(0)
    product = ProductQuantizer(3, partial(VectorQuantizer, width=4, update="loss"), num_codes=16)
    vectors = torch.randn(100, 12, generator=torch.Generator().manual_seed(1))
    product(vectors, torch.Generator().manual_seed(0))
    product.train(training)
    parts = copy.deepcopy(product.parts)
    result, generator = product(vectors, torch.Generator().manual_seed(2)), torch.Generator().manual_seed(2)
    alone = [part(piece, generator) for part, piece in zip(parts, vectors.split(4, -1), strict=True)]
    for slot, one in enumerate(alone):
        assert torch.equal(result.codes[:, slot], one.codes)
        assert torch.equal(result.vectors[:, 4 * slot : 4 * slot + 4], one.vectors)
    assert result.losses.keys() == {"commitment", "codebook"}
    for name, term in result.losses.items():
        torch.testing.assert_close(term, sum(one.losses[name] for one in alone) / 3)
    # a commitment that is a mean over all numbers, whatever the number of slots
    torch.testing.assert_close(result.losses["commitment"], F.mse_loss(vectors, product.lookup(result.codes)))


def test_the_slots_of_a_product_are_independent() -> None:
    torch.manual_seed(0)
    product = ProductQuantizer(3, partial(VectorQuantizer, width=4), num_codes=16).eval()
    vectors = torch.randn(200, 12)
    codes = product.encode(vectors)
    moved = vectors.clone()
    moved[:, 4:8] = torch.randn(200, 4)
    changed = product.encode(moved) != codes
    assert changed[:, 1].any() and not changed[:, [0, 2]].any()
    same = product.encode(vectors[:, :4].repeat(1, 3))  # the same numbers in every slot, other codebooks
    assert (same[:, 0] != same[:, 1]).any() and (same[:, 1] != same[:, 2]).any()


def test_gumbel_draws_codes_by_their_probability() -> None:
    """Hard samples of one input, against softmax(logits): noise and argmax give exactly that distribution."""
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(num_codes=6, width=3, hard=True)
    quantizer.started.fill_(1.0)  # this batch has no deviation to measure
    vector = torch.randn(3) * 2
    vectors = quantizer(vector.expand(40_000, 3), torch.Generator().manual_seed(0)).vectors
    drawn = torch.cdist(vectors, quantizer.table).argmin(1)
    torch.testing.assert_close(vectors, quantizer.lookup(drawn), rtol=1e-5, atol=1e-5)
    shares = torch.bincount(drawn, minlength=6) / len(drawn)
    assert (shares - quantizer.logits(vector).softmax(0)).abs().max() < 0.01


def test_gumbel_weighs_the_vectors_ever_more_sharply() -> None:
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(num_codes=8, width=4, start=2.0, end=0.05, anneal_steps=10)
    vectors = torch.randn(500, 4)
    temperatures, distances = [], []
    for _ in range(12):
        temperatures.append(float(quantizer.temperature))
        mixed = quantizer(vectors, torch.Generator().manual_seed(0)).vectors
        distances.append(float(torch.cdist(mixed, quantizer.table).min(1).values.mean().detach()))
    assert temperatures[0] == pytest.approx(2.0) and temperatures[5] == pytest.approx((2.0 + 0.05) / 2)
    assert temperatures[10] == temperatures[11] == pytest.approx(0.05)
    assert all(after < before for before, after in itertools.pairwise(distances[:11]))
    assert distances[-1] < 0.1 * distances[0]


def test_gumbel_is_not_led_by_an_offset_of_its_inputs() -> None:
    """Measured once, on the first training batch; then it belongs to the state."""
    torch.manual_seed(0)
    vectors = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    quantizer, moved = GumbelQuantizer(num_codes=64, width=8), GumbelQuantizer(num_codes=64, width=8)
    moved.load_state_dict(quantizer.state_dict())
    for each, batch in ((quantizer, vectors), (moved, vectors * 0.01 + 5)):
        each(batch, torch.Generator().manual_seed(0))
        each(batch + 3, torch.Generator().manual_seed(0))
    codes = quantizer.encode(vectors)
    assert len(codes.unique()) > 32
    assert (moved.encode(vectors * 0.01 + 5) == codes).double().mean() > 0.99


def test_gumbel_goes_on_with_the_temperature_and_the_noise_of_its_state() -> None:
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(num_codes=8, width=4, anneal_steps=10)
    vectors = torch.randn(5, 4)
    for _ in range(4):
        quantizer(vectors, torch.Generator().manual_seed(0))
    resumed = GumbelQuantizer(num_codes=8, width=4, anneal_steps=10)
    resumed.load_state_dict(quantizer.state_dict())
    one, two = (each(vectors, torch.Generator().manual_seed(3)) for each in (quantizer, resumed))
    assert torch.equal(one.vectors, two.vectors) and quantizer.temperature == resumed.temperature < 1
    assert not torch.equal(two.vectors, resumed(vectors, torch.Generator().manual_seed(4)).vectors)


def test_gumbel_diversity_is_zero_when_codes_are_used_alike_however_sure_each_is() -> None:
    quantizer = GumbelQuantizer(4, 4).eval()
    with torch.no_grad():
        quantizer.logits.weight.copy_(50 * torch.eye(4))
    sure = torch.eye(4)
    assert quantizer(sure).losses["diversity"].item() == pytest.approx(0, abs=1e-5)
    assert quantizer(sure).losses["kl"].item() == pytest.approx(math.log(4), abs=1e-5)
    assert quantizer(sure[:1]).losses["diversity"].item() == pytest.approx(math.log(4), abs=1e-5)


def test_gumbel_divergence_is_that_from_the_uniform_distribution() -> None:
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(num_codes=8, width=4).eval()
    vectors = torch.randn(10, 4) * 3
    shares = quantizer.logits(vectors).softmax(-1)
    expected = F.kl_div(torch.full_like(shares, 1 / 8).log(), shares, reduction="none").sum(-1).mean()
    torch.testing.assert_close(quantizer(vectors).losses["kl"], expected)
    with torch.no_grad():
        quantizer.logits.weight.zero_()
    assert quantizer(vectors).losses["kl"].abs() < 1e-6


def laid(stages: int, vectors: torch.Tensor, dropout: float = 0.0, **options: object) -> ResidualQuantizer:
    """A residual quantiser of 16 codes a stage, after some batches of these vectors."""
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(stages, partial(VectorQuantizer, width=4, **options), num_codes=16)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        quantizer(vectors, generator)
    quantizer.dropout = dropout
    return quantizer


@pytest.mark.parametrize("training", [False, True])
def test_stages_quantise_what_is_left(training: bool) -> None:
    vectors = torch.randn(8, 50, 4, generator=torch.Generator().manual_seed(1))
    quantizer = laid(3, vectors, update="loss").train(training)
    parts, generator = copy.deepcopy(quantizer.parts), torch.Generator().manual_seed(2)
    result = quantizer(vectors, torch.Generator().manual_seed(2))
    total, terms = torch.zeros_like(vectors), dict.fromkeys(("commitment", "codebook"), 0.0)
    for stage, part in enumerate(parts):
        alone = part(vectors - total, generator)
        assert torch.equal(result.codes[..., stage], alone.codes)
        total = total + alone.vectors
        terms = {name: value + alone.losses[name] for name, value in terms.items()}
    assert torch.equal(result.vectors, total)
    torch.testing.assert_close(result.losses, terms)


def test_the_error_falls_with_every_stage_that_is_used() -> None:
    vectors = torch.randn(2000, 4, generator=torch.Generator().manual_seed(1))
    quantizer = laid(4, vectors).eval()
    codes = quantizer.encode(vectors)
    kept = [codes.where(torch.arange(4) < used, NO_CODE) for used in range(5)]  # of the first codebooks
    errors = [F.mse_loss(quantizer.lookup(each), vectors).item() for each in kept]
    assert errors[0] == pytest.approx(vectors.square().mean().item())
    assert all(after < 0.7 * before for before, after in itertools.pairwise(errors))
    assert errors[4] == F.mse_loss(quantizer(vectors).vectors, vectors).item()
    mixed = torch.stack([kept[1][0], codes[1]])  # each row as many as it likes
    assert torch.equal(quantizer.lookup(mixed)[0], quantizer.parts[0].lookup(codes[0, 0]))
    assert torch.equal(quantizer.lookup(mixed)[1], quantizer.lookup(codes)[1])


def test_a_stage_knows_nothing_of_the_samples_that_do_not_reach_it() -> None:
    vectors = torch.randn(8, 50, 4, generator=torch.Generator().manual_seed(1))
    quantizer = laid(4, vectors, dropout=1.0)
    before = copy.deepcopy(quantizer.parts)
    result = quantizer(vectors, torch.Generator().manual_seed(3))
    reached = (result.codes >= 0).sum(-1)
    assert (reached == reached[:, :1]).all() and reached.unique().tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(result.vectors, sum_of(before, result.codes))
    commitment, total = 0.0, torch.zeros_like(vectors)
    for stage, (after, old) in enumerate(zip(quantizer.parts, before, strict=True)):
        here = reached[:, 0] > stage
        arrived, codes = (vectors - total)[here], result.codes[here, :, stage]
        uses = torch.bincount(codes.flatten(), minlength=16).float()
        torch.testing.assert_close(after.counts, old.counts.lerp(uses, 0.01))
        sums = torch.zeros(16, 4).index_add_(0, codes.flatten(), arrived.flatten(0, 1))
        torch.testing.assert_close(after.sums, old.sums.lerp(sums, 0.01), rtol=1e-4, atol=1e-5)
        commitment += F.mse_loss(arrived, old.lookup(codes)).item() * here.float().mean().item()
        total[here] += old.lookup(codes)
    assert result.losses["commitment"].item() == pytest.approx(commitment, rel=1e-5)
    assert (quantizer.eval()(vectors).codes >= 0).all()


def sum_of(parts: torch.nn.ModuleList, codes: torch.Tensor) -> torch.Tensor:
    quantizer = ResidualQuantizer(len(parts), partial(VectorQuantizer, width=4), num_codes=16)
    quantizer.parts = parts
    return quantizer.lookup(codes)


@pytest.mark.parametrize(("samples", "dropout"), [(8, 1.0), (3, 1.0), (16, 0.5), (1, 1.0)])
def test_stages_are_drawn_uniformly_and_one_sample_reaches_them_all(samples: int, dropout: float) -> None:
    vectors, generator = torch.randn(samples, 5, 4), torch.Generator().manual_seed(0)
    quantizer = ResidualQuantizer(4, partial(VectorQuantizer, width=4), num_codes=16, dropout=dropout)
    found = torch.zeros(4)
    for _ in range(400):
        rows = quantizer._rows(vectors, generator)  # of the vectors that go through each codebook
        counts = sum(torch.bincount(part, minlength=5 * samples) for part in rows).view(samples, 5)
        assert (counts == counts[:, :1]).all() and counts.max() == 4
        found += torch.bincount(counts[:, 0] - 1, minlength=4)
    if samples >= 4:  # fewer cannot be fair to all stages and reach them all
        expected = torch.full((4,), dropout / 4) + torch.tensor([0, 0, 0, 1 - dropout])
        torch.testing.assert_close(found / found.sum(), expected, rtol=0, atol=0.02)


def test_commitment_of_every_stage_pulls_the_encoder() -> None:
    vectors = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    quantizer = laid(3, vectors).eval()
    ours = vectors.clone().requires_grad_()
    result = quantizer(ours)
    result.losses["commitment"].backward()
    total, expected = torch.zeros_like(vectors), torch.zeros_like(vectors)
    for part, code in zip(quantizer.parts, result.codes.unbind(-1), strict=True):
        total = total + part.lookup(code)
        expected += 2 * (vectors - total) / vectors.numel()
    torch.testing.assert_close(ours.grad, expected)
