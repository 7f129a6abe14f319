"""Wraps a ``deepmind_lab.Lab`` so that calls which would crash or hang the process raise an error instead.

Observed with the real module: ``reset()`` and ``action_spec()`` after ``close()`` crash the process. In a process that
was forked after the first use, a new ``Lab`` hangs and ``close()`` crashes. The last look or move action continues
after a reset. A map that is damaged ends the process, as do other failures of the engine.
"""

import dataclasses
import importlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from worldmodel.envs.level_cache import LevelCache
from worldmodel.errors import EnvError

MODULE = "deepmind_lab"
REMAINING = "FRAMES_REMAINING_AT_60"  # an observation, (1,) float64: frames until the time limit; some levels lack it
_DOCS = "docs/environments.md, section DeepMind Lab"
_inherited: list[Any] = []
_used_in: int | None = None  # the process that made the first Lab; a forked child inherits the number


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """The arguments of a ``Lab``."""

    level: str
    observation: str  # name of the frame's observation, (H, W, 3) uint8
    config: dict[str, str]
    renderer: str
    cache: LevelCache | None


def load_module() -> Any:
    """Import ``deepmind_lab``. Raises :class:`EnvError` with a remedy if it is missing or does not load."""
    if MODULE not in sys.modules and find_spec(MODULE) is None:
        fault = f"DeepMind Lab needs the Python module {MODULE!r}, which is on no package index"
        raise EnvError(f"{fault}: build it from its source ({_DOCS}), or use recordings with source=dmlab")
    try:
        return importlib.import_module(MODULE)
    except Exception as error:  # a module built for another Python or numpy fails in many ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise EnvError(f"{MODULE!r} is installed and does not load: {reason}; see {_DOCS}") from error


class Engine:
    """A running ``Lab``. Its errors are raised as :class:`EnvError` and end it (:attr:`alive` is then False)."""

    def __init__(self, settings: EngineSettings):
        self._lab: Any = None
        self._check_process()
        self._level, self._picture = settings.level, settings.observation
        self._lab, self._timed = _start(settings)
        self.episodes = 0  # resets so far
        self.action_spec: list[dict[str, Any]] = self._call(lambda lab: lab.action_spec())
        self._moving = False  # whether the last action was not the no-op
        self._noop = np.zeros(len(self.action_spec), np.intc)

    @property
    def alive(self) -> bool:
        return self._lab is not None

    @property
    def spent(self) -> bool:
        """Whether another engine must take its place while this one is alive."""
        return False

    @property
    def running(self) -> bool:
        """Whether the episode continues; observations and steps are only possible while it does."""
        return self._call(lambda lab: bool(lab.is_running()))

    def begin(self, seed: int, frames: int) -> float:
        """Begin an episode and take one no-op of ``frames``, which may end it; returns the reward."""
        # The engine continues a look or move action after a reset, so that a no-op ends it before.
        if self._moving and not self.running:
            self._reset(seed)  # steps are only possible in a running episode
        if self._moving:
            self.step(self._noop, frames)
        self._reset(seed)
        # The current frame may be the previous episode's.
        return self.step(self._noop, frames)

    def step(self, action: np.ndarray, frames: int) -> float:
        """Repeat an action, (n,) contiguous np.intc, for some frames; returns the reward."""
        reward = self._call(lambda lab: float(lab.step(action, num_steps=frames)))
        self._moving = bool(action.any())
        return reward

    def view(self) -> tuple[np.ndarray, float | None]:
        """The frame, (H, W, 3) uint8, and the frames until the time limit or None if the level does not report them;
        only while :attr:`running`."""
        seen = self._call(lambda lab: lab.observations())
        return seen[self._picture], float(seen[REMAINING][0]) if self._timed else None

    def close(self) -> None:
        """Close the engine; repeated calls have no effect."""
        lab, self._lab = self._lab, None
        if lab is None:
            return
        if _used_in == os.getpid():
            lab.close()
        else:
            _inherited.append(lab)  # deleting the last reference would close it, which hangs in a forked process

    def _reset(self, seed: int) -> None:
        # A fixed episode number, so that a reused engine behaves like a new one.
        self._call(lambda lab: lab.reset(episode=0, seed=seed))
        self.episodes += 1

    def _call(self, method: Callable[[Any], Any]) -> Any:
        if self._lab is None:
            raise EnvError("DeepMind Lab's engine is not running; reset starts it")
        self._check_process()
        try:
            return method(self._lab)
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            self.close()
            reason = f"DeepMind Lab failed in level {self._level!r}: {_reason(error)}{missing_programs()}"
            raise EnvError(f"{reason}; reset starts it again") from error

    @staticmethod
    def _check_process() -> None:
        if _used_in not in (None, os.getpid()):
            reason = "this process was forked from one in which DeepMind Lab ran, and would hang"
            raise EnvError(f"{reason}: start it with spawn, or make the environment in the child alone")


def _start(settings: EngineSettings) -> tuple[Any, bool]:
    """A ``Lab``, and whether it reports the remaining frames. Raises :class:`EnvError`."""
    global _used_in
    lab_class = load_module().Lab
    _used_in = os.getpid()

    def make(*observations: str) -> Any:
        options = {"config": dict(settings.config), "renderer": settings.renderer, "level_cache": settings.cache}
        return lab_class(settings.level, list(observations), **options)

    try:
        try:
            lab, timed = make(settings.observation, REMAINING), True
        except ValueError:  # the level lacks one of the two
            probe = make()
            _check_picture(probe, settings)
            probe.close()
            lab, timed = make(settings.observation), False
        _check_picture(lab, settings)
        return lab, timed
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        remedy = ("levels are paths such as seekavoid_arena_01 or contributed/dmlab30/explore_goal_locations_small, "
                  "config holds a level's settings")  # fmt: skip
        if settings.renderer == "hardware" and not re.search("level not found|setting", str(error), re.I):
            remedy = "renderer=hardware needs a Lab that was built with it; choose renderer=software"
        raise EnvError(f"DeepMind Lab cannot start level {settings.level!r}: {_reason(error)}; {remedy}") from error


def _check_picture(lab: Any, settings: EngineSettings) -> None:
    """Raise :class:`EnvError` with the available names unless the level has the requested observation."""
    shapes = {spec["name"]: (np.dtype(spec["dtype"]), tuple(spec["shape"])) for spec in lab.observation_spec()}
    size = (int(settings.config["height"]), int(settings.config["width"]), 3)
    fitting = [name for name, shape in shapes.items() if shape == (np.dtype(np.uint8), size)]
    if settings.observation not in fitting:
        lab.close()
        reason = f"level {settings.level!r} has no observation {settings.observation!r} of {size} uint8"
        raise EnvError(f"{reason}; choose {', '.join(fitting)}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def missing_programs() -> str:
    """The end of a message about programs with which Lab compiles maps; empty if they are installed."""
    missing = [name for name in ("bash", "zip") if shutil.which(name) is None]
    return f"; {' and '.join(missing)}, with which it compiles maps, cannot be found" if missing else ""
