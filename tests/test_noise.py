"""Noise from counters: a stated function of key, position and code, uniform and without correlations."""

from __future__ import annotations

import numpy as np
import torch

from worldmodel.heads.noise import counter_noise
from worldmodel.heads.sampling import make_sampler

WHOLE, HALF = 2**64 - 1, 2**32 - 1


def reference(key: int, position: int, code: int) -> float:
    """The definition in unbounded integers."""
    z = (key + (position + 1) * 0x9E3779B97F4A7C15) & WHOLE
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WHOLE
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WHOLE
    z ^= z >> 31
    x = (code * 0x9E3779B9 + (z & HALF)) & HALF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & HALF
    x = ((x ^ (x >> 15)) * 0x846CA68B + (z >> 32)) & HALF
    return float(np.float32(np.float32(x - 2**32 if x >= 2**31 else x) * np.float32(2.0**-32)) + np.float32(0.5))


def test_it_is_the_stated_function_in_any_batch() -> None:
    keys = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 123456789])
    noise = counter_noise(keys, (6, 64, 700))
    for row, position, code in ((0, 0, 0), (1, 63, 699), (2, 5, 77), (3, 30, 300), (4, 1, 2), (5, 62, 511)):
        assert float(noise[row, position, code]) == reference(int(keys[row]) & WHOLE, position, code)
    assert torch.equal(counter_noise(keys[3:4], (1, 64, 700))[0], noise[3])
    assert torch.equal(counter_noise(keys, (6, 9, 30)), noise[:, :9, :30])


def test_it_is_uniform_and_independent_across_keys_positions_and_codes() -> None:
    noise = counter_noise(torch.arange(60), (60, 64, 512))
    assert noise.min() >= 0 and noise.max() <= 1
    cells = (noise * 16).long().clamp(max=15)
    assert abs(spread(cells.flatten(), 16)) < 5
    for axis in range(3):
        for lag in (1, 2, 8):
            length = noise.shape[axis] - lag
            pairs = 16 * cells.narrow(axis, 0, length) + cells.narrow(axis, lag, length)
            assert abs(spread(pairs.flatten(), 256)) < 5
    assert abs(spread(noise.argmax(-1).flatten(), 512)) < 5  # the code that is drawn where all are equally probable


def spread(values: torch.Tensor, count: int) -> float:
    """χ² of equal frequencies, in standard deviations from its mean."""
    uses = torch.bincount(values, minlength=count).double()
    mean = len(values) / count
    return float((((uses - mean) ** 2 / mean).sum() - (count - 1)) / (2 * (count - 1)) ** 0.5)


def test_samplers_turn_it_into_gumbel_noise() -> None:
    noise = make_sampler().noise((1, 500, 200), torch.zeros(1), torch.tensor([5]))
    assert noise is not None and noise.isfinite().all()
    assert abs(float(noise.mean()) - 0.5772) < 0.02 and abs(float(noise.std()) - 1.2825) < 0.02
