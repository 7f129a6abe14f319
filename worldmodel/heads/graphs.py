"""CUDA graphs: a long row of small kernels recorded once, then launched as one, without a gap or a host in between."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

Function = Callable[..., tuple[Tensor, ...]]
KEPT = 8  # graphs for each module; every one holds the memory of its intermediate results


@dataclasses.dataclass(frozen=True)
class Recording:
    """A captured graph and the memory that it reads from and writes to."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class GraphCache:
    """Recordings of functions of tensors that also read the weights of a module."""

    def __init__(self) -> None:
        self.recordings: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Recording]] = weakref.WeakKeyDictionary()

    def call(self, module: nn.Module, key: Hashable, function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
        """``function(*inputs)``, by replay where it was called with this module, key and shapes before.

        The function must not synchronise with the host, nor choose by the values of its inputs. A module whose weights
        moved to other memory is recorded anew; weights that change in place are seen.
        """
        known = self.recordings.setdefault(module, {})
        where = tuple(parameter.data_ptr() for parameter in module.parameters())
        full = (key, where, tuple((tuple(x.shape), x.dtype, x.device) for x in inputs))
        if full not in known:
            while len(known) >= KEPT:
                known.pop(next(iter(known)))
            known[full] = record(function, inputs)
        recording = known[full]
        for static, given in zip(recording.inputs, inputs, strict=True):
            static.copy_(given)
        recording.graph.replay()
        return tuple(output.clone() for output in recording.outputs)


def record(function: Function, inputs: tuple[Tensor, ...]) -> Recording:
    """Capture one call. Some calls come first on a stream of their own, as capturing asks for (libraries set up)."""
    static = tuple(x.clone() for x in inputs)
    device = inputs[0].device
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(*static)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*static)
    return Recording(graph, static, outputs)
