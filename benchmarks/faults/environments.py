"""Calls of the environments with arguments of random types, shapes and in random order."""

import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import Error as GymnasiumError

from benchmarks.faults.corridor import ID
from benchmarks.faults.judge import Outcome, Result, captured
from benchmarks.faults.world import make_run
from worldmodel.config.entry_point import message_of
from worldmodel.envs import make_frames
from worldmodel.envs.dream_vector import DreamVectorEnv
from worldmodel.envs.dreams import DreamEnv

CALLS = 12  # of one environment
THINGS: tuple[Any, ...] = (
    [[0], [1, 2]], None, True, -1, 0, 1, 2, 10**20, 0.5, float("nan"), float("inf"), "", "left", "a\nb", b"x", [], [0],
    [[0]], [None], (1, 2), {}, {"a": 1}, {"reset_mask": [True]}, {"reset_mask": np.array([True, False])}, object(), 1j,
    range(2), np.int64(1), np.uint8(1), np.float32(0), np.bool_(True), np.zeros(0), np.zeros(2, int),
    np.ones((2, 1), int), np.array([0, 5]), np.array(["a", "b"]), np.array(None), np.array(1),
)  # fmt: skip


def inject(scratch: Path, rng: random.Random) -> Iterator[Result]:
    """Build environments and call them; about half of the arguments are right ones."""
    run = make_run(scratch)
    dream: dict[str, Any] = {"run": run, "device": "cpu", "horizon": 5}
    parts: dict[str, tuple[Callable[..., Any], dict[str, Any], tuple[str, ...]]] = {
        "Dream-v0": (DreamEnv, dream, (
            "run", "observations", "render_mode", "data", "split", "context", "horizon", "temperature", "top_k",
            "end_threshold", "device", "precision",
        )),
        "Dream-v0, vector": (DreamVectorEnv, dream | {"num_envs": 2}, (
            "num_envs", "autoreset_mode", "observations", "horizon", "temperature", "context",
        )),
        "wrapped environment": (make_frames, {"id": ID, "size": 16}, (
            "id", "kwargs", "size", "source", "action_names", "actions",
        )),
    }  # fmt: skip
    while True:
        for part, (make, arguments, options) in parts.items():
            more = {rng.choice(options): rng.choice(THINGS)} if rng.random() < 0.3 else {}
            env, result = call(part, f"({more})", functools.partial(make, **arguments | more))
            yield result
            for _ in range(CALLS if env is not None else 0):
                yield step(part, env, rng)


def step(part: str, env: Any, rng: random.Random) -> Result:
    """One call of an environment, whose result is checked."""
    right, name = rng.random() < 0.5, rng.choice(("step", "step", "step", "reset", "render", "close"))
    thing: Any = rng.choice(THINGS)
    args: tuple[Any, ...] = ()
    words: dict[str, Any] = {}
    if name == "step":
        args = (env.action_space.sample() if right else thing,)
    elif name == "reset" and not right:
        words = {rng.choice(("seed", "options")): thing}
    what = f".{name}({', '.join(map(repr, args)) or words or ''})"
    value, result = call(part, what, lambda: getattr(env, name)(*args, **words))
    if result.outcome is Outcome.SAME and not specified(env, name, value):
        return Result(part, Outcome.LOST, f"{what} returned what gymnasium does not specify")
    return result


def call(part: str, what: str, function: Callable[[], Any]) -> tuple[Any, Result]:
    """The value of a function, or None if it raised an error, and whether that error is a clear one."""
    try:
        with captured():
            return function(), Result(part, Outcome.SAME)
    except Exception as error:
        message = str(error) if isinstance(error, GymnasiumError) else message_of(error)
        clear = bool(message) and "\n" not in str(message)
        detail = f"{what}: {type(error).__name__}: {error}"
        return None, Result(part, Outcome.REFUSED if clear else Outcome.LOST, detail)


def specified(env: Any, name: str, value: Any) -> bool:
    """Whether the value of a call is what gymnasium specifies: five values of a step, two of a reset."""
    if name not in ("step", "reset"):
        return True
    if not isinstance(value, tuple) or len(value) != (5 if name == "step" else 2):
        return False
    observation, *outcomes, info = value
    if not env.observation_space.contains(observation) or not isinstance(info, dict):
        return False
    if name == "reset":
        return True
    reward, *flags = outcomes
    if isinstance(env, gymnasium.vector.VectorEnv):
        right = all(each.dtype == bool and each.shape == (env.num_envs,) for each in flags)
        return right and reward.shape == (env.num_envs,) and bool(np.isfinite(reward).all())
    return all(isinstance(each, bool) for each in flags) and isinstance(reward, float) and bool(np.isfinite(reward))
