"""One step of a prior as a single CUDA graph: the trunk, the noise, all passes of the head, and the outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from worldmodel.heads.noise import Randomness, counter_noise, fill
from worldmodel.heads.sampling import Ancestral, gumbel
from worldmodel.nn.float32 import full_float32
from worldmodel.nn.graphs import GRAPHS, Drawn, Input, Outputs
from worldmodel.nn.modules import dtype_of
from worldmodel.priors.base import PriorState, Step, map_state

if TYPE_CHECKING:
    from worldmodel.priors.prior import Prior


def recorded_step(
    prior: Prior, sampler: Ancestral, state: PriorState, actions: Tensor, source: Randomness
) -> tuple[Step, PriorState]:
    """The results of :meth:`Prior.step`. The host waits for the device once, for the near ties."""
    shape = (len(actions), prior.positions, len(prior.head.vectors))
    inputs: list[Input] = [actions, *leaves(state)]
    noisy, keyed = sampler.temperature > 0, isinstance(source, Tensor)
    if isinstance(source, Tensor):
        inputs.append(source)
    elif noisy:
        inputs.append(Drawn(shape, actions.device, lambda noise: fill(noise, source)))

    def whole(actions: Tensor, *rest: Tensor) -> Outputs:
        values = iter(rest)
        before = map_state(lambda _: next(values), state)
        contexts, trunk = prior.trunk.step(before.trunk, before.previous, actions)
        contexts = contexts.to(dtype_of(prior.head))
        noise = None
        if noisy:
            uniform = counter_noise(rest[-1], (len(actions), *shape[1:])) if keyed else rest[-1].clone()
            noise = gumbel(uniform).to(contexts)
        with full_float32(actions.device):
            ordered = prior.head.in_order(contexts)
            codes, ambiguous = sampler.walk(prior.head, ordered, noise)
            grids, rewards, ends = prior.arrived(contexts, prior.head.in_raster(codes))
        scratch = (ambiguous, codes, contexts, ordered, *([] if noise is None else [noise]))
        return Outputs((grids, rewards, ends, *leaves(trunk)), scratch)

    (grids, rewards, ends, *after), scratch = GRAPHS.call(prior, (sampler.key, keyed, _form(state)), whole, inputs)
    ambiguous, codes, contexts, ordered, *noise = scratch
    with full_float32(actions.device):
        if sampler.settle(prior.head, ordered, noise[0] if noise else None, codes, ambiguous):
            grids, rewards, ends = prior.arrived(contexts, prior.head.in_raster(codes))
    values = iter(after)
    trunk = map_state(lambda _: next(values), state.trunk)
    passes = torch.tensor(float(len(sampler.groups(prior.head))))
    return Step(grids, rewards, ends, passes), PriorState(trunk, grids)


def leaves(state: Any) -> Iterator[Tensor]:
    """The tensors of a state, in the order of :func:`map_state`."""
    if isinstance(state, Tensor):
        yield state
    else:
        for part in state:
            yield from leaves(part)


def _form(state: Any) -> Any:
    """The nesting of a state, to compare it with that of another."""
    return None if isinstance(state, Tensor) else tuple(_form(part) for part in state)
