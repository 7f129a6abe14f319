"""MiniGrid with image observations: the whole grid from above, or the agent's view."""

import math
from typing import Any, Literal

import gymnasium
import minigrid  # noqa: F401 (registers the environments)
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import ImgObsWrapper, RGBImgObsWrapper, RGBImgPartialObsWrapper

from worldmodel.config.checks import checked
from worldmodel.errors import EnvError
from worldmodel.util.ranges import Pixels, Text

VIEWS = {"full": RGBImgObsWrapper, "agent": RGBImgPartialObsWrapper}


@checked
def make(
    task: Text, view: Literal["full", "agent"] = "agent", size: Pixels = 64, **settings: Any
) -> gymnasium.Env[Any, Any]:
    """An environment of MiniGrid or BabyAI by its own id; observations are (H, W, 3) uint8, at least ``size`` wide.

    ``view``: ``full``, the whole grid, or ``agent``, the tiles (7×7 by default, see ``agent_view_size``) in front of
    the agent, which looks up. Tiles are rendered as small as the size allows, so that frames are not enlarged; with a
    size that is a multiple of the number of tiles, they stay sharp. Further settings are those of the environment.
    """
    env = gymnasium.make(task, disable_env_checker=True, **settings)
    grid = env.unwrapped
    if not isinstance(grid, MiniGridEnv):
        raise EnvError(f"{task} is not an environment of MiniGrid; env=gym accepts others")
    tiles = grid.agent_view_size if view == "agent" else min(grid.width, grid.height)
    return ImgObsWrapper(VIEWS[view](env, tile_size=max(4, math.ceil(size / tiles))))
