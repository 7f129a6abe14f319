"""Quantisers: vectors on the last axis → integer codes and back, with a straight-through gradient.

Everything in front of the last axis is batch, so the same module serves grids of any rank.
"""

from worldmodel.quantizers.base import Quantized, Quantizer, all_reduce
from worldmodel.quantizers.composite import NO_CODE, ProductQuantizer, ResidualQuantizer
from worldmodel.quantizers.gumbel import GumbelQuantizer
from worldmodel.quantizers.scalar import FiniteScalarQuantizer
from worldmodel.quantizers.vector import VectorQuantizer, nearest

__all__ = [
    "NO_CODE",
    "FiniteScalarQuantizer",
    "GumbelQuantizer",
    "ProductQuantizer",
    "Quantized",
    "Quantizer",
    "ResidualQuantizer",
    "VectorQuantizer",
    "all_reduce",
    "nearest",
]
