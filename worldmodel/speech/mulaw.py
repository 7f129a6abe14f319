"""µ-law: sound in 256 levels, fine near silence and coarse where it is loud, as telephones have it (ITU-T G.711).

Sound at rest is what images are: bytes. With f(x) = sign(x) ln(1 + µ|x|) / ln(1 + µ), µ = 255, a level is
round((f + 1) · 255 / 2), so that :func:`worldmodel.types.to_float` of the bytes gives f again, to half a level, and a
softmax or a mixture over the levels of a frame serves sound as it serves pictures. Speech has some 37 dB of SNR.

Without torch, as all that reads data is; :func:`worldmodel.speech.nn.mel.expanded` is the same for tensors.
"""

from __future__ import annotations

import math

import numpy as np

MU = 255
SILENCE = 128
"""The level that is nearest to silence; an even number of levels has none in the middle."""

_SCALE = np.float32(math.log1p(MU))


def to_levels(wave: np.ndarray) -> np.ndarray:
    """Pressure in [-1, 1], any shape → the nearest levels, uint8; what is louder is clipped."""
    wave = np.clip(wave, -1, 1)
    values = np.sign(wave) * np.log1p(MU * np.abs(wave)) / _SCALE
    return np.round((values + 1) * (MU / 2)).astype(np.uint8)


def to_wave(levels: np.ndarray) -> np.ndarray:
    """Levels, uint8 of any shape → pressure in [-1, 1], float32."""
    values = levels.astype(np.float32) * np.float32(2 / MU) - 1
    return (np.sign(values) * np.expm1(np.abs(values) * _SCALE) / MU).astype(np.float32)
