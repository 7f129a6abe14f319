"""The make-believe GPU: a mode in which every operation of torch is checked, computed on the CPU and counted."""

from __future__ import annotations

import collections
import contextlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .costs import BETWEEN, INDEXING, WAITS, aten, index_waits, is_pointwise, kernels
from .runtime import Graph, Names, replacements
from .tensors import Cuda, NotInCapture, WrongDevice, inner_of

PROJECT = ("worldmodel", "agents", "envs", "benchmarks")

Counter = collections.Counter[str]


class Gpu(TorchDispatchMode):
    """Inside, torch has ``count`` GPUs, and the counters state what happened on them, by line of the project."""

    def __init__(self, count: int = 1, capability: tuple[int, int] = (9, 0)):
        super().__init__()
        self.count, self.capability = count, capability
        self.current = 0  # device
        self.inference = False  # whether inference mode is on
        self.waits: Counter = collections.Counter()
        self.uploads: Counter = collections.Counter()
        self.launches: Counter = collections.Counter()
        self.kinds: Counter = collections.Counter()  # launches by operation
        self.captured: list[int] = []  # kernels of each graph
        self.replays = self.replayed_kernels = 0
        self.capturing: tuple[Graph, int] | None = None  # and the device of the stream
        self._inside = 0  # > 0 inside of what is one kernel on a GPU

    def __enter__(self) -> Gpu:  # type: ignore[override]
        self._stack = contextlib.ExitStack()
        for patch in replacements(self):
            self._stack.enter_context(patch)
        self._names = self._stack.enter_context(Names())
        return super().__enter__()  # type: ignore[return-value]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        ours = [leaf for leaf in leaves if isinstance(leaf, Cuda)]
        plain = [leaf for leaf in leaves if not isinstance(leaf, Cuda)]
        there, index = _destination(kwargs, ours)
        if not ours and not there:
            return func(*args, **kwargs)
        kwargs.pop("pin_memory", None)
        self._check(func, ours, plain, there)
        inner_args, inner_kwargs = tree_map(inner_of, (args, kwargs))
        result = func(*inner_args, **inner_kwargs)
        waits = self._count_copies(func, ours, plain, args, there)
        waits += (WAITS.get(func, 0) if ours else 0) + index_waits(func, inner_args, kwargs)
        self._record(func, inner_args, inner_kwargs, result, waits, index)
        known = {id(leaf.inner): leaf for leaf in ours}

        def outside(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            if (same := known.get(id(value))) is not None:
                return same
            return Cuda(value, index, self.inference) if there else value

        return tree_map(outside, result)

    def _check(self, func: Any, ours: list[Cuda], plain: list[torch.Tensor], there: bool) -> None:
        """Raises what CUDA would raise."""
        if len({leaf.index for leaf in ours}) > 1 and func not in BETWEEN:
            raise WrongDevice(f"{func} on tensors of several GPUs")
        generator = self._names.generator
        if generator is not None and (generator.device.type == "cuda") != there:
            raise WrongDevice(f"{func}: the generator is of {generator.device}, the tensor is not")
        if ours and func._schema.is_mutable and ours[0].inference and not self.inference:
            raise RuntimeError("Inplace update to inference tensor outside InferenceMode is not allowed")
        if ours and plain and func not in BETWEEN:
            if not (is_pointwise(func) and all(leaf.dim() == 0 for leaf in plain)):
                shapes = [(tuple(leaf.shape), str(leaf.device)) for leaf in [*ours, *plain]]
                raise WrongDevice(f"{func} on tensors of both devices: {shapes}")
            if self.capturing and not is_pointwise(func):
                raise NotInCapture(f"{func} with a tensor of the CPU")
        if self.capturing and plain and func in BETWEEN:
            raise NotInCapture(f"{func} copies from pageable memory")
        if self.capturing and generator is not None:
            raise NotInCapture(f"{func} draws from a generator that the graph does not know")

    def _count_copies(self, func: Any, ours: list, plain: list, args: Any, there: bool) -> int:
        """Counts copies to the device; returns the host waits of copies from it."""
        if func is aten._to_copy.default:
            if plain and there:
                self.note(self.uploads)
            return int(bool(ours) and not there)
        if func is aten.copy_.default and ours and plain:
            if plain[0] is args[0]:
                return 1
            self.note(self.uploads)
        if func in INDEXING and ours and plain:
            self.note(self.uploads, note=" (an index of the CPU)")
        return 0

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any, waits: int, index: int) -> None:
        """Counts the waits and the kernels, or adds the operation to the graph that is captured."""
        if waits:
            if self.capturing:
                raise NotInCapture(f"{func} waits for the device")
            self.note(self.waits, waits)
        count = 0 if self._inside else kernels(func, args, waits)
        if self.capturing is not None:
            graph, device = self.capturing
            if device == index:  # operations of another device are not captured: they run now, and never again
                graph.steps.append((func, args, kwargs, result))
                graph.kernels += count
        elif count:
            self.launch(func.overloadpacket.__name__, count)

    def launch(self, name: str, count: int) -> None:
        """Counts kernels of an operation."""
        if self.capturing is not None:
            self.capturing[0].kernels += count
            return
        self.note(self.launches, count)
        self.kinds[name] += count

    @contextlib.contextmanager
    def one_kernel(self) -> Iterator[None]:
        """Inside, operations are not counted, since they are parts of one kernel."""
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def note(self, counter: Counter, times: int = 1, note: str = "") -> None:
        """Counts something at the line of the project that is running."""
        counter[_line() + note] += times

    def forget(self) -> None:
        """All counters start again."""
        for counter in (self.waits, self.uploads, self.launches, self.kinds):
            counter.clear()
        self.captured.clear()
        self.replays = self.replayed_kernels = 0

    def report(self, lines: int = 12) -> str:
        """The counters as text, for the message of a failed test."""
        total = {"launches": self.launches, "host waits": self.waits, "uploads": self.uploads}
        parts = [", ".join(f"{sum(counter.values())} {name}" for name, counter in total.items())]
        parts += [f"{self.replays} replays of {self.replayed_kernels} kernels, {len(self.captured)} captures"]
        for name, counter in total.items():
            parts += [f"  {name:10} {count:5} {line}" for line, count in counter.most_common(lines)]
        return "\n".join(parts)


def _destination(kwargs: dict[str, Any], ours: list[Cuda]) -> tuple[bool, int]:
    """Whether the result belongs to a GPU, and its index; the device in ``kwargs`` becomes the CPU."""
    asked = kwargs.get("device")
    index = ours[0].index if ours else 0
    if asked is None:
        return bool(ours), index
    asked = torch.device(asked)
    kwargs["device"] = torch.device("cpu")
    return asked.type in ("cuda", "meta"), index if asked.index is None else asked.index


def _line() -> str:
    """The innermost line of the project on the stack; of a backward pass, the call of ``backward``."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "site-packages" not in path.parts:
            for part in PROJECT:
                if part in path.parts:
                    start = len(path.parts) - 1 - path.parts[::-1].index(part)
                    return f"{Path(*path.parts[start:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
