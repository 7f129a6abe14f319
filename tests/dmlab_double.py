"""A stand-in for the module ``deepmind_lab``, as strict as the real one and with its traps.

Written from what was observed on the real module. It raises where that raises, misreads where that misreads, shows the
last episode's picture after a reset, lets the last action go on through it, has nothing to show at the end, differs
in a reused instance, and leaks what is not closed. Where the real one crashes or hangs its process, it raises
:class:`Fatal`, which no ``except Exception`` catches. The world: one turns (the picture rolls) and walks (it
brightens); the goal is where 200 frames of walking lead.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import Any

import numpy as np

ACTIONS = [
    {"name": "LOOK_LEFT_RIGHT_PIXELS_PER_FRAME", "min": -512, "max": 512},
    {"name": "LOOK_DOWN_UP_PIXELS_PER_FRAME", "min": -512, "max": 512},
    {"name": "STRAFE_LEFT_RIGHT", "min": -1, "max": 1},
    {"name": "MOVE_BACK_FORWARD", "min": -1, "max": 1},
    {"name": "FIRE", "min": 0, "max": 1},
    {"name": "JUMP", "min": 0, "max": 1},
    {"name": "CROUCH", "min": 0, "max": 1},
]
LEVELS = {  # seconds of an episode; None: no time limit, and a clock that stands at 0
    "seekavoid_arena_01": 20,
    "nav_maze_random_goal_01": 60,
    "contributed/dmlab30/explore_goal_locations_small": 90,  # compiles a map at every reset
    "lt_chasm": 120,
    "lt_endless": None,
    "tests/empty_room_test": 1,  # has none of the usual observations
    "tests/often_over": 20,  # is over in the first frame, but for seeds that are multiples of 4
    "tests/always_over": 20,
    "tests/first_frame_counts": 20,  # gives a reward in the first frame
    "tests/missing_map": 20,  # ends the process at a reset
}
LEAKED, DESCRIPTORS = 4, 1000  # open files that a closed instance leaves; the most of a process
COMPILES, UNDECORATED = "contributed/dmlab30/explore_goal_locations_small", "tests/empty_room_test"
GOAL, HELD_THROUGH_RESET = 200, 2  # steps forward; frames of the last action that a reset lets pass
OPTIONS = ("width", "height", "fps", "minimalUI", "episodeLengthSeconds", "gadgetSelect")

made: list[Lab] = []  # every instance, in order
compiled: list[str] = []  # keys of the maps compiled
_used_in: int | None = None


class Fatal(BaseException):
    """The real module would have crashed or hung the process."""


class Lab:
    def __init__(
        self,
        level: str,
        observations: list[str],
        config: dict[str, str] | None = None,
        renderer: str = "software",
        level_cache: Any = None,
    ):
        global _used_in
        _used_in = _used_in or os.getpid()
        if _used_in != os.getpid():
            raise Fatal("made in a process that was forked after the first use: hangs")
        self.closed, self._status = True, "none"  # a constructor that raises leaves nothing open
        config = {} if config is None else config
        if type(level) is not str or type(observations) is not list or type(config) is not dict:
            raise TypeError("argument must be str, list, dict")
        if any(type(key) is not str or type(value) is not str for key, value in config.items()):
            raise TypeError("bad argument type for built-in operation")
        if renderer not in ("software", "hardware"):
            raise RuntimeError(f'Failed to set renderer must be "hardware" or "software" actual "{renderer}"!')
        if sum(one.closed for one in made) * LEAKED > DESCRIPTORS:
            raise RuntimeError("Failed to init environment - Too many open files")
        if renderer == "hardware" and "NO_HARDWARE" in os.environ:
            raise RuntimeError("Failed to connect RL API")
        if level not in LEVELS:
            raise RuntimeError(f"Failed to init environment - \"Level not found: '{level}'\"\n")
        for key, value in config.items():
            if key not in OPTIONS:
                raise RuntimeError(f'Failed to init environment - "Invalid setting: "{key}" = "{value}""')
        self.level, self.config, self.renderer, self.cache = level, config, renderer, level_cache
        try:
            self.width, self.height = int(config.get("width", "320")), int(config.get("height", "240"))
        except ValueError:
            raise RuntimeError("Failed to init environment - width and height must be numbers") from None
        if self.width % 4 or self.height % 4:
            raise RuntimeError("Failed to init environment - width and height must be multiples of 4")
        length = config.get("episodeLengthSeconds", LEVELS[level])
        try:
            self._limit = None if length is None else round(60 * float(length))
        except ValueError:
            raise Fatal("episodeLengthSeconds is accepted, and aborts the process later") from None
        self._names = observations
        known = [spec["name"] for spec in self._specs()]
        for name in observations:
            if name not in known:
                raise ValueError(f"Unknown observation '{name}'.")
        self.closed, self._status = False, "uninitialised"
        self.resets, self.seeds, self.steps = 0, list[int](), list[tuple[list[int], int]]()
        self._action = np.zeros(7, np.int64)  # what the engine holds: it outlives a reset
        self._last_picture: np.ndarray | None = None
        self._stale = False
        made.append(self)

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle 'deepmind_lab.Lab' object")

    def observation_spec(self) -> list[dict[str, Any]]:
        self._check_open("observation_spec")
        return self._specs()

    def _specs(self) -> list[dict[str, Any]]:
        picture = (self.height, self.width)
        specs = [
            {"name": "RGB_INTERLEAVED", "shape": (*picture, 3), "dtype": np.uint8},
            {"name": "RGBD_INTERLEAVED", "shape": (*picture, 4), "dtype": np.uint8},
            {"name": "RGB", "shape": (3, *picture), "dtype": np.uint8},
            {"name": "BGR_INTERLEAVED", "shape": (*picture, 3), "dtype": np.uint8},
        ]
        specs += [{"name": f"DEBUG.{number}", "shape": (3,), "dtype": np.float64} for number in range(37)]
        if self.level != UNDECORATED:
            specs.append({"name": "INSTR", "shape": (), "dtype": str})
            specs.append({"name": "FRAMES_REMAINING_AT_60", "shape": (1,), "dtype": np.float64})
        return specs

    def action_spec(self) -> list[dict[str, Any]]:
        self._check_open("action_spec")
        extra = [{"name": "SELECT_GADGET", "min": 0, "max": 10}] * (self.config.get("gadgetSelect") == "true")
        return [dict(part) for part in ACTIONS] + extra

    def reset(self, episode: int = -1, seed: Any = None) -> bool:
        self._check_open("reset")
        if seed is not None and type(seed) is not int:
            raise ValueError(f"'seed' must be int or None, was '{type(seed).__name__}'.")
        seed = self.resets if seed is None else seed % 2**31
        assert type(episode) is int
        if self.level == "tests/missing_map":
            raise Fatal("the map is missing: exit")
        if self.level == COMPILES:
            self._compile(seed % 3)
        self.seeds.append(seed)
        self._stale = self.resets > 0
        self.resets += 1
        self._look = self._walked = 0
        self._frame = 0
        self._status = "running"
        self._act(HELD_THROUGH_RESET)  # of what was last held
        return True

    def step(self, action: Any, num_steps: int = 1) -> float:
        if type(action) is not np.ndarray:
            raise TypeError("argument 1 must be numpy.ndarray")
        if self.closed or self._status != "running":
            raise RuntimeError("Environment in wrong status to advance.")
        if action.shape != (len(self.action_spec()),):
            raise ValueError(f"action must have shape ({len(self.action_spec())})")
        if action.dtype != np.intc:
            raise ValueError("action must have dtype np.intc")
        # The memory from the first number on, whatever the strides say; a wrong range does no harm.
        plain = np.lib.stride_tricks.as_strided(action, action.shape, (action.itemsize,))
        self._action = plain.astype(np.int64)
        self.steps.append((plain.tolist(), num_steps))
        reward = 3.0 * (self.level == "tests/first_frame_counts" and self._frame == 0)
        self._stale = False
        for _ in range(num_steps):
            reward += self._act(1)
            self._frame += 1
            over = self.level == "tests/always_over" or (self.level == "tests/often_over" and self.seeds[-1] % 4)
            if over or self._walked >= GOAL or (self._limit is not None and self._frame >= self._limit):
                reward += 10.0 * (self._walked >= GOAL) + 0.5  # a last reward
                self._status = "over"
                break
        return float(reward)

    def is_running(self) -> bool:
        return not self.closed and self._status == "running"

    def observations(self) -> dict[str, Any]:
        if not self.is_running():
            raise RuntimeError("Environment in wrong status for call to observations()")
        if not self._stale:
            self._last_picture = self._paint()
        assert self._last_picture is not None
        left = 0.0 if self._limit is None else self._limit - self._frame + 1e-7
        seen = {
            "RGB_INTERLEAVED": self._last_picture.copy(),
            "BGR_INTERLEAVED": self._last_picture[..., ::-1].copy(),
            "FRAMES_REMAINING_AT_60": np.array([left]),
            "INSTR": "",
        }
        return {name: seen[name] for name in self._names}

    def close(self) -> bool:
        if _used_in != os.getpid():
            raise Fatal("closed after a fork: segmentation fault")
        was_open, self.closed = not self.closed, True
        return was_open

    def _act(self, frames: int) -> float:
        self._look += frames * int(self._action[0])
        walked = frames * int(self._action[3])
        self._walked = max(0, self._walked + walked)
        return 0.25 * (walked > 0)

    def _paint(self) -> np.ndarray:
        """A picture that tells seed, direction, place, and whether the instance was used before."""
        reused = 1000 * (self.resets - 1)
        tiles = np.random.default_rng([self.seeds[-1], reused]).integers(0, 128, (7, 7, 3))
        rows, columns = (np.arange(size) * 7 // size for size in (self.height, self.width))
        picture = np.roll(tiles[rows][:, columns], self._look // 20, axis=1) + self._walked // 2
        if self.config.get("minimalUI") != "true":
            picture[-4:] = 255  # the score
        return picture.astype(np.uint8)

    def _compile(self, number: int) -> None:
        key, path = f"maze{number}_noaas_0123456789abcdef", f"/tmp/dmlab-double-{os.getpid()}.pk3"
        try:
            if self.cache is not None and self.cache.fetch(key, path):
                try:
                    whole = zipfile.ZipFile(path).read("maps/maze.bsp") == key.encode()
                except (zipfile.BadZipFile, zlib.error):
                    whole = False
                if not whole:
                    raise Fatal("the map is damaged: exit")
                return
            compiled.append(key)
            with zipfile.ZipFile(path, "w") as pack:
                pack.writestr("maps/maze.bsp", key.encode())
            if self.cache is not None:
                self.cache.write(key, path)
        finally:
            if os.path.exists(path):
                os.remove(path)

    def _check_open(self, what: str) -> None:
        if self.closed:
            raise Fatal(f"{what}() after close(): segmentation fault")
