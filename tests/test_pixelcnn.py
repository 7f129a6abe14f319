"""The gated PixelCNN as head and as decoder: what a site sees, exact likelihoods, equal samples, conditions."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.heads import (
    Ancestral,
    GridSpec,
    PixelCNNHead,
    PixelCNNLikelihood,
    Predictive,
    TransformerHead,
    make_sampler,
)
from worldmodel.nn.modules import cast
from worldmodel.nn.pixelcnn import GatedPixelCNN
from worldmodel.priors import ConditionTrunk, Prior
from worldmodel.tokenizers import Tokenizer
from worldmodel.types import Segment, to_float, to_uint8


def sharpened(module: nn.Module, by: float = 0.3) -> Any:
    """With weights blown up, so that its distributions are far from flat."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * by)
    return module.eval()


def make_head(
    grid: tuple[int, ...], codebook: tuple[int, ...], dtype: torch.dtype = torch.float64, by: float = 0.3
) -> tuple[PixelCNNHead, Tensor]:
    """A small head, and contexts of 3 grids."""
    torch.manual_seed(0)
    head = sharpened(PixelCNNHead(GridSpec(grid, torch.randn(codebook)), 6, width=16, layers=4), by).to(dtype)
    return head, torch.randn(3, math.prod(grid), 6, dtype=dtype)


def seen_by(network: GatedPixelCNN, height: int, width: int, row: int, column: int) -> Tensor:
    """(h, w) bool: inputs with a gradient from the features of one site."""
    x = torch.randn(1, height, width, network.inputs, dtype=torch.float64, requires_grad=True)
    condition = torch.randn(1, height, width, 2, dtype=torch.float64)
    (network(x, condition)[0, row, column] * torch.randn(5, dtype=torch.float64)).sum().backward()
    assert x.grad is not None
    return (x.grad[0] != 0).any(-1)


@pytest.mark.parametrize(("height", "width"), [(6, 6), (4, 7), (7, 4), (1, 8), (8, 1), (1, 1)])
@pytest.mark.parametrize(("kernel", "first"), [(3, 3), (3, 7), (5, 5)])
def test_a_site_sees_all_sites_before_it_and_no_other(height: int, width: int, kernel: int, first: int) -> None:
    torch.manual_seed(0)
    network = GatedPixelCNN(3, 2, 5, width=8, layers=8, kernel=kernel, first=first).double()
    place = torch.arange(height * width).view(height, width)
    for row, column in itertools.product(range(height), range(width)):
        before = place < place[row, column]
        assert torch.equal(seen_by(network, height, width, row, column), before)


def test_a_shallow_one_sees_its_receptive_field_without_a_blind_spot() -> None:
    """A field grows by the reach of each layer: to the left in its row, upwards, and both ways in the rows above."""
    torch.manual_seed(0)
    network = GatedPixelCNN(3, 2, 5, width=8, layers=3, kernel=3, first=5).double()
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    for row, column in [(6, 6), (11, 11), (5, 0), (0, 7), (8, 11)]:
        left = (rows == row) & (columns < column) & (columns >= column - 4)
        above = (rows < row) & (rows >= row - 4) & ((columns - column).abs() <= 4)
        assert torch.equal(seen_by(network, 12, 12, row, column), left | above)


GRIDS = [((3, 4), (5, 2)), ((2, 3, 3), (3, 5, 2)), ((2, 2, 2), (4, 3)), ((6,), (5, 2)), ((5, 1), (5, 2))]
every_grid = pytest.mark.parametrize(("grid", "codebook"), GRIDS)


@every_grid
def test_a_code_sees_all_codes_before_it_and_no_other(grid: tuple[int, ...], codebook: tuple[int, ...]) -> None:
    head, contexts = make_head(grid, codebook)
    count, codes = math.prod(grid), torch.randint(0, codebook[-2], (3, math.prod(grid)))
    before = head(codes, contexts)
    for position in range(count):
        changed = codes.clone()
        changed[:, position] = (changed[:, position] + 1) % codebook[-2]
        differs = (head(changed, contexts) - before).abs().amax((0, 2)) > 0
        assert differs.tolist() == [later > position for later in range(count)]


@every_grid
def test_extending_behind_any_prefix_equals_the_full_pass(grid: tuple[int, ...], codebook: tuple[int, ...]) -> None:
    head, contexts = make_head(grid, codebook)
    count = math.prod(grid)
    codes = torch.randint(0, codebook[-2], (3, count))
    full = head(codes, contexts)
    for cuts in ([0, count], [0, 1, 2, count], [0, 2, 5, count], list(range(count + 1)), [*range(0, count, 2), count]):
        state = head.begin(contexts)
        parts = [head.extend(state, codes, a, b) for a, b in itertools.pairwise(cuts)]
        torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-9, atol=1e-9)


@every_grid
def test_wrong_guesses_leave_no_trace(grid: tuple[int, ...], codebook: tuple[int, ...]) -> None:
    """As predictive sampling does: everything is computed again and again, behind a prefix that grows; rows leave."""
    head, contexts = make_head(grid, codebook)
    count = math.prod(grid)
    codes = torch.randint(0, codebook[-2], (3, count))
    full, rows = head(codes, contexts), torch.arange(3)
    state = head.begin(contexts)
    for start in range(count):
        guess = codes[rows].clone()
        guess[:, start:] = torch.randint(0, codebook[-2], (len(rows), count - start))
        head.extend(state, guess, start, count)
        again = head.extend(state, codes[rows], start, min(start + 2, count))
        torch.testing.assert_close(again, full[rows, start : start + 2], rtol=1e-9, atol=1e-9)
        if start == count // 2:
            keep = torch.tensor([2, 0])
            state, rows = state.select(keep), rows[keep]


@pytest.mark.parametrize(("grid", "codebook"), [((2, 1, 2), (2, 3, 2)), ((1, 2, 2), (3, 2)), ((2, 2), (3, 2))])
def test_the_likelihood_of_all_grids_sums_to_one(grid: tuple[int, ...], codebook: tuple[int, ...]) -> None:
    head, contexts = make_head(grid, codebook)
    grids = torch.tensor(list(itertools.product(range(3), repeat=4)))
    logits = head(grids, contexts[:1].expand(81, -1, -1))
    chosen = logits.log_softmax(-1).gather(-1, grids[..., None]).squeeze(-1).sum(1).exp()
    assert chosen.sum().item() == pytest.approx(1, abs=1e-9)
    assert chosen.max().item() > 3 / 81  # not flat: the sum says something


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize(("grid", "codebook"), [((8, 8), (64, 4)), ((4, 3, 4), (4, 64, 4))])
def test_predictive_equals_ancestral_code_for_code(
    dtype: torch.dtype, temperature: float, grid: tuple[int, ...], codebook: tuple[int, ...]
) -> None:
    head, _ = make_head(grid, codebook, dtype, by=0.2)
    contexts = torch.randn(200, math.prod(grid), 6, dtype=dtype)
    one, two = (
        kind(temperature).sample(head, contexts, torch.Generator().manual_seed(7)) for kind in (Ancestral, Predictive)
    )
    assert torch.equal(one[0], two[0])
    assert float(one[1]) == math.prod(grid) > float(two[1])
    assert len(one[0].unique()) > (5 if temperature == 0 else 30)


def test_auto_goes_step_by_step_where_a_step_is_cheap() -> None:
    head, contexts = make_head((8, 8), (64, 4), torch.float32)
    assert float(make_sampler().sample(head, contexts[:1])[1]) == 64
    other = TransformerHead(GridSpec((8, 8), torch.randn(64, 4)), 6, width=8, heads=2, order="raster").eval()
    assert float(make_sampler().sample(other, contexts[:1])[1]) < 64


def test_a_batch_of_one_draws_the_same() -> None:
    head, _ = make_head((8, 8), (64, 4), torch.float32, by=0.2)
    for row in torch.randn(20, 1, 64, 6):
        one, two = (kind().sample(head, row, torch.Generator().manual_seed(7))[0] for kind in (Ancestral, Predictive))
        assert torch.equal(one, two)


@every_grid
def test_a_context_reaches_every_site(grid: tuple[int, ...], codebook: tuple[int, ...]) -> None:
    """That of a site reaches all codes of its own; a guess knows no other."""
    head, contexts = make_head(grid, codebook)
    codes, slots = torch.randint(0, codebook[-2], (3, math.prod(grid))), head.sizes[2]
    before, guess = head(codes, contexts), head.forecast(contexts)
    for site in range(codes.shape[1] // slots):
        changed = contexts.clone()
        changed[:, site * slots] += 1
        differs = (head(codes, changed) - before).abs().amax((0, 2)) > 1e-12
        assert differs[site * slots : (site + 1) * slots].all()
        moved = (head.forecast(changed) - guess).abs().amax((0, 2)) > 1e-12
        assert moved.nonzero().flatten().tolist() == list(range(site * slots, (site + 1) * slots))


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    head = PixelCNNHead(GridSpec((3, 3), torch.randn(4, 2)), 6, width=8, layers=2, dropout=0.5)
    codes, contexts = torch.randint(0, 4, (2, 9)), torch.randn(2, 9, 6)
    assert not torch.equal(head(codes, contexts), head(codes, contexts))
    head.eval()
    assert torch.equal(head(codes, contexts), head(codes, contexts))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match=r"this grid is \(2, 2, 3\) with 2"):
        PixelCNNHead(GridSpec((2, 2, 3), torch.randn(2, 4, 2)), 6)
    with pytest.raises(ConfigError, match="kernel is 4; a kernel has an odd size"):
        PixelCNNHead(GridSpec((2, 2), torch.randn(4, 2)), 6, kernel=4)


class Slots(Tokenizer):
    """Only the facts that a prior asks for: a grid of 2×3 sites with 2 codes of 5 each."""

    grid, num_codes, frame_shape = (2, 3, 2), 5, (3, 8, 12)

    def _forward(self, *_: Any) -> Any:
        raise NotImplementedError

    def _encode(self, *_: Any) -> Tensor:
        raise NotImplementedError

    def expected_frames(self, *_: Any) -> Tensor:
        raise NotImplementedError

    def codebook(self) -> Tensor:
        return torch.arange(30.0).view(2, 5, 3).sin()


def image_prior() -> Prior:
    """A prior over one-step episodes of three classes."""
    torch.manual_seed(0)
    trunk, head = partial(ConditionTrunk, width=8), partial(PixelCNNHead, width=16, layers=2)
    return Prior(Slots(), "abc", trunk, head, context=0, forget=0.5, corrupt=0.1, outcomes=False)


def images(count: int) -> Segment:
    """Grids of the class that stands in every code of the first slots; the second slots repeat the first."""
    kinds = torch.arange(count) % 3
    nothing = torch.zeros(count, 1, dtype=torch.bool)
    return Segment(
        actions=kinds[:, None],
        rewards=torch.zeros(count, 1),
        terminated=nothing,
        truncated=nothing,
        valid=~nothing,
        codes=kinds[:, None, None, None, None].expand(-1, 1, 2, 3, 2).contiguous(),
    )


def test_a_prior_of_images_learns_its_classes_and_has_no_outcomes() -> None:
    prior, segment = image_prior(), images(12)
    assert segment.codes is not None
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(60):
        terms, metrics = prior.losses(segment, torch.Generator().manual_seed(0))
        assert set(terms) == {"codes", "forecast"}
        torch.stack([*terms.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(metrics["bits_per_code"]) < 0.1
    prior.eval()
    with torch.no_grad():
        step, state = prior.step(prior.begin(3), torch.tensor([2, 0, 1]), Predictive(0.0))
        rewards, ends = prior.predict_outcomes(segment.codes, segment.actions)
    assert step.codes.flatten(1).tolist() == [[2] * 12, [0] * 12, [1] * 12]
    assert torch.equal(state.previous, step.codes)
    assert not step.rewards.any() and not step.ends.any() and step.rewards.shape == step.ends.shape == (3,)
    assert prior.outcomes is None
    assert rewards.shape == ends.shape == (12, 1) and not rewards.any() and not ends.any()


def test_an_unknown_class_has_a_context_of_its_own() -> None:
    trunk = ConditionTrunk(GridSpec((2, 2), torch.randn(4, 2), tuple("abc")), width=5)
    actions = torch.tensor([[-1, 0, 2]])
    contexts = trunk(torch.zeros(1, 3, 2, 2), actions, first=1)
    assert contexts.shape == (1, 2, 4, 5)
    stepped, _ = trunk.step(trunk.begin(1), torch.zeros(1, 2, 2), actions[:, 2])
    assert torch.equal(contexts[:, 1], stepped)
    unknown, _ = trunk.step(trunk.begin(1), torch.zeros(1, 2, 2), actions[:, 0])
    assert not torch.equal(unknown, stepped)


def make_likelihood(num_values: int = 256, channels: int = 3) -> PixelCNNLikelihood:
    torch.manual_seed(0)
    return sharpened(PixelCNNLikelihood(channels, outputs=4, num_values=num_values, width=16, layers=3), 0.2)


def test_the_probabilities_of_all_frames_sum_to_one() -> None:
    likelihood = make_likelihood(num_values=3, channels=2).double()
    frames = torch.tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=4))).view(81, 2, 1, 2)
    nats = likelihood.log_prob(torch.randn(1, 4, 1, 2).double().expand(81, -1, -1, -1), frames)
    assert nats.shape == frames.shape
    total = nats.flatten(1).sum(1).exp()
    assert total.sum().item() == pytest.approx(1, abs=1e-9)
    assert total.max().item() > 3 / 81


def test_a_sub_pixel_sees_those_before_it_and_the_map() -> None:
    """Red, then green, then blue of a pixel, pixel after pixel."""
    likelihood = make_likelihood()
    maps = torch.randn(1, 4, 2, 3)
    frames = to_float(torch.randint(0, 256, (1, 3, 2, 3), dtype=torch.uint8))
    before = likelihood.log_prob(maps, frames)
    order = torch.arange(18).view(2, 3, 3).movedim(-1, 0)  # (C, H, W)
    for place in order.flatten().tolist():
        changed = frames.clone()
        changed[0][order == place] *= -1
        differs = (likelihood.log_prob(maps, changed) - before)[0] != 0
        assert torch.equal(differs, order >= place)
    for row, column in itertools.product(range(2), range(3)):
        other = maps.clone()
        other[0, :, row, column] += 1
        assert ((likelihood.log_prob(other, frames) - before)[0, :, row, column] != 0).all()


def test_drawn_frames_have_levels_and_the_greedy_one_no_chance() -> None:
    likelihood = make_likelihood()
    maps = torch.randn(2, 4, 3, 2)
    one, same, other = (likelihood.sample(maps, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.shape == (2, 3, 3, 2)
    torch.testing.assert_close(to_float(to_uint8(one)), one)
    assert torch.equal(likelihood.mean(maps), likelihood.mean(maps))


def test_samples_follow_the_likelihood() -> None:
    likelihood = make_likelihood(num_values=2, channels=2)
    maps = torch.randn(1, 4, 1, 2)
    count = 4000
    drawn = likelihood.sample(maps.expand(count, -1, -1, -1), torch.Generator().manual_seed(0))
    frames = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4))).view(16, 2, 1, 2)
    exact = likelihood.log_prob(maps.expand(16, -1, -1, -1), frames).flatten(1).sum(1).exp()
    found = (drawn[:, None] == frames).flatten(2).all(-1).float().mean(0)
    assert (found - exact).abs().max() < 4 * (0.25 / count) ** 0.5


def test_a_decoder_that_is_trained_in_bfloat16_draws_in_float32() -> None:
    likelihood = make_likelihood()
    cast(likelihood, torch.bfloat16)
    maps = torch.randn(1, 4, 3, 2)
    drawn = likelihood.sample(maps, torch.Generator().manual_seed(0))
    assert likelihood.log_prob(maps.bfloat16(), drawn).dtype == torch.float32
    likelihood.float()
    assert torch.equal(likelihood.sample(maps, torch.Generator().manual_seed(0)), drawn)


def test_every_parameter_of_the_decoder_learns() -> None:
    likelihood = make_likelihood()
    frames = to_float(torch.randint(0, 256, (8, 3, 6, 5), dtype=torch.uint8))
    likelihood.log_prob(torch.randn(8, 4, 6, 5), frames).sum().backward()
    assert not [name for name, p in likelihood.named_parameters() if p.grad is None or not p.grad.any()]
