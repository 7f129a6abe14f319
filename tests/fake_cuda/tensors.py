"""Tensors and generators that claim to belong to a GPU."""

from __future__ import annotations

from typing import Any

import torch


class WrongDevice(RuntimeError):
    """Expected all tensors to be on the same device."""


class NotInCapture(RuntimeError):
    """Operation not permitted when stream is capturing."""


class Cuda(torch.Tensor):
    """A tensor that claims to be on a GPU; ``inner``, a tensor of the CPU, has its numbers.

    Underneath, its device is "meta": a build of torch without CUDA has no autograd thread for "cuda".
    """

    inner: torch.Tensor
    index: int
    inference: bool
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor, index: int = 0, inference: bool = False) -> Cuda:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device("meta", index),
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor, index: int = 0, inference: bool = False):
        self.inner, self.index, self.inference = inner, index, inference

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a make-believe GPU outside of `with Gpu()`, or in another thread")

    device = property(lambda self: torch.device("cuda", self.index))  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def is_inference(self) -> bool:
        return self.inference

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def to(self, *args: Any, **kwargs: Any) -> Any:
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **{k: v for k, v in kwargs.items() if k != "copy"})
        here = device is None or device == self.device or (device.type, device.index) == ("cuda", None)
        if here and dtype in (None, self.dtype) and layout is None and not kwargs.get("copy"):
            return self
        return super().to(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Cuda:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copied._is_param = True  # type: ignore[attr-defined]
        memo[id(self)] = copied
        return copied  # type: ignore[return-value]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Cuda({self.inner!r})"


def _set_data(self: Cuda, value: torch.Tensor) -> None:
    torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
    self.inner, self.index = value.inner, value.index  # type: ignore[attr-defined]


Cuda.data = property(lambda self: self.detach(), _set_data)  # type: ignore[assignment, method-assign]


class Generator(torch.Generator):
    """A generator with the device that it was constructed for; its numbers are those of the CPU."""

    asked: torch.device

    def __new__(cls, device: Any = "cpu") -> Generator:
        generator = super().__new__(cls, "cpu")
        asked = torch.device(device)
        current = asked.type == "cuda" and asked.index is None
        generator.asked = torch.device("cuda", torch.cuda.current_device()) if current else asked
        return generator

    device = property(lambda self: self.asked)  # type: ignore[assignment]


def inner_of(value: Any) -> Any:
    """The tensor of the CPU in a tensor that claims to be on a GPU; other values unchanged."""
    return value.inner if isinstance(value, Cuda) else value
