"""DeepMind Lab as a gymnasium environment: named actions, honest ends of episodes, no trap of the module left open.

``deepmind_lab`` is on no package index; it is imported when an environment is made, and its engine starts at the first
reset. So a process may make an environment, fork, and the children may play.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
from annotated_types import Ge, MultipleOf
from gymnasium.utils import EzPickle
from worldmodel.envs.dmlab_actions import checked_actions, vectors
from worldmodel.envs.dmlab_engine import Engine, Launch, load_module
from worldmodel.envs.level_cache import LevelCache, default_folder

from worldmodel.config.checks import checked
from worldmodel.errors import EnvError
from worldmodel.util.ranges import Count, Text

FPS = 60
"""Frames a second of the simulator; FRAMES_REMAINING_AT_60 counts in them."""
Scalar = bool | int | float | str
MultipleOfFour = Annotated[int, Ge(4), MultipleOf(4)]
_OWN = {"width": "width", "height": "height", "fps": "frame_skip", "minimalUI": "minimal_ui"}  # config → argument
_RESETS = 10  # episodes that may be over before they begin, one after another


class DeepMindLabEnv(gymnasium.Env[np.ndarray, Any], EzPickle):
    """One level. Observations are (height, width, 3) uint8, actions are Discrete, one a name of ``actions``.

    Every episode begins with one no-op of ``frame_skip`` frames, because the first picture may be the last episode's;
    its reward, no doing of the agent's, is only told, as ``info["discarded_reward"]``. Lab shows nothing at the end of
    an episode: the observation is then the last picture again. An end is a truncation where the level's clock had no
    more than ``frame_skip`` frames left, and terminal otherwise; so is every end of a level without a clock.

    Raises :class:`EnvError` for settings that cannot be and a module that is missing, :meth:`reset` for a level,
    observation or setting that Lab refuses, :meth:`step` when the engine fails; the next :meth:`reset` starts another.
    Pickled and copied by its arguments: the copy has an engine of its own, and begins with a reset.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own declaration)

    @checked
    def __init__(
        self,
        level: Text = "seekavoid_arena_01",  # path below game_scripts/levels, without .lua
        width: MultipleOfFour = 84,
        height: MultipleOfFour = 84,
        frame_skip: Count = 4,  # frames that an action is held; the simulator has 60 a second
        actions: str | Mapping[str, Sequence[int]] = "recorded",  # recorded, impala, or vectors by name
        minimal_ui: bool = False,  # without score and clock in the picture; the recordings have them
        renderer: Literal["software", "hardware"] = "software",  # EGL or GLX, as built; one thread only
        observation: Text = "RGB_INTERLEAVED",  # any other picture of the level's
        strict: bool = False,  # a new engine for every episode: only then a seed fixes every frame
        level_cache: bool | str = True,  # compiled maps in the user's cache, in a folder, or not kept
        config: Mapping[str, Scalar] | None = None,  # further settings of the level, such as episodeLengthSeconds
        render_mode: str | None = None,
    ):
        EzPickle.__init__(
            self, level, width, height, frame_skip, actions, minimal_ui, renderer, observation, strict, level_cache,
            config, render_mode,
        )  # fmt: skip
        texts = {"width": width, "height": height, "fps": FPS, **_checked_config({} if config is None else config)}
        if minimal_ui:
            texts["minimalUI"] = True
        cache = _cache(level_cache)
        self._actions = checked_actions(actions)
        self._launch = Launch(level, observation, {key: _text(value) for key, value in texts.items()}, renderer, cache)
        self.render_mode = render_mode
        self.frame_skip = frame_skip
        self.strict = strict
        load_module()  # told now, while the engine waits for the first reset
        self._engine: Engine | None = None
        self._closed = False
        self._picture = np.zeros((height, width, 3), np.uint8)
        self._remaining: float | None = None  # frames until the time limit, as last seen; None if the level is silent
        self._limited = False  # the present episode has a time limit
        self.metadata = {
            **type(self).metadata,
            "render_fps": FPS / frame_skip,
            "action_names": tuple(self._actions),
        }
        self.observation_space = gymnasium.spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(self._actions))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; starts the engine where there is none. Raises :class:`EnvError` if it cannot."""
        super().reset(seed=seed)
        if self._closed:
            raise EnvError("this DeepMind Lab environment is closed; make a new one")
        for _ in range(_RESETS):
            engine = self._ready_engine()
            discarded = engine.begin(int(self.np_random.integers(2**31)), self.frame_skip)
            if engine.running:
                break
        else:
            raise EnvError(
                f"level {self._launch.level!r} is over within {self.frame_skip} frames, {_RESETS} times in a row; "
                "choose a smaller frame_skip or longer episodes"
            )
        self._look(engine)
        # Levels with the observation but without a time limit have a clock that stands at 0.
        self._limited = self._remaining is not None and self._remaining > 0
        return self._picture.copy(), {"discarded_reward": discarded}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold one action for ``frame_skip`` frames."""
        engine = self._engine
        if engine is None or not engine.alive or not engine.running:
            raise EnvError(f"{'closed' if self._closed else 'no episode is under way'}: call reset before step")
        number = int(action)
        if not 0 <= number < len(self._vectors):
            raise EnvError(
                f"there is no action {number}; choose 0 to {len(self._vectors) - 1}: {', '.join(self._actions)}"
            )
        reward = engine.step(self._vectors[number], self.frame_skip)
        if engine.running:
            self._look(engine)
            return self._picture.copy(), reward, False, False, {}
        # Half a frame of tolerance: the clock counts in fractions of a second.
        truncated = self._limited and self._remaining is not None and self._remaining <= self.frame_skip + 0.5
        return self._picture.copy(), reward, not truncated, truncated, {}

    def render(self) -> Any:
        """The last picture, (height, width, 3) uint8."""
        return self._picture.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """End the engine; again is harmless, a reset afterwards is not."""
        self._closed = True
        self._stop()

    def _ready_engine(self) -> Engine:
        """The engine for the next episode: a new one where there is none, and for every episode if ``strict``."""
        if self._engine is not None and self._engine.alive and not (self.strict and self._engine.episodes):
            return self._engine
        self._stop()
        engine = Engine(self._launch)
        try:
            self._vectors = vectors(self._actions, engine.action_spec)
        except EnvError:
            engine.close()
            raise
        self._engine = engine
        return engine

    def _stop(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = None

    def _look(self, engine: Engine) -> None:
        view = engine.view()
        self._picture, self._remaining = view.picture, view.remaining


def _cache(given: bool | str) -> LevelCache | None:
    if not given:
        return None
    return LevelCache(default_folder() if given is True else Path(given).expanduser())


def _checked_config(config: Mapping[str, Any]) -> dict[str, Any]:
    for key, argument in _OWN.items():
        if key in config:
            raise EnvError(f"config.{key} is set by {argument}; leave it out of config")
    return dict(config)


def _text(value: Scalar) -> str:
    """A setting as Lab wants it, which knows texts only."""
    return str(value).lower() if isinstance(value, bool) else str(value)
