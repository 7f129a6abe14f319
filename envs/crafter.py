"""Crafter (Hafner 2021, arXiv:2109.06780): a survival game on a grid of tiles, seen from above."""

import collections
from typing import Annotated, Any

import crafter
import gymnasium
import numpy as np
from annotated_types import Ge
from crafter.constants import actions as ACTIONS

from worldmodel.config.checks import checked
from worldmodel.types import Info
from worldmodel.util.ranges import Count

SMALLEST = 18  # pixels; with fewer, a tile of the inventory has no pixels


class _InOrder(dict[Any, None]):
    """A set that keeps the order of insertion."""

    def add(self, item: Any) -> None:
        self[item] = None

    def remove(self, item: Any) -> None:
        del self[item]


class _World(crafter.engine.World):
    """Crafter keeps creatures in sets, whose order depends on memory addresses; here it depends only on the seed."""

    def reset(self, seed: int | None = None) -> None:
        super().reset(seed)
        self._chunks: dict[Any, _InOrder] = collections.defaultdict(_InOrder)


class CrafterEnv(gymnasium.Env[np.ndarray, Any]):
    """Crafter with gymnasium's interface. Observations are (size, size, 3) uint8 with the inventory at the bottom.

    Death is terminal and the end after ``length`` steps a truncation; Crafter itself does not distinguish them. The
    same seed and actions give the same frames, unlike in Crafter itself. Raises :class:`EnvError` for a size or a
    length that is too small.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10, "action_names": tuple(ACTIONS)}  # noqa: RUF012

    @checked
    def __init__(
        self,
        size: Annotated[int, Ge(SMALLEST)] = 64,
        length: Count = 10_000,
        reward: bool = True,
        render_mode: str | None = None,
    ):
        self.render_mode, self.length = render_mode, length
        self._game = crafter.Env(size=(size, size), length=None, reward=reward, seed=0)
        self._game._world.__class__ = _World  # its views keep a reference to this object
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Begin an episode in a new world."""
        super().reset(seed=seed)
        self._game._seed = int(self.np_random.integers(2**31))  # hashed with the number of the episode
        self._game._episode = self._steps = 0
        return self._game.reset(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Take one action; ``info`` is Crafter's, with inventory and achievements."""
        frame, reward, dead, info = self._game.step(int(action))
        self._steps += 1
        return frame, float(reward), bool(dead), not dead and self._steps >= self.length, info

    def render(self) -> Any:
        """The frame at 512×512, (H, W, 3) uint8."""
        return self._game.render(np.array([512, 512])) if self.render_mode == "rgb_array" else None
