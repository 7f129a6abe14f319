"""One ``deepmind_lab.Lab`` behind guards: what crashes or hangs the process is an error before it is tried.

As observed on the real module: ``reset()`` and ``action_spec()`` after ``close()`` crash the process, use in a process
that was forked after the first use hangs, and what was looked or walked last goes on through a reset.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from worldmodel.envs.level_cache import LevelCache

from worldmodel.errors import EnvError

MODULE = "deepmind_lab"
REMAINING = "FRAMES_REMAINING_AT_60"
"""An observation, (1,) float64: frames until the time limit. Levels without the usual decorators lack it."""
_DOCS = "docs/environments.md, section DeepMind Lab"
_inherited: list[Any] = []
_used_in: int | None = None  # the process that made the first Lab; a forked child inherits the number


@dataclasses.dataclass(frozen=True)
class Launch:
    """What a ``Lab`` is made with."""

    level: str
    observation: str  # the picture, (H, W, 3) uint8
    config: dict[str, str]
    renderer: str
    cache: LevelCache | None


@dataclasses.dataclass(frozen=True)
class View:
    """What the engine shows."""

    picture: np.ndarray  # (H, W, 3) uint8
    remaining: float | None  # frames until the time limit; None where the level does not say


def load_module() -> Any:
    """The module ``deepmind_lab``. Raises :class:`EnvError` where it is missing or does not load, with the remedy."""
    if MODULE not in sys.modules and find_spec(MODULE) is None:
        raise EnvError(
            f"DeepMind Lab needs the Python module {MODULE!r}, which is on no package index: "
            f"build it from its source ({_DOCS}), or use recordings with source=dmlab"
        )
    try:
        return importlib.import_module(MODULE)
    except Exception as error:  # a module built for another Python or numpy fails in many ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise EnvError(f"{MODULE!r} is installed and does not load: {reason}; see {_DOCS}") from error


class Engine:
    """A running ``Lab`` with its specifications read once.

    Whatever it raises comes out as :class:`EnvError` and ends it (:attr:`alive` is False then).
    """

    def __init__(self, launch: Launch):
        self._lab: Any = None
        self._check_process()
        self._level = launch.level
        self._picture = launch.observation
        self._lab, self._timed = _start(launch)
        self.episodes = 0  # resets so far
        self.action_spec: list[dict[str, Any]] = self._call(lambda lab: lab.action_spec())
        self._moving = False  # whether the last action was something else than no-op
        self._noop = np.zeros(len(self.action_spec), np.intc)

    @property
    def alive(self) -> bool:
        return self._lab is not None

    @property
    def running(self) -> bool:
        """Whether the episode goes on; without it there is nothing to see and no step to take."""
        return self._call(lambda lab: bool(lab.is_running()))

    def begin(self, seed: int, frames: int) -> float:
        """Begin an episode and take one no-op of ``frames``; returns its reward. It may already end the episode."""
        self._still(seed, frames)
        self._reset(seed)
        # The picture shown now may be the last episode's, and the no-op's reward a difference to its score.
        return self.step(self._noop, frames)

    def step(self, action: np.ndarray, frames: int) -> float:
        """Hold an action, (n,) contiguous np.intc, for some frames; returns the reward."""
        reward = self._call(lambda lab: float(lab.step(action, num_steps=frames)))
        self._moving = bool(action.any())
        return reward

    def view(self) -> View:
        """What there is to see; only while :attr:`running`."""
        seen = self._call(lambda lab: lab.observations())
        return View(seen[self._picture], float(seen[REMAINING][0]) if self._timed else None)

    def close(self) -> None:
        """End it; again is harmless."""
        lab, self._lab = self._lab, None
        if lab is None:
            return
        if _used_in == os.getpid():
            lab.close()
        else:
            _inherited.append(lab)  # the last reference would close it, which hangs in a forked process

    def _still(self, seed: int, frames: int) -> None:
        """Let go of the last action: the engine holds it through a reset, so an episode would begin with a turn."""
        if self._moving and not self.running:
            self._reset(seed)  # an episode that is over takes no step; a fresh one does
        if self._moving:
            self.step(self._noop, frames)

    def _reset(self, seed: int) -> None:
        # The number of the episode is fixed: counted by the engine, it would tell a reused one from a fresh one.
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
            raise EnvError(
                f"DeepMind Lab failed in level {self._level!r}: {_reason(error)}; reset starts it again"
            ) from error

    @staticmethod
    def _check_process() -> None:
        if _used_in not in (None, os.getpid()):
            raise EnvError(
                "this process was forked from one in which DeepMind Lab ran, and would hang: "
                "start it with spawn, or make the environment in the child alone"
            )


def _start(launch: Launch) -> tuple[Any, bool]:
    """A ``Lab``, and whether it tells the frames that remain. Raises :class:`EnvError`."""
    global _used_in
    lab_class = load_module().Lab
    _used_in = os.getpid()

    def make(*observations: str) -> Any:
        settings = {"config": dict(launch.config), "renderer": launch.renderer, "level_cache": launch.cache}
        return lab_class(launch.level, list(observations), **settings)

    try:
        try:
            lab, timed = make(launch.observation, REMAINING), True
        except ValueError:  # one of the two is unknown to the level
            asked = make()
            _check_picture(asked, launch)
            asked.close()
            lab, timed = make(launch.observation), False
        _check_picture(lab, launch)
        return lab, timed
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise EnvError(
            f"DeepMind Lab cannot start level {launch.level!r}: {_reason(error)}; levels are paths such as "
            "seekavoid_arena_01 or contributed/dmlab30/explore_goal_locations_small, config holds a level's settings"
        ) from error


def _check_picture(lab: Any, launch: Launch) -> None:
    """Raises :class:`EnvError`, naming the pictures that would do, unless the level shows the one that is asked for."""
    shapes = {spec["name"]: (np.dtype(spec["dtype"]), tuple(spec["shape"])) for spec in lab.observation_spec()}
    size = (int(launch.config["height"]), int(launch.config["width"]), 3)
    fitting = [name for name, shape in shapes.items() if shape == (np.dtype(np.uint8), size)]
    if launch.observation not in fitting:
        lab.close()
        raise EnvError(
            f"level {launch.level!r} has no observation {launch.observation!r} of {size} uint8; "
            f"choose {', '.join(fitting)}"
        )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
