"""The pitch of a voice: exact where it is known, absent where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.speech.pitch import high_pass, log_f0_correlation, mean_log_f0, pitch

RATE = 16000
TIME = np.arange(RATE) / RATE


def harmonics(hertz: float | np.ndarray, rate: int = RATE) -> np.ndarray:
    """A second of eight harmonics of a tone, which may change: (rate,) float32."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hertz, rate)) / rate
    return (0.1 * sum(np.sin(k * phase) / k for k in range(1, 9))).astype(np.float32)


@pytest.mark.parametrize("hertz", [80.0, 120.3, 220.0, 333.3])
@pytest.mark.parametrize("rate", [16000, 22050])
def test_a_steady_voice_is_found_to_a_tenth_of_a_hertz(hertz: float, rate: int) -> None:
    found = pitch(harmonics(hertz, rate), rate)
    inner = found.hertz[5:-5]
    assert np.isfinite(inner).all()
    np.testing.assert_allclose(inner, hertz, rtol=2e-3)
    np.testing.assert_allclose(np.diff(found.times), 0.01, atol=1e-4)


def test_a_glide_is_followed_without_delay() -> None:
    curve = 100 * 2 ** (TIME * 0.8)
    found = pitch(harmonics(curve), RATE)
    places = np.minimum((found.times * RATE).astype(int), RATE - 1)[5:-5]
    np.testing.assert_allclose(found.hertz[5:-5], curve[places], rtol=0.015)


def test_noise_and_silence_have_no_pitch() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    assert np.isfinite(pitch(noise, RATE).hertz).mean() < 0.02
    for wave in (np.zeros(RATE, np.float32), np.full(RATE, 0.3, np.float32), np.zeros(10, np.float32)):
        assert not np.isfinite(pitch(wave, RATE).hertz).any()


def test_rumble_noise_and_a_missing_fundamental_do_no_harm() -> None:
    voice = harmonics(150.0) - 0.1 * np.sin(2 * np.pi * 150 * TIME + 2 * np.pi * 150 / RATE)
    noisy = voice + 0.1 * np.sin(2 * np.pi * 25 * TIME) + 0.003 * np.random.default_rng(0).standard_normal(RATE) + 0.2
    found = pitch(noisy, RATE).hertz[5:-5]
    assert np.isfinite(found).mean() > 0.95
    np.testing.assert_allclose(found[np.isfinite(found)], 150, rtol=0.02)
    low = high_pass(np.sin(2 * np.pi * 20 * TIME) + np.sin(2 * np.pi * 200 * TIME), RATE)
    np.testing.assert_allclose(low[800:-800], np.sin(2 * np.pi * 200 * TIME)[800:-800], atol=0.03)


def test_only_what_is_voiced_has_a_pitch() -> None:
    wave = harmonics(120.0)
    wave[4000:12000] = 0
    found = pitch(wave, RATE)
    gap = (found.times > 0.3) & (found.times < 0.7)
    assert not np.isfinite(found.hertz[gap]).any() and np.isfinite(found.hertz[5:20]).all()


def test_the_mean_counts_voiced_moments_alone() -> None:
    track = np.array([np.nan, 100, 200, np.nan, 400])
    assert np.exp(mean_log_f0([track, np.full(6, np.nan)])) == pytest.approx(200)
    with pytest.raises(ValueError, match="no frame is voiced"):
        mean_log_f0([np.full(4, np.nan)])


def test_an_intonation_an_octave_higher_correlates_fully() -> None:
    low = 100 + 20 * np.sin(np.arange(50) / 5)
    low[10:20] = np.nan
    high = 2 * low
    high[20:25] = np.nan
    assert log_f0_correlation(low, high) == pytest.approx(1)
    assert log_f0_correlation(low, np.full(50, np.nan)) is None
