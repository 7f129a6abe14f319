"""µ-law in bytes and in floats."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldmodel.speech.nn.mel import companded, expanded
from worldmodel.speech.sound import SILENCE, to_samples, to_wave
from worldmodel.types import to_float, to_uint8


def test_every_level_is_the_nearest_to_its_own_wave() -> None:
    levels = np.arange(256, dtype=np.uint8)
    assert (to_samples(to_wave(levels)) == levels).all()
    assert to_wave(levels)[[0, 255]].tolist() == [-1, 1] and abs(to_wave(levels)[SILENCE]) < 1e-4
    assert (to_samples(np.array([-7.0, 7.0, 0.0])) == [0, 255, SILENCE]).all()


def test_frames_of_sound_are_companded_waves() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    wave = expanded(to_float(levels))
    np.testing.assert_allclose(wave.numpy(), to_wave(levels.numpy()), atol=1e-6)
    assert torch.equal(to_uint8(companded(wave)), levels)


def test_a_wave_as_loud_as_speech_keeps_37_decibels() -> None:
    time = np.arange(16000) / 16000
    wave = 0.3 * np.sin(2 * np.pi * 220 * time) * np.sin(2 * np.pi * 3 * time)
    error = to_wave(to_samples(wave)) - wave
    assert 10 * np.log10((wave**2).mean() / (error**2).mean()) == pytest.approx(37.5, abs=1.5)
