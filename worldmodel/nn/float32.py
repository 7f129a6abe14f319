"""Full float32 arithmetic on GPUs, whose convolutions and matrix products may round their inputs to TF32."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Inside, products and convolutions of float32 on a GPU have float32 inputs, whatever the settings of torch.

    TF32 keeps 10 bits of the mantissa. It is the default of convolutions, and training libraries advise it for matrix
    products. What decides on codes must not use it: a code of an encoder may change, and two ways to compute the same
    logits differ by more than the threshold of near ties.
    """
    if device.type != "cuda":
        yield
        return
    backends: Any = torch.backends  # the stubs have no settings of convolutions
    places = (backends.cuda.matmul, backends.cudnn.conv)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
