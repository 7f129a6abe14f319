"""A make-believe GPU for tests on machines without one: ``with Gpu() as gpu:`` usual code runs with ``device="cuda"``.

Tensors on it have real numbers, which are computed on the CPU, and the rules of a GPU are enforced:

* An operation on tensors of two devices raises :class:`WrongDevice`, as CUDA does (except a scalar of the CPU in
  pointwise arithmetic, an index and a copy); so does a random draw whose generator belongs to the other device.
* Each wait of the host for the device (``.item()``, ``.cpu()``, a boolean index, ``nonzero`` …) is counted with the
  line of the project that caused it, in ``gpu.waits``; so is each copy from pageable memory, in ``gpu.uploads``.
* The kernels that would be launched are estimated by line, in ``gpu.launches``; ``costs.py`` has the assumptions.
* ``torch.cuda.graph`` records operations on fixed memory, and replays exactly these. What CUDA forbids while capturing
  raises :class:`NotInCapture`. ``gpu.captured`` has the number of kernels of each graph.
* A tensor of ``inference_mode`` cannot be changed outside of it.

FakeTensorMode cannot replace it: its tensors have no numbers, and on a build of torch without CUDA its backward pass
aborts. It cannot show anything that depends on time or asynchrony (streams, races, memory that is used again too
early), memory, other numerics (TF32, atomics), kernels that refuse a layout or a size, and NCCL.

It depends on internals of torch and is therefore restricted to the versions that it was tested with.
"""

from __future__ import annotations

import re

import torch

from .gpu import Gpu
from .tensors import Cuda, NotInCapture, WrongDevice

TESTED = (2, 11), (2, 14)
"""The first tested version of torch, and the first one that is not."""

version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
if not TESTED[0] <= version < TESTED[1]:
    raise ImportError(f"fake_cuda depends on internals of torch 2.11 to 2.13, not {torch.__version__}; test it and "
                      "change TESTED")  # fmt: skip

__all__ = ["Cuda", "Gpu", "NotInCapture", "WrongDevice"]
