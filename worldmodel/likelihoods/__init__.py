"""Likelihoods: the distribution over the values of a frame that a decoder's outputs describe."""

from worldmodel.likelihoods.base import NUM_VALUES, Likelihood, LossAndFrames, frames_of, values_of
from worldmodel.likelihoods.categorical import Categorical
from worldmodel.likelihoods.logistic import LogisticMixture
from worldmodel.likelihoods.squared_error import SquaredError

__all__ = [
    "NUM_VALUES",
    "Categorical",
    "Likelihood",
    "LogisticMixture",
    "SquaredError",
    "LossAndFrames",
    "frames_of",
    "values_of",
]
