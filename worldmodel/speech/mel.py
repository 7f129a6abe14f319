"""The mel scale of O'Shaughnessy (1987), as in HTK: mel = 2595 log₁₀(1 + f / 700)."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Number = TypeVar("Number", float, np.ndarray)


def to_mel(hertz: Number) -> Number:
    """Hertz → mel."""
    return 2595 * np.log10(1 + hertz / 700)  # type: ignore[return-value]


def to_hertz(mel: Number) -> Number:
    """Mel → hertz."""
    return 700 * (10 ** (mel / 2595) - 1)
