"""The contract of states, on every prior whose trunk remembers: rows can be taken out and replaced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import PRIORS, SPEC, random_segment, tiny_prior

from worldmodel.config.cli import compose_config
from worldmodel.heads import make_sampler
from worldmodel.priors import Prior, PriorState, replace_rows, select_rows
from worldmodel.runs.kind import Kind, kind_of

ROWS = torch.tensor([3, 1])
OTHERS = torch.tensor([0, 2])


@pytest.fixture(params=[name for name in PRIORS if kind_of(compose_config([f"prior={name}"]), SPEC) is Kind.WORLD])
def prior(request: pytest.FixtureRequest) -> Prior:
    return tiny_prior(request.param).double()


def observed(prior: Prior, rows: slice, steps: int, first: int = 0) -> PriorState:
    segment = random_segment(batch=6, steps=40)
    assert segment.codes is not None
    state = prior.begin(len(range(*rows.indices(6))))
    for t in range(first, first + steps):
        state = prior.observe(state, segment.codes[rows, t], segment.actions[rows, t])
    return state


def leaves(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    else:
        for part in state:
            yield from leaves(part)


def same(one: PriorState, two: PriorState) -> bool:
    pairs = list(zip(leaves(one), leaves(two), strict=True))
    return len(pairs) > 1 and all(torch.equal(*pair) for pair in pairs)


@torch.no_grad()
@pytest.mark.parametrize(("before", "behind"), [(5, 2), (20, 1), (1, 25)])
def test_replaced_rows_go_on_as_a_batch_of_their_own(prior: Prior, before: int, behind: int) -> None:
    """Whatever the rows had seen, and however much or little they have seen since."""
    old, new = observed(prior, slice(0, 4), before), observed(prior, slice(4, 6), behind, first=7)
    kept = [leaf.clone() for leaf in leaves(old)]
    mixed = replace_rows(old, ROWS, new)
    assert type(mixed) is PriorState and type(mixed.trunk) is type(old.trunk)
    assert same(select_rows(mixed, ROWS), new) and same(select_rows(mixed, OTHERS), select_rows(old, OTHERS))
    assert all(torch.equal(*pair) for pair in zip(leaves(old), kept, strict=True))  # it stays what it was
    actions, sampler = torch.tensor([0, 1, 2, 1]), make_sampler(temperature=0.0)
    for _ in range(20):  # longer than any window
        step, mixed = prior.step(mixed, actions, sampler)
        fresh, new = prior.step(new, actions[ROWS], sampler)
        other, old = prior.step(old, actions, sampler)
        assert torch.equal(step.codes[ROWS], fresh.codes) and torch.equal(step.codes[OTHERS], other.codes[OTHERS])
        torch.testing.assert_close(step.ends[ROWS], fresh.ends, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_rows_that_stand_still_while_others_step_have_missed_nothing(prior: Prior) -> None:
    state, sampler = observed(prior, slice(0, 4), 6), make_sampler(temperature=0.0)
    actions = torch.tensor([0, 1, 2, 1])
    straight, _ = prior.step(state, actions, sampler)
    part, moved = prior.step(select_rows(state, ROWS), actions[ROWS], sampler)
    behind, _ = prior.step(replace_rows(state, ROWS, moved), actions, sampler)
    assert torch.equal(part.codes, straight.codes[ROWS])
    assert torch.equal(behind.codes[OTHERS], straight.codes[OTHERS])
