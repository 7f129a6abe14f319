"""Quantisers: vectors on the last axis → integer codes and back, with a straight-through gradient. All other axes are
batch axes, so that a quantiser serves grids of any rank."""

from worldmodel.quantizers.base import Quantized, Quantizer, all_reduce, count_codes
from worldmodel.quantizers.composite import NO_CODE, ProductQuantizer, ResidualQuantizer
from worldmodel.quantizers.gumbel import GumbelQuantizer
from worldmodel.quantizers.vector import FiniteScalarQuantizer, VectorQuantizer, nearest

__all__ = ["FiniteScalarQuantizer", "GumbelQuantizer", "ProductQuantizer", "ResidualQuantizer", "VectorQuantizer"]
__all__ += ["NO_CODE", "Quantized", "Quantizer", "all_reduce", "count_codes", "nearest"]
