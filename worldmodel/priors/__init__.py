"""Priors over grids of codes: trunks over time, outcomes, and the whole of trunk and head."""

from worldmodel.priors.base import LatentPrior, PriorState, Step, Trunk, join_rows, map_state, replace_rows, select_rows
from worldmodel.priors.condition import CaptionTrunk, ConditionTrunk
from worldmodel.priors.conv_trunk import ConvTrunk
from worldmodel.priors.prior import Prior

__all__ = ["CaptionTrunk", "ConditionTrunk", "ConvTrunk", "LatentPrior", "Prior", "PriorState", "Step", "Trunk"]
__all__ += ["join_rows", "map_state", "replace_rows", "select_rows"]
