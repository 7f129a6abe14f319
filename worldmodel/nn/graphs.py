"""CUDA graphs: many small kernels that are recorded once and then launched together."""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

KEPT = 16  # recordings for each module; each of them holds the memory of its intermediate results
NOTED = 256  # calls for each module that are known, recorded or not
SMALL_BATCH = 64  # up to here sizes are rounded up to powers of two, above to a quarter of one


class Outputs(NamedTuple):
    """What a recorded function returns; the batch is the first dimension of every tensor."""

    results: tuple[Tensor, ...]  # memory of their own
    scratch: tuple[Tensor, ...]  # valid until the next call


Function = Callable[..., Outputs]


class Drawn(NamedTuple):
    """An input that is written in place, such as noise, which then needs no copy."""

    shape: tuple[int, ...]
    device: torch.device
    fill: Callable[[Tensor], object]
    dtype: torch.dtype = torch.float32

    def tensor(self) -> Tensor:
        value = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        self.fill(value)
        return value


Input = Tensor | Drawn


class Recording(NamedTuple):
    """A captured CUDA graph and the memory that it reads from and writes to."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    packed: tuple[Tensor, ...]  # the results, one tensor for each number format
    outputs: Outputs  # their shapes, and the memory of the scratch


class GraphCache:
    """Recordings of functions of batches that also read the weights of a module.

    The function must not wait for the device, nor branch on the values of its inputs, and no row of its outputs may
    depend on other rows. A call is recorded when it occurs for the second time, for a batch size that is rounded up,
    so that few recordings serve many sizes; the least recently used ones are dropped. A module whose weights moved to
    other memory is recorded again; changes of weights in place take effect. It is not for several threads.
    """

    def __init__(self) -> None:
        self.known = WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Recording | None]]()
        self._stores = WeakKeyDictionary[nn.Module, list[dict[str, Tensor | None]]]()

    def call(self, module: nn.Module, key: Hashable, function: Function, inputs: Sequence[Input]) -> Outputs:
        """``function(*inputs)``, by replay where it was called with this module, key and size before.

        ``key``: all that the function depends on beside the module and its inputs.
        """
        batch = inputs[0].shape[0]
        known = self.known.setdefault(module, OrderedDict())
        shapes = tuple((tuple(x.shape[1:]), x.dtype, x.device) for x in inputs)
        full = (key, rounded_up(batch), shapes, module.training, self._addresses(module))
        if full not in known:
            known[full] = None
            while len(known) > NOTED:
                known.popitem(last=False)
            return function(*(x.tensor() if isinstance(x, Drawn) else x for x in inputs))
        known.move_to_end(full)
        recording = known[full]
        if recording is None:
            recorded = [key for key, value in known.items() if value is not None]
            for oldest in recorded[: max(len(recorded) - KEPT + 1, 0)]:
                del known[oldest]
            recording = known[full] = record(function, inputs, rounded_up(batch))
        _copy(recording.inputs, inputs)
        recording.graph.replay()
        scratch = tuple(x[:batch] for x in recording.outputs.scratch)
        return Outputs(_unpacked(recording.packed, recording.outputs.results, batch), scratch)

    def _addresses(self, module: nn.Module) -> tuple[int, ...]:
        """Where the weights and buffers are. The dictionaries of all submodules are kept, since collecting them takes
        longer than to read them."""
        if module not in self._stores:
            parts = list(module.modules())
            stores: list[Any] = [*(part._parameters for part in parts), *(part._buffers for part in parts)]
            self._stores[module] = [store for store in stores if store]
        return tuple(x.data_ptr() for store in self._stores[module] for x in store.values() if x is not None)


def rounded_up(batch: int) -> int:
    """The batch size of the recording that serves a batch: up to 64 a power of two, above at most a quarter larger."""
    step = 1 << (batch - 1).bit_length()  # the next power of two
    if batch > SMALL_BATCH:
        step = step // 8
    return -(-batch // step) * step if batch else 0


def record(function: Function, inputs: Sequence[Input], batch: int) -> Recording:
    """Capture one call for ``batch`` rows, after calls on another stream, in which libraries initialise, as capturing
    requires.

    Rows beyond those of the inputs are copies of the first one. Its memory is none of inference mode, so that it can
    be replayed in any mode, and belongs to the device of the inputs, whichever is the current one.
    """
    device = inputs[0].device
    with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(device):
        static = tuple(_static(x, batch) for x in inputs)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                _pack(function(*static).results)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = function(*static)
            packed = _pack(outputs.results)
    return Recording(graph, static, packed, outputs)


def _static(given: Input, batch: int) -> Tensor:
    """Memory for an input of ``batch`` rows."""
    if isinstance(given, Drawn):
        return torch.full((batch, *given.shape[1:]), 0.5, dtype=given.dtype, device=given.device)
    return torch.cat([given, given[:1].expand(batch - len(given), *given.shape[1:])])


def _copy(static: Sequence[Tensor], given: Sequence[Input]) -> None:
    """Write the inputs; copies take one kernel for each number format."""
    pairs: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for to, x in zip(static, given, strict=True):
        rows = to[: x.shape[0]]
        if isinstance(x, Drawn):
            x.fill(rows)
        else:
            pairs.setdefault(x.dtype, []).append((rows, x))
    for copies in pairs.values():
        torch._foreach_copy_([to for to, _ in copies], [x for _, x in copies])


def _pack(results: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """All results of a number format in one row of memory, so that one copy preserves them."""
    formats = dict.fromkeys(x.dtype for x in results)
    return tuple(torch.cat([x.flatten() for x in results if x.dtype == dtype]) for dtype in formats)


def _unpacked(packed: Sequence[Tensor], shapes: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
    """Copies of the first rows of the results."""
    rows = {whole.dtype: whole.clone() for whole in packed}
    begins = dict.fromkeys(rows, 0)
    results = []
    for x in shapes:
        begin = begins[x.dtype]
        begins[x.dtype] = end = begin + math.prod(x.shape)
        results.append(rows[x.dtype][begin:end].view(x.shape)[:batch])
    return tuple(results)


GRAPHS = GraphCache()
