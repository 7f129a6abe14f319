"""One step of a prior as a single CUDA graph: the trunk, the noise, all passes of the head, and the outcomes."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.heads.base import Head
from worldmodel.heads.noise import Randomness, counter_noise, fill
from worldmodel.heads.sampling import Ancestral, gumbel
from worldmodel.nn.float32 import full_float32
from worldmodel.nn.graphs import GRAPHS, Drawn, Input, Outputs
from worldmodel.nn.modules import dtype_of
from worldmodel.priors.base import PriorState, Step, Trunk, map_state


class Parts(NamedTuple):
    """The parts of a prior that a step uses."""

    prior: nn.Module
    trunk: Trunk
    head: Head
    arrived: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]  # contexts and codes → grids, rewards, ends


def recorded_step(
    parts: Parts, sampler: Ancestral, state: PriorState, actions: Tensor, source: Randomness
) -> tuple[Step, PriorState]:
    """The results of a step of a prior. The host waits for the device once, for the near ties."""
    head = parts.head
    shape = (len(actions), len(head.order), len(head.vectors))
    inputs: list[Input] = [actions, *leaves(state)]
    noisy, keyed = sampler.temperature > 0, isinstance(source, Tensor)
    if isinstance(source, Tensor):
        inputs.append(source)
    elif noisy:
        inputs.append(Drawn(shape, actions.device, lambda noise: fill(noise, source)))

    def whole(actions: Tensor, *rest: Tensor) -> Outputs:
        values = iter(rest)
        before = map_state(lambda _: next(values), state)
        contexts, trunk = parts.trunk.step(before.trunk, before.previous, actions)
        contexts = contexts.to(dtype_of(head))
        noise = None
        if noisy:
            uniform = counter_noise(rest[-1], (len(actions), *shape[1:])) if keyed else rest[-1].clone()
            noise = gumbel(uniform).to(contexts)
        with full_float32(actions.device):
            ordered = head.in_order(contexts)
            codes, ambiguous = sampler.walk(head, ordered, noise)
            grids, rewards, ends = parts.arrived(contexts, head.in_raster(codes))
        scratch = (ambiguous, codes, contexts, ordered, *([] if noise is None else [noise]))
        return Outputs((grids, rewards, ends, *leaves(trunk)), scratch)

    (grids, rewards, ends, *after), scratch = GRAPHS.call(
        parts.prior, (sampler.key, keyed, _form(state)), whole, inputs
    )
    ambiguous, codes, contexts, ordered, *noise = scratch
    with full_float32(actions.device):
        near = sampler.settle(head, ordered, noise[0] if noise else None, codes, ambiguous)
        if near:
            grids, rewards, ends = parts.arrived(contexts, head.in_raster(codes))
    values = iter(after)
    trunk = map_state(lambda _: next(values), state.trunk)
    passes = torch.tensor(float(len(sampler.groups(head))))
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
