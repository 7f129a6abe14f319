"""One contract for every environment of configs/env that is installed here."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import pickle
import re
import signal
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from processes import engines, wait_until_gone

from worldmodel.config.cli import choices, compose_config
from worldmodel.envs import FrameEnv
from worldmodel.errors import ConfigError, EnvError
from worldmodel.runs.data import env_maker
from worldmodel.types import Spec

STEPS = 12
GIVEN = {  # what the general ones need to be told
    "gym": ("env.id=CartPole-v1", "env.source=render"),
    "vizdoom/any": ("env.kwargs.scenario=basic", "+env.kwargs.combine=true"),
    "atari/any": ("env.kwargs.game=skiing", "env.kwargs.full_action_space=true", "env.kwargs.sticky=0.25"),
    "minigrid/any": ("env.kwargs.task=BabyAI-GoToObj-v0",),
    "miniworld/any": ("env.kwargs.task=MiniWorld-OneRoom-v0",),
    # A seed determines the frames only of a new engine of DeepMind Lab.
    "dmlab/level": ("env.kwargs.level=lt_chasm", "env.kwargs.strict=true"),
    "dmlab/nav_maze_random_goal_01": ("env.kwargs.strict=true",),
    "dmlab/seekavoid_arena_01": ("env.kwargs.strict=true",),
}
ALIKE = ("vizdoom/freedoom2",)  # nothing that one sees at first depends on the seed
SPAWNED = ("vizdoom/my_way_home", "atari/pong", "minigrid/door_key", "miniworld/four_rooms", "crafter")


def made(name: str) -> tuple[Callable[[], FrameEnv], FrameEnv]:
    """What makes the environment of a YAML, and one. Skips where a setting or an optional package is missing."""
    try:
        make = env_maker(compose_config([f"env={name}", *GIVEN.get(name, ())]))
        return make, make()  # type: ignore[return-value]
    except ConfigError as error:
        pytest.skip(str(error))
    except EnvError as error:
        if not re.search("not installed|on no package index|OpenGL", str(error)):
            raise
        pytest.skip(str(error))


def play(env: Any, seed: int, steps: int = STEPS) -> np.ndarray:
    """Frames of an episode under fixed actions, (steps + 1, C, H, W); shorter where it ends before."""
    frame, _ = env.reset(seed=seed)
    frames = [frame]
    for action in np.random.default_rng(0).integers(len(env.data_spec.action_names), size=steps):
        frame, reward, terminated, truncated, info = env.step(int(action))
        frames.append(frame)
        assert type(reward) is float and math.isfinite(reward) and isinstance(info, dict)
        assert type(terminated) is bool and type(truncated) is bool and not (terminated and truncated)
        if terminated or truncated:
            break
    return np.stack(frames)


def check_spaces(env: FrameEnv) -> None:
    spec = env.data_spec
    assert env.observation_space == Box(0, 255, spec.frame_shape, np.uint8)
    assert env.action_space == Discrete(len(spec.action_names))
    assert len(set(spec.action_names)) == len(spec.action_names)
    assert all(re.fullmatch(r"[^\s,*]+", name) for name in spec.action_names)  # so that a script can say them
    assert spec.rate > 0 and Spec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("name", choices()["env"])
def test_it_keeps_the_contract(name: str) -> None:
    make, env = made(name)
    check_spaces(env)
    frames = play(env, seed=5)
    assert all(frame in env.observation_space for frame in frames) and frames.std() > 1
    simulators = engines(os.getpid())  # of those whose simulator is a process
    other = pickle.loads(pickle.dumps(make))()  # as it gets to the processes that record
    assert other.data_spec == env.data_spec
    others = (play(other, seed) for seed in range(6, 16))
    assert name in ALIKE or any(each.tobytes() != frames.tobytes() for each in others)
    assert np.array_equal(frames, play(other, seed=5))
    other.close()
    env.reset(seed=5)
    for simulator in simulators:
        os.kill(simulator, signal.SIGKILL)
        with pytest.raises(EnvError, match="died"):
            for _ in range(3):
                env.step(0)
        assert np.array_equal(frames[0], env.reset(seed=5)[0])
    env.close()
    env.close()
    assert all(wait_until_gone(engine) for engine in engines(os.getpid()))


def checksum(make: Callable[[], FrameEnv]) -> int:
    env = make()
    try:
        return zlib.crc32(play(env, seed=3).tobytes())
    finally:
        env.close()


def test_they_can_be_spawned() -> None:
    """One process plays one of each kind, as recorders do, and sees what this process sees."""
    makers = []
    for name in SPAWNED:
        with contextlib.suppress(pytest.skip.Exception):
            make, env = made(name)
            env.close()
            makers.append(make)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map_async(checksum, makers).get(timeout=120) == list(map(checksum, makers))
