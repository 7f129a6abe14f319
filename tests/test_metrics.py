"""The figures of merit against their definitions, written out the slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from worldmodel.evaluation.metrics import (
    MSE_FLOOR,
    CodeUsage,
    auroc,
    average_precision,
    bits,
    bootstrap,
    decibels,
    detection,
    jensen_shannon,
    mean_interval,
    psnr,
    ratio_of_sums,
    ssim,
)


def random_frames(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_psnr_of_a_constant_offset_is_known() -> None:
    frames = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    others = torch.stack([frames[0] + 5, frames[1] + 50])
    assert psnr(frames, others) == pytest.approx([20 * math.log10(255 / 5), 20 * math.log10(255 / 50)])


def test_psnr_does_not_wrap_around_below_zero() -> None:
    dark, bright = torch.zeros(1, 1, 12, 12, dtype=torch.uint8), torch.full((1, 1, 12, 12), 255, dtype=torch.uint8)
    assert psnr(dark, bright) == pytest.approx([0.0])


def test_equal_frames_have_a_finite_psnr() -> None:
    frames = random_frames(4, 3, 16, 16)
    assert psnr(frames, frames) == pytest.approx(10 * math.log10(255**2 / MSE_FLOOR))


def brute_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """The 2004 paper's definition for one plane, a loop over windows with explicit weighted moments."""
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            a, b = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
            values.append(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(values))


def test_ssim_equals_the_definition() -> None:
    frames = random_frames(2, 3, 15, 18, seed=1)
    noise = torch.randint(-40, 41, frames.shape, generator=torch.Generator().manual_seed(2))
    others = (frames.int() + noise).clamp(0, 255).to(torch.uint8)
    expected = [
        np.mean([brute_ssim(frames[i, c].double().numpy(), others[i, c].double().numpy()) for c in range(3)])
        for i in range(2)
    ]
    assert ssim(frames, others).numpy() == pytest.approx(expected, abs=1e-5)


def test_ssim_of_constant_planes_is_only_luminance() -> None:
    a, b = 80.0, 120.0
    c1 = (0.01 * 255) ** 2
    frames = torch.full((1, 1, 16, 16), int(a), dtype=torch.uint8)
    others = torch.full((1, 1, 16, 16), int(b), dtype=torch.uint8)
    assert ssim(frames, others).item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-4)


def test_ssim_is_one_for_equals_symmetric_and_negative_for_a_negative() -> None:
    frames, others = random_frames(2, 5, 3, 20, 20), random_frames(2, 5, 3, 20, 20, seed=3)
    assert ssim(frames, frames).numpy() == pytest.approx(1.0, abs=1e-6)
    assert ssim(frames, others).numpy() == pytest.approx(ssim(others, frames).numpy())
    assert ssim(frames, others).shape == (2, 5)
    assert (ssim(frames, 255 - frames) < 0).all()


@pytest.mark.parametrize("size", [(1, 1), (8, 20), (10, 9)])
def test_ssim_of_frames_smaller_than_its_window(size: tuple[int, int]) -> None:
    frames = random_frames(2, 3, *size)
    assert ssim(frames, frames).numpy() == pytest.approx(1.0, abs=1e-6)
    assert (ssim(frames, 255 - frames) < 0.99).all()


def test_code_usage() -> None:
    even = CodeUsage(np.bincount([0, 1, 2, 3], minlength=8))
    assert (even.used, even.perplexity) == (4, pytest.approx(4.0))
    assert even.to_json()["share"] == 0.5
    assert CodeUsage(np.bincount([0] * 10, minlength=8)).perplexity == pytest.approx(1.0)
    skewed = CodeUsage(np.bincount([5, 5, 5, 1], minlength=8))
    assert skewed.perplexity == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert skewed.to_json()["counts_sorted"][:3] == [3, 1, 0]


def test_bits() -> None:
    assert bits(np.array([math.log(512)])) == pytest.approx([9.0])


def test_auroc_counts_pairs() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, 60).astype(float)  # many ties
    labels = generator.random(60) < 0.3
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    assert auroc(scores, labels) == pytest.approx(np.mean(pairs))
    assert auroc(scores, np.zeros(60, dtype=bool)) is None


def test_average_precision_by_hand() -> None:
    labels = np.array([True, False, True, False])
    assert average_precision(np.array([4.0, 3.0, 2.0, 1.0]), labels) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision(np.array([1.0, 1.0, 1.0, 1.0]), labels) == pytest.approx(0.5)  # one threshold: chance
    assert average_precision(np.ones(3), np.zeros(3, dtype=bool)) is None


def test_detection_tells_its_counts() -> None:
    found = detection(np.array([0.9, 0.8, 0.1, 0.2]), np.array([True, False, True, False]), 0.5)
    assert (found["positives"], found["of"], found["precision"], found["recall"]) == (2, 4, 0.5, 0.5)
    nothing = detection(np.array([0.1, 0.2]), np.array([False, False]), 0.5)
    assert nothing["precision"] is None and nothing["recall"] is None and nothing["auroc"] is None


def test_bootstrap_interval_has_the_width_theory_says() -> None:
    values = np.random.default_rng(0).normal(10.0, 2.0, 400)
    interval = mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.2 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.2 * half)
    again = mean_interval(values)
    assert (again.low, again.high) == (interval.low, interval.high)


def test_paired_bootstrap_sees_that_a_shift_is_certain() -> None:
    values = np.random.default_rng(0).normal(0.0, 5.0, 100)
    paired = bootstrap(lambda a, b: (a - b).mean(), values + 1, values)
    apart = bootstrap(lambda a, b: a.mean() - b.mean(), values + 1, values, paired=False)
    assert paired.low == pytest.approx(1.0) and paired.high == pytest.approx(1.0)
    assert apart.high - apart.low > 1.0


def test_bootstrap_of_a_curve_keeps_its_shape() -> None:
    errors = np.random.default_rng(0).uniform(10, 20, (50, 7))
    interval = bootstrap(lambda e: decibels(e.mean(0)), errors)
    assert interval.value.shape == interval.low.shape == interval.high.shape == (7,)
    assert (interval.low <= interval.value).all() and (interval.value <= interval.high).all()


def test_ratio_of_sums_weighs_values_not_clusters() -> None:
    assert ratio_of_sums(np.array([10.0, 0.0]), np.array([1, 9])).value == pytest.approx(1.0)


def test_the_distance_of_histograms_is_in_bits() -> None:
    assert jensen_shannon(np.array([3, 1, 0]), np.array([6, 2, 0])) == 0.0
    assert jensen_shannon(np.array([5, 0]), np.array([0, 1])) == 1.0
    assert jensen_shannon(np.array([1, 1]), np.array([1, 0])) == pytest.approx(0.311278, abs=1e-6)
