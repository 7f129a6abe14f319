"""The parts of ``torch.cuda`` and of torch's functions that are replaced inside of a make-believe GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from .costs import FREE, is_view
from .tensors import Cuda, Generator

if TYPE_CHECKING:
    from .gpu import Gpu


class Stream:
    """A stream of a device; operations are never asynchronous here."""

    def __init__(self, device: Any = None, **_: Any):
        self.device = torch.device("cuda", 0) if device is None else torch.device(device)

    def wait_stream(self, other: Any) -> None: ...
    def synchronize(self) -> None: ...


class Graph:
    """A recorded sequence of operations on fixed memory."""

    def __init__(self, gpu: Gpu):
        self.gpu = gpu
        self.steps: list[tuple[Any, tuple, dict, Any]] = []
        self.kernels = 0

    def replay(self) -> None:
        self.gpu.replays += 1
        self.gpu.replayed_kernels += self.kernels
        with _disable_current_modes():
            for func, args, kwargs, kept in self.steps:
                if is_view(func) or func in FREE:
                    continue
                result = func(*args, **kwargs)
                if not func._schema.is_mutable:
                    for old, new in zip(tree_leaves(kept), tree_leaves(result), strict=True):
                        if isinstance(old, torch.Tensor):
                            old.copy_(new)


class Names(TorchFunctionMode):
    """Passes "cuda" through the C++ of torch, which has no such device, under the name "meta"; and keeps the generator
    of a call, which the C++ passes on as another object."""

    generator: Any = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cuda:
            func, args = torch.Tensor.to, (args[0], "cuda" if args[1:] in ((), (None,)) else args[1])
        kwargs = kwargs or {}
        if func is torch.Tensor.to or "device" in kwargs:
            args = tuple(_as_meta(arg) for arg in args)
            kwargs = {name: _as_meta(value) for name, value in kwargs.items()}
        on_gpu = getattr(kwargs.get("device"), "type", "") == "meta"
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and on_gpu:
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])  # made on the host, then copied
        if func is torch.stft and isinstance(args[0], Cuda):
            return _stft(*args, **kwargs)
        if kwargs.get("generator") is None:
            return func(*args, **kwargs)
        self.generator = kwargs["generator"]
        try:
            return func(*args, **kwargs)
        finally:
            self.generator = None


def _as_meta(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("cuda"):
        value = torch.device(value)
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("meta", value.index or 0)
    return value


def _stft(wave: Any, n_fft: int, hop_length: Any, win_length: Any = None, window: Any = None, **_: Any) -> Any:
    """torch.stft with center=False, which transposes its result in place; a wrapped tensor cannot follow that."""
    if window is not None and (left := (n_fft - len(window)) // 2):
        window = torch.nn.functional.pad(window, (left, n_fft - len(window) - left))
    pieces = wave.unfold(-1, n_fft, hop_length)
    return torch.fft.rfft(pieces if window is None else pieces * window).transpose(1, 2)


def _cuda(gpu: Gpu) -> dict[str, Any]:
    """Replacements by name in ``torch.cuda``."""

    @contextlib.contextmanager
    def capture(graph: Graph, *_: Any, stream: Any = None, **__: Any) -> Iterator[None]:
        # As in torch, without a stream it is one of the device that is current.
        gpu.capturing = graph, gpu.current if stream is None else (stream.device.index or 0)
        try:
            yield
        finally:
            gpu.capturing = None
        gpu.captured.append(graph.kernels)

    @contextlib.contextmanager
    def on(place: Any) -> Iterator[None]:
        before, gpu.current = gpu.current, (torch.device(getattr(place, "device", place)).index or 0)
        try:
            yield
        finally:
            gpu.current = before

    return {
        "is_available": lambda: True, "device_count": lambda: gpu.count, "current_device": lambda: gpu.current,
        "get_device_capability": lambda *_: gpu.capability, "get_device_name": lambda *_: "make-believe GPU",
        "_lazy_init": lambda: None, "synchronize": lambda *_: gpu.note(gpu.waits), "empty_cache": lambda: None,
        "set_device": lambda d: setattr(gpu, "current", torch.device(d).index or 0), "Stream": Stream, "device": on,
        "current_stream": Stream, "stream": on, "CUDAGraph": lambda: Graph(gpu), "graph": capture,
        "reset_peak_memory_stats": lambda *_: None, "max_memory_allocated": lambda *_: 0,
        "is_bf16_supported": lambda *_: True, "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_: None, "manual_seed_all": lambda *_: None,
    }  # fmt: skip


def replacements(gpu: Gpu) -> Iterator[Any]:
    """All patches that are active inside of a make-believe GPU."""
    for name, value in _cuda(gpu).items():
        yield mock.patch.object(torch.cuda, name, value)
    yield mock.patch.object(torch, "Generator", Generator)
    yield from _inference_mode(gpu)
    yield mock.patch("torch.nn.functional.scaled_dot_product_attention", _attention(gpu))
    supported = torch.utils._foreach_utils._foreach_supported_types
    yield mock.patch.object(torch.utils._foreach_utils, "_foreach_supported_types", [*supported, Cuda])
    yield mock.patch.object(torch.utils._foreach_utils, "_device_has_foreach_support", lambda device: True)


def _inference_mode(gpu: Gpu) -> Iterator[Any]:
    """A wrapped tensor cannot be an inference tensor: ``no_grad`` replaces the mode, and the flag is our own."""

    def enter(self: Any) -> None:
        self.instead, self.before = torch.no_grad() if self.mode else contextlib.nullcontext(), gpu.inference
        gpu.inference = self.mode
        self.instead.__enter__()

    def leave(self: Any, *error: Any) -> None:
        gpu.inference = self.before
        self.instead.__exit__(*error)

    yield mock.patch.object(torch.inference_mode, "__enter__", enter)
    yield mock.patch.object(torch.inference_mode, "__exit__", leave)
    yield mock.patch.object(torch, "is_inference_mode_enabled", lambda: gpu.inference)


def _attention(gpu: Gpu) -> Callable[..., Any]:
    """Attention is one kernel on a GPU, and many operations in wrapped tensors."""
    real = torch.nn.functional.scaled_dot_product_attention

    def attention(*args: Any, **kwargs: Any) -> Any:
        if not isinstance(args[0], Cuda):
            return real(*args, **kwargs)
        gpu.launch("scaled_dot_product_attention", 1)
        with gpu.one_kernel():
            return real(*args, **kwargs)

    return attention
