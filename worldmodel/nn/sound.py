"""What networks must know of sound: µ-law for tensors, and spectra."""

from __future__ import annotations

import math

from torch import Tensor

from worldmodel.mulaw import MU


def companded(wave: Tensor) -> Tensor:
    """Pressure in [-1, 1] → f in [-1, 1] of µ-law, of the same shape; what is louder is clipped."""
    wave = wave.clamp(-1, 1)
    return wave.sign() * (MU * wave.abs()).log1p() / math.log1p(MU)


def expanded(values: Tensor) -> Tensor:
    """Inverse of :func:`companded`: f in [-1, 1], what frames of sound hold, → pressure in [-1, 1]."""
    return values.sign() * (values.abs() * math.log1p(MU)).expm1() / MU
