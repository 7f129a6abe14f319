"""Likelihoods: the distribution over the values of a frame that a decoder's outputs describe."""

from worldmodel.likelihoods.base import LEVELS, Likelihood, Studied, frames_of, levels_of
from worldmodel.likelihoods.categorical import Categorical
from worldmodel.likelihoods.logistic import LogisticMixture
from worldmodel.likelihoods.squared_error import SquaredError

__all__ = [
    "LEVELS",
    "Categorical",
    "Likelihood",
    "LogisticMixture",
    "SquaredError",
    "Studied",
    "frames_of",
    "levels_of",
]
