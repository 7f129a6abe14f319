"""Grids on top of grids: VQ-VAE-2 with its head, and a second stage that puts a whole grid into a few codes."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.heads import Ancestral, GridSpec, PixelCNNHead, Predictive
from worldmodel.heads.hierarchy import HierarchyHead
from worldmodel.priors import ConditionTrunk, Prior
from worldmodel.quantizers import ProductQuantizer, VectorQuantizer
from worldmodel.tokenizers import VQVAE, VQVAE2
from worldmodel.tokenizers.scene import GridVQVAE, Stacked

LEVELS = ((2, 2), (3, 4))
small_head = partial(PixelCNNHead, width=16, layers=3)


def make_head(levels: tuple[tuple[int, int], ...] = LEVELS, codes: int = 5) -> tuple[HierarchyHead, Tensor]:
    """A head with strong dependencies, and contexts of 3 frames."""
    torch.manual_seed(0)
    total = sum(map(math.prod, levels))
    head = HierarchyHead(GridSpec((total,), torch.randn(len(levels), codes, 3), levels=levels), 6, small_head, width=8)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return head.double().eval(), torch.randn(3, total, 6, dtype=torch.float64)


def small_tokenizer(**changes: object) -> VQVAE2:
    torch.manual_seed(0)
    quantizer = partial(VectorQuantizer, width=4)
    return VQVAE2((3, 16, 16), quantizer, **{"widths": [[8, 8], [8]], "blocks": 1, "num_codes": 16, **changes})  # type: ignore[arg-type]


def test_finer_codes_see_coarser_ones_and_not_the_other_way() -> None:
    head, contexts = make_head()
    codes = torch.randint(0, 5, (3, 16), generator=torch.Generator().manual_seed(1))
    before = head(codes, contexts)
    for position in range(16):
        changed = codes.clone()
        changed[:, position] = (changed[:, position] + 1) % 5
        after = head(changed, contexts)
        torch.testing.assert_close(after[:, : position + 1], before[:, : position + 1])
        if position < 4:  # every finer position reads all coarser ones, through two convolutions at least
            assert (after[:, 4:] != before[:, 4:]).any(-1).all()


def test_likelihoods_of_all_frames_sum_to_one() -> None:
    head, contexts = make_head(((1, 2), (2, 2)), codes=3)
    codes = torch.tensor(list(itertools.product(range(3), repeat=6)))
    logits = head(codes, contexts[:1].expand(len(codes), -1, -1))
    total = logits.log_softmax(-1).gather(-1, codes[..., None]).sum((1, 2)).exp().sum()
    assert float(total.detach()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("cuts", [[0, 16], [0, 3, 16], [0, 4, 16], [0, 9, 16], list(range(17))])
def test_extending_behind_any_prefix_equals_the_full_pass(cuts: list[int]) -> None:
    head, contexts = make_head()
    codes = torch.randint(0, 5, (3, 16), generator=torch.Generator().manual_seed(1))
    state = head.begin(contexts)
    wrong = codes.clone()
    wrong[:, 1:] = (wrong[:, 1:] + 1) % 5
    head.extend(state, wrong, 0, 16)  # what was made of wrong codes must be made anew
    parts = [head.extend(state, codes, a, b) for a, b in itertools.pairwise(cuts)]
    torch.testing.assert_close(torch.cat(parts, 1), head(codes, contexts), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_predictive_equals_ancestral(temperature: float) -> None:
    head, contexts = make_head()
    many = contexts.repeat(40, 1, 1) + torch.randn(120, 1, 6, generator=torch.Generator().manual_seed(2))
    one, two = (
        kind(temperature).sample(head, many, torch.Generator().manual_seed(7))[0] for kind in (Ancestral, Predictive)
    )
    assert torch.equal(one, two) and len(one.unique(dim=0)) > 20


def test_the_codes_of_all_levels_stand_in_one_row() -> None:
    tokenizer = small_tokenizer().eval()
    assert tokenizer.levels == ((2, 2), (4, 4)) and tokenizer.grid == (20,)
    x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    codes = tokenizer.encode(x)
    coarse, fine = tokenizer.books(codes)
    assert coarse.shape == (2, 4) and fine.shape == (2, 16)
    for changed, places in ((coarse, slice(0, 4)), (fine, slice(4, 20))):
        other = codes.clone()
        other[:, places] = (changed + 1) % 16
        assert not torch.equal(tokenizer.decode(other), tokenizer.decode(codes))


def test_a_prior_over_a_hierarchy_learns_that_the_levels_agree() -> None:
    tokenizer = small_tokenizer().eval()
    torch.manual_seed(0)
    head = partial(HierarchyHead, inner=small_head, width=8)
    prior = Prior(tokenizer, "abc", partial(ConditionTrunk, width=8), head, context=0, outcomes=False)
    colour = torch.randint(0, 16, (64, 1, 1), generator=torch.Generator().manual_seed(1))
    codes, actions = colour.expand(-1, 1, 20), torch.zeros(64, 1, dtype=torch.int64)  # all codes of a frame are equal
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(60):
        loss = -prior.log_likelihood(codes, actions).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    value = float(loss.detach())
    assert value < 1.6 * math.log(16)  # the first code is a matter of chance, the other 19 follow from it


def test_hidden_levels_are_the_fine_ones_of_some_training_frames() -> None:
    tokenizer = small_tokenizer(widths=[[8, 8], [8], [8]], hide=0.5)
    vectors = [torch.ones(1000, *grid, 3) for grid in reversed(tokenizer.grids)]
    seen = torch.stack([part.flatten(1).mean(1) for part in tokenizer._hidden(vectors, None)], 1)  # the finest first
    kinds, counts = seen.unique(dim=0, return_counts=True)
    assert kinds.tolist() == [[0, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert counts.tolist() == pytest.approx([250, 250, 500], abs=60)
    pictures = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    stages = tokenizer.eval().reconstructions(pictures)
    assert [name for name, _ in stages] == ["1x1", "1x1 + 2x2", "1x1 + 2x2 + 4x4"]
    assert torch.equal(stages[-1][1], tokenizer.decode(tokenizer.encode(pictures)))


@pytest.mark.parametrize("widths", [[[8, 8]], [[8, 8], [8, 8, 8]]])
def test_a_hierarchy_needs_two_levels_that_fit(widths: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="levels"):
        small_tokenizer(widths=widths)


def make_second(slots: int = 3) -> tuple[VQVAE, GridVQVAE]:
    torch.manual_seed(0)
    first = VQVAE((3, 24, 24), partial(VectorQuantizer, width=4), [8, 8], blocks=1, num_codes=8).eval()
    quantizer = partial(ProductQuantizer, slots=slots, quantizer=partial(VectorQuantizer, width=4))
    return first, GridVQVAE(first, quantizer, small_head, num_codes=4, widths=[16, 16], blocks=1, context=8)


def test_a_second_stage_learns_to_tell_grids_apart_by_a_few_codes() -> None:
    _, second = make_second()
    assert second.observed == (6, 6) and second.grid == (3,)
    patterns = torch.randint(0, 8, (8, 6, 6), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(second.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    second.train()
    for _ in range(80):
        terms, codes = second(patterns, generator)
        optimizer.zero_grad()
        (terms["grid"] + 0.25 * terms["commitment"]).backward()
        optimizer.step()
    second.eval()
    codes = second.encode(patterns)
    assert codes.shape == (8, 3) and len(codes.unique(dim=0)) > 1
    # The decoder reads the codes: those of another grid explain a grid worse.
    with torch.no_grad():
        vectors = second.quantizer.lookup(codes)
        own, other = (
            second.head.mean_nats(patterns.flatten(1), second._contexts(each)) for each in (vectors, vectors.roll(1, 0))
        )
    assert own.mean() < other.mean()
    torch.testing.assert_close(second.nats(patterns), 36 * own)


def test_stages_are_one_tokenizer() -> None:
    first, second = make_second()
    both = Stacked(first, second.eval()).eval()
    x = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    codes = both.encode(x)
    assert both.grid == (3,) and codes.shape == (2, 3) and both.codebook().shape == (3, 4, 4)
    assert torch.equal(codes, second.encode(first.encode(x)))
    pictures = both.decode(codes)
    assert pictures.shape == x.shape and torch.equal(pictures, both.decode(codes))
    assert [name for name, _ in both.reconstructions(x, torch.Generator().manual_seed(0))] == [
        "6x6", "6 bits, expected", "6 bits, drawn",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="no likelihood"):
        both.bound(x)


def test_the_decoder_of_a_second_stage_is_causal() -> None:
    _, second = make_second()
    second.double().eval()
    grids = torch.randint(0, 8, (2, 6, 6), generator=torch.Generator().manual_seed(1))
    vectors = torch.randn(2, second.quantizer.width, dtype=torch.float64)
    before = second.head(grids.flatten(1), second._contexts(vectors))
    changed = grids.clone()
    changed[:, 3, 2] = (changed[:, 3, 2] + 1) % 8
    after = second.head(changed.flatten(1), second._contexts(vectors))
    torch.testing.assert_close(after[:, :21], before[:, :21])
    assert (after[:, 21:] != before[:, 21:]).any()


def test_a_second_stage_needs_slots_and_one_grid() -> None:
    first, _ = make_second()
    with pytest.raises(ConfigError, match="slots"):
        GridVQVAE(first, partial(VectorQuantizer, width=4), small_head)
    with pytest.raises(ConfigError, match="one grid"):
        GridVQVAE(small_tokenizer(), partial(ProductQuantizer, slots=3, quantizer=VectorQuantizer), small_head)
