"""Rows of a batch of states: some of them taken out, or replaced, while the others go on.

A state is a tree of tuples and tensors whose first dimension is the batch (:class:`~worldmodel.priors.base.PriorState`
and what the trunks keep in it). Nothing is changed in place: a state that was returned earlier stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree")


def select_rows(state: Tree, rows: Tensor | slice) -> Tree:
    """The state of the rows (n,) int64 of a batch, in that order; of a slice, which copies nothing."""
    return _map(lambda tensor: tensor[rows], state)


def replace_rows(state: Tree, rows: Tensor, other: Tree) -> Tree:
    """The state with its rows (n,) int64 replaced by those of a state of n rows; no row stands in ``rows`` twice."""
    return _map(lambda tensor, new: tensor.index_copy(0, rows, new), state, other)


def join_rows(states: Sequence[Tree]) -> Tree:
    """The state of all rows of several states, one behind the other."""
    return _map(lambda *tensors: torch.cat(tensors), *states)


def _map(function: Callable[..., Tensor], *trees: Any) -> Any:
    first = trees[0]
    if isinstance(first, Tensor):
        return function(*trees)
    assert isinstance(first, tuple), f"a state is a tree of tuples and tensors, not of {type(first).__name__}"
    parts = [_map(function, *branch) for branch in zip(*trees, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
