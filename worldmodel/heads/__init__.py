"""Heads: autoregressive distributions over the codes of one grid, and the samplers that draw from them."""

from worldmodel.heads.base import GridSpec, Head
from worldmodel.heads.hierarchy import HierarchyHead
from worldmodel.heads.noise import Randomness
from worldmodel.heads.pixelcnn import PixelCNNHead, PixelCNNLikelihood
from worldmodel.heads.sampling import Ancestral, Predictive, Sampler, make_sampler
from worldmodel.heads.transformer import TransformerHead

__all__ = ["GridSpec", "Head", "HierarchyHead", "PixelCNNHead", "PixelCNNLikelihood", "TransformerHead"]
__all__ += ["Ancestral", "Predictive", "Randomness", "Sampler", "make_sampler"]
