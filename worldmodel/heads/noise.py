"""Uniform noise for samplers, from generators or from counters.

A generator of torch serves a whole batch, or one serves each row. Noise from counters needs no state: the number of a
code is a function of the key of its row, its position and its index, computed in integers, so that it is the same on
every device and in every batch, and a GPU needs nothing from the host but one key for each row.

The function is SplitMix64 (Steele, Lea, Flood, *Fast Splittable Pseudorandom Number Generators*, 2014) of key and
position, whose 64 bits enter a hash of the code in two halves: a multiplicative hash of 32 bits with the constants of
"lowbias32" (Wellons, *Prospecting for Hash Functions*, 2018), whose last shift is left out, since only the highest 24
bits are used.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

Randomness = Generator | Sequence[Generator] | Tensor | None
"""The source of noise: a generator for the batch (None: torch's own), one for each row, or the keys of the rows, (B,)
int64. With the latter two, the draws of a row do not depend on other rows."""

GOLDEN, MIX1, MIX2 = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
CODE, HASH1, HASH2 = 0x9E3779B9 - 2**32, 0x7FEB352D, 0x846CA68B - 2**32
AT_A_TIME = 2**15 - 1  # numbers on a CPU: they fit its cache, and are too few for torch to wake other threads


def uniform_noise(shape: Sequence[int], device: torch.device, source: Randomness) -> Tensor:
    """Uniform noise of a shape (B, N, K) on a device, float32. Raises ValueError where there is not one source of a row
    for each row."""
    if isinstance(source, Tensor):
        return counter_noise(source.to(device), shape)
    noise = torch.empty(tuple(shape), device=device)
    fill(noise, source)
    return noise


def fill(noise: Tensor, source: Generator | Sequence[Generator] | None) -> None:
    """Draw uniform noise in place."""
    if source is None or isinstance(source, Generator):
        if source is None or _place(source.device) == _place(noise.device):
            noise.uniform_(generator=source)
        else:
            noise.copy_(torch.rand(noise.shape, generator=source, device=source.device))
        return
    for row, generator in zip(noise, source, strict=True):
        fill(row, generator)


def _place(device: torch.device) -> tuple[str, int]:
    return device.type, device.index or 0


def counter_noise(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Keys (B,) int64 → uniform noise of a shape (B, N, K) in [0, 1], float32, on the device of the keys."""
    rows, positions, codes = shape
    if keys.shape != (rows,) or keys.dtype != torch.int64:
        raise ValueError(f"keys are {tuple(keys.shape)} {keys.dtype}; noise for {rows} rows needs ({rows},) int64")
    counters = torch.arange(1, positions + 1, device=keys.device)
    halves = _split_mix(keys[:, None] + counters * GOLDEN).flatten().view(torch.int32).view(-1, 2, 1)
    hashed = torch.arange(codes, dtype=torch.int32, device=keys.device) * CODE
    noise = torch.empty(rows * positions, codes, device=keys.device)
    size = max(1, AT_A_TIME // codes if keys.device.type == "cpu" else len(noise))
    for out, part in zip(noise.split(size), halves.split(size), strict=True):
        _hash(hashed, part, out)
    return noise.view(rows, positions, codes)


def _split_mix(z: Tensor) -> Tensor:
    """The output function of SplitMix64, int64; shifts are those of unsigned numbers."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * MIX1
    z = (z ^ ((z >> 27) & (2**37 - 1))) * MIX2
    return z ^ ((z >> 31) & (2**33 - 1))


def _hash(codes: Tensor, halves: Tensor, out: Tensor) -> None:
    """codes (K,), halves (M, 2, 1), int32 → uniform noise ``out`` (M, K)."""
    x = halves[:, 0] + codes
    shifted = x >> 16
    x.bitwise_xor_(shifted.bitwise_and_(0xFFFF)).mul_(HASH1)
    torch.bitwise_right_shift(x, 15, out=shifted)
    x.bitwise_xor_(shifted.bitwise_and_(0x1FFFF))
    torch.add(halves[:, 1], x, alpha=HASH2, out=x)
    # The signed number, rounded to 24 bits; the scale is a power of two, so that all devices round alike.
    torch.mul(x, 2.0**-32, out=out).add_(0.5)
