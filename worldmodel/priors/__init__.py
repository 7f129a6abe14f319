"""Priors over grids of codes: trunk, head, outcomes, samplers."""

from worldmodel.priors.base import Head, PriorOutput, PriorState, Step, Trunk
from worldmodel.priors.condition import CaptionTrunk, ConditionTrunk
from worldmodel.priors.conv_trunk import ConvTrunk
from worldmodel.priors.head import TransformerHead
from worldmodel.priors.pixelcnn import PixelCNNHead
from worldmodel.priors.pixels import PixelCNNLikelihood
from worldmodel.priors.prior import Prior
from worldmodel.priors.rows import join_rows, replace_rows, select_rows
from worldmodel.priors.sampling import Ancestral, Predictive, Randomness, Sampler, make_sampler

__all__ = [
    "Ancestral",
    "CaptionTrunk",
    "ConditionTrunk",
    "ConvTrunk",
    "Head",
    "PixelCNNHead",
    "PixelCNNLikelihood",
    "Predictive",
    "Prior",
    "PriorOutput",
    "PriorState",
    "TransformerHead",
    "Randomness",
    "Sampler",
    "Step",
    "Trunk",
    "join_rows",
    "make_sampler",
    "replace_rows",
    "select_rows",
]
