"""Likelihoods: the distribution over the values of a frame that a decoder's outputs describe."""

from worldmodel.likelihoods.base import Likelihood, LossAndFrames, SquaredError
from worldmodel.likelihoods.exact import Categorical, LogisticMixture

__all__ = ["Categorical", "Likelihood", "LogisticMixture", "LossAndFrames", "SquaredError"]
