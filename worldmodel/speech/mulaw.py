"""µ-law companding of sound into 256 sample values, fine near silence and coarse for loud sound (ITU-T G.711).

With f(x) = sign(x) ln(1 + µ|x|) / ln(1 + µ), µ = 255, a sample value is round((f + 1) · 255 / 2). Thus frames of sound
are uint8 like images, and :func:`worldmodel.types.to_float` returns f up to rounding. Speech has an SNR of some 37 dB.

Without torch, like all modules that read data; :func:`worldmodel.speech.nn.mel.expanded` is the same for tensors.
"""

from __future__ import annotations

import math

import numpy as np

MU = 255
SILENCE = 128
"""The sample value nearest to silence."""

_SCALE = np.float32(math.log1p(MU))


def to_samples(wave: np.ndarray) -> np.ndarray:
    """Pressure in [-1, 1], any shape → the nearest sample values, uint8; louder samples are clipped."""
    wave = np.clip(wave, -1, 1)
    values = np.sign(wave) * np.log1p(MU * np.abs(wave)) / _SCALE
    return np.round((values + 1) * (MU / 2)).astype(np.uint8)


def to_wave(samples: np.ndarray) -> np.ndarray:
    """Sample values, uint8 of any shape → pressure in [-1, 1], float32."""
    values = samples.astype(np.float32) * np.float32(2 / MU) - 1
    return (np.sign(values) * np.expm1(np.abs(values) * _SCALE) / MU).astype(np.float32)
