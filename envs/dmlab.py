"""DeepMind Lab as a gymnasium environment with named actions and separate terminations and truncations.

``deepmind_lab`` is on no package index. It is imported when an environment is made, and its engine starts at the first
reset, so that a process can make an environment and fork before it is used.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
from annotated_types import Ge, MultipleOf
from gymnasium.utils import EzPickle

from worldmodel.config.checks import checked
from worldmodel.envs.dmlab_engine import Engine, EngineSettings, load_module
from worldmodel.envs.dmlab_process import EngineProcess
from worldmodel.envs.level_cache import LevelCache, default_folder
from worldmodel.errors import EnvError
from worldmodel.types import Info
from worldmodel.util.ranges import Count, Text

# The axes are look left/right and down/up (pixels per frame; negative looks left), strafe left/right, move back and
# forward, fire, jump and crouch.
_MOVES = {
    "forward": (0, 0, 0, 1, 0, 0, 0),
    "backward": (0, 0, 0, -1, 0, 0, 0),
    "strafe_left": (0, 0, -1, 0, 0, 0, 0),
    "strafe_right": (0, 0, 1, 0, 0, 0, 0),
    "turn_left": (-20, 0, 0, 0, 0, 0, 0),
    "turn_right": (20, 0, 0, 0, 0, 0, 0),
    "forward_left": (-20, 0, 0, 1, 0, 0, 0),
    "forward_right": (20, 0, 0, 1, 0, 0, 0),
}
ACTION_SETS: dict[str, dict[str, tuple[int, ...]]] = {
    "recorded": {"noop": (0,) * 7, **_MOVES},  # of the recordings that source=dmlab imports, in their order
    "impala": {**_MOVES, "fire": (0, 0, 0, 0, 1, 0, 0)},  # Espeholt et al. 2018; fire is for laser tag
}


def checked_actions(actions: str | Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The vectors of a named set or of a mapping. Raises :class:`EnvError` for other values."""
    if isinstance(actions, str):
        if actions not in ACTION_SETS:
            known = ", ".join(ACTION_SETS)
            raise EnvError(f"there is no set of actions {actions!r}; choose {known}, or give vectors by name")
        return ACTION_SETS[actions]
    if not actions:
        raise EnvError(f"actions is {actions!r}; it must be the name of a set, or {{forward: [0, 0, 0, 1, 0, 0, 0]}}")
    return {str(name): tuple(vector) for name, vector in actions.items()}


def vectors(actions: Mapping[str, tuple[int, ...]], spec: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """Each action clipped to the ranges of the level, (n,) np.intc. Raises :class:`EnvError` for another length.

    The arrays are contiguous, because Lab reads the memory after the first number.
    """
    for name, vector in actions.items():
        if len(vector) != len(spec):
            names = ", ".join(part["name"] for part in spec)
            raise EnvError(f"actions.{name} has {len(vector)} numbers; the level takes {len(spec)}: {names}")
    low, high = [part["min"] for part in spec], [part["max"] for part in spec]
    return [np.ascontiguousarray(np.clip(vector, low, high), np.intc) for vector in actions.values()]


FPS = 60  # frames per second of the simulator, the unit of FRAMES_REMAINING_AT_60
Scalar = bool | int | float | str
MultipleOfFour = Annotated[int, Ge(4), MultipleOf(4)]
_OWN = {"width": "width", "height": "height", "fps": "frame_skip", "minimalUI": "minimal_ui"}  # config → argument
_NUMBERS = ("episodeLengthSeconds", "maxAltCameraWidth", "maxAltCameraHeight")  # with other values, Lab aborts later
_RESETS = 10  # attempts at a reset whose first no-op does not end the episode


def _is_length(value: Scalar) -> bool:
    try:
        return 0 <= float(value) < math.inf
    except ValueError:
        return False


class DeepMindLabEnv(gymnasium.Env[np.ndarray, Any], EzPickle):
    """One level. Observations are (height, width, 3) uint8, actions are Discrete, one per name of ``actions``.

    Every episode begins with one no-op of ``frame_skip`` frames, because the first frame may be the previous episode's;
    its reward (``info["noop_reward"]``) is added to that of the first step. Lab has no observation at the end of an
    episode: the last one is returned again. An end is a truncation if the level's clock had at most ``frame_skip``
    frames left, and terminal otherwise, as in levels without a clock.

    Raises :class:`EnvError` for invalid settings and a missing module, :meth:`reset` for a level, observation or
    setting that Lab rejects, :meth:`step` if the engine fails; the next :meth:`reset` starts a new one. Pickling and
    copying use the arguments: the copy has its own engine and starts with a reset.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own declaration)

    @checked
    def __init__(
        self,
        level: Text = "seekavoid_arena_01",  # path below game_scripts/levels, without .lua
        width: MultipleOfFour = 84,
        height: MultipleOfFour = 84,
        frame_skip: Count = 4,  # frames for which an action is repeated; the simulator has 60 per second
        actions: str | Mapping[str, Sequence[int]] = "recorded",  # recorded, impala, or vectors by name
        minimal_ui: bool = False,  # without score and clock in the frame; the recordings have them
        renderer: Literal["software", "hardware"] = "software",  # EGL or GLX, as built; one thread only
        observation: Text = "RGB_INTERLEAVED",  # or another image observation of the level
        strict: bool = False,  # a new engine for every episode, without which a seed does not determine all frames
        level_cache: bool | str = True,  # cache of compiled maps: the user's (True), a folder, or none
        config: Mapping[str, Scalar] | None = None,  # further settings of the level, such as episodeLengthSeconds
        render_mode: str | None = None,
    ):
        EzPickle.__init__(
            self, level, width, height, frame_skip, actions, minimal_ui, renderer, observation, strict, level_cache,
            config, render_mode,
        )  # fmt: skip
        if twice := next((key for key in _OWN if key in (config or {})), None):
            raise EnvError(f"config.{twice} is set by {_OWN[twice]}; leave it out of config")
        for key in _NUMBERS:
            if not _is_length(value := (config or {}).get(key, 1)):
                raise EnvError(f"config.{key} is {value!r}; it must be a number, 0 or more")
        values: dict[str, Scalar] = {"width": width, "height": height, "fps": FPS, **(config or {})}
        if minimal_ui:
            values["minimalUI"] = True
        # Lab accepts only texts.
        texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in values.items()}
        cache = None
        if level_cache:
            cache = LevelCache(default_folder() if level_cache is True else Path(level_cache).expanduser())
        self._actions = checked_actions(actions)
        self._settings = EngineSettings(level, observation, texts, renderer, cache)
        self.render_mode, self.frame_skip, self.strict = render_mode, frame_skip, strict
        load_module()  # reports a missing module now; the engine starts at the first reset
        self._engine: Engine | EngineProcess | None = None
        self._owed = 0.0  # reward of the no-op, until the first step
        self._closed = False
        self._picture = np.zeros((height, width, 3), np.uint8)
        self._remaining: float | None = None  # frames until the time limit; None if not reported
        self._limited = False  # whether the current episode has a time limit
        self.metadata = {**type(self).metadata, "render_fps": FPS / frame_skip, "action_names": tuple(self._actions)}
        self.observation_space = gymnasium.spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(self._actions))

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Begin an episode and start the engine if necessary. Raises :class:`EnvError` if it does not start."""
        super().reset(seed=seed)
        if self._closed:
            raise EnvError("this DeepMind Lab environment is closed; make a new one")
        for _ in range(_RESETS):
            engine = self._ready_engine()
            self._owed = engine.begin(int(self.np_random.integers(2**31)), self.frame_skip)
            if engine.running:
                break
        else:
            reason = f"level {self._settings.level!r} is over within {self.frame_skip} frames, {_RESETS} times in a row"
            raise EnvError(f"{reason}; choose a smaller frame_skip or longer episodes")
        self._picture, self._remaining = engine.view()
        # In levels that report the clock but have no time limit it stays at 0.
        self._limited = self._remaining is not None and self._remaining > 0
        return self._picture.copy(), {"noop_reward": self._owed}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Repeat one action for ``frame_skip`` frames."""
        engine = self._engine
        if engine is None or not engine.alive or not engine.running:
            raise EnvError(f"{'closed' if self._closed else 'no episode is under way'}: call reset before step")
        number, last = int(action), len(self._vectors) - 1
        if not 0 <= number <= last:
            raise EnvError(f"there is no action {number}; choose 0 to {last}: {', '.join(self._actions)}")
        reward = engine.step(self._vectors[number], self.frame_skip) + self._owed
        self._owed = 0.0
        if engine.running:
            self._picture, self._remaining = engine.view()
            return self._picture.copy(), reward, False, False, {}
        # Half a frame of tolerance, because the clock counts in fractions of a second.
        truncated = self._limited and self._remaining is not None and self._remaining <= self.frame_skip + 0.5
        return self._picture.copy(), reward, not truncated, truncated, {}

    def render(self) -> Any:
        """The last frame, (height, width, 3) uint8."""
        return self._picture.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the engine; the environment cannot be reset afterwards."""
        self._closed = True
        if self._engine is not None:
            self._engine.close()

    def _ready_engine(self) -> Engine | EngineProcess:
        """The engine for the next episode, a new one if necessary."""
        if self._engine is not None and self._engine.alive and not self._engine.spent:
            return self._engine
        if self._engine is not None:
            self._engine.close()
        engine = EngineProcess(self._settings) if self.strict else Engine(self._settings)
        try:
            self._vectors = vectors(self._actions, engine.action_spec)
        except EnvError:
            engine.close()
            raise
        self._engine = engine
        return engine
