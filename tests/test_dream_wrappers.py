"""Every wrapper of gymnasium around the dream, single and vector."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.error import DependencyNotInstalled
from gymnasium.spaces import Box, Dict
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import vector
from test_dream_env import ID, run, settings  # noqa: F401 (run is a fixture)

from worldmodel.world import WorldModel

NAMES = [name for name in wrappers.__all__ if name not in ("vector", "AtariPreprocessing")]  # the second is ALE's
TWO = Box(-1, 1, (1,), np.float32)  # for wrappers of continuous actions


def dimmed(image: Any) -> Any:
    return np.minimum(image, 100)


def steered(action: Any) -> Any:
    """An action of the run for numbers (…, 1) in [-1, 1]."""
    return (np.asarray(action)[..., 0] > 0).astype(np.int64)


loaded = functools.cache(WorldModel.load)  # once for all tests


BOTH: dict[str, dict[str, Any]] = {
    "ArrayConversion": {"env_xp": np, "target_xp": torch},
    "ClipReward": {"min_reward": -1, "max_reward": 1},
    "DtypeObservation": {"dtype": np.float32},
    "FilterObservation": {"filter_keys": ["pixels"]},
    "RescaleAction": {"min_action": np.float32(0), "max_action": np.float32(1)},
    "RescaleObservation": {"min_obs": np.float32(0), "max_obs": np.float32(1)},
    "ReshapeObservation": {"shape": (40, 120)},
    "ResizeObservation": {"shape": (20, 20)},
}
SINGLE: dict[str, dict[str, Any]] = {
    **BOTH,
    "AddWhiteNoise": {"probability_of_noise_per_pixel": 0.1},
    "DelayObservation": {"delay": 2},
    "DiscretizeAction": {"bins": 3},
    "DiscretizeObservation": {"bins": 4, "multidiscrete": True},
    "FrameStackObservation": {"stack_size": 3},
    "MaxAndSkipObservation": {"skip": 2},
    "ObstructView": {"obstructed_pixels_ratio": 0.1, "obstruction_width": 2},
    "RepeatAction": {"num_repeats": 2},
    "StickyAction": {"repeat_action_probability": 0.5},
    "TimeLimit": {"max_episode_steps": 3},
    "TransformAction": {"func": steered, "action_space": TWO},
    "TransformObservation": {"func": dimmed, "observation_space": None},
    "TransformReward": {"func": float},
}
VECTOR: dict[str, dict[str, Any]] = {
    **BOTH,
    "TransformAction": {"func": steered, "single_action_space": TWO},
    "TransformObservation": {"func": dimmed},
    "TransformReward": {"func": np.abs},
    "VectorizeTransformAction": {"wrapper": wrappers.TransformAction, "func": steered, "action_space": TWO},
    "VectorizeTransformObservation": {
        "wrapper": wrappers.TransformObservation, "func": dimmed, "observation_space": None
    },
    "VectorizeTransformReward": {"wrapper": wrappers.TransformReward, "func": float},
}  # fmt: skip
CONTINUOUS = ("ClipAction", "DiscretizeAction", "RescaleAction")
NEXT_STEP_ONLY = {
    *(name for name in vector.__all__ if name.endswith("Observation")),
    *("ArrayConversion", "JaxToNumpy", "JaxToTorch", "NumpyToTorch"),
}
OF_CODES = (
    *("AddRenderObservation", "Autoreset", "DelayObservation", "FlattenObservation", "FrameStackObservation"),
    *("NormalizeReward", "RecordEpisodeStatistics", "TimeAwareObservation", "TimeLimit"),
)


@pytest.fixture
def wrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Wraps an environment, skipping where a wrapper needs a package that is not installed."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(WorldModel, "load", loaded)

    def wrapped(package: Any, name: str, env: Any, options: dict[str, Any]) -> Any:
        options = {**options, "video_folder": str(tmp_path)} if name == "RecordVideo" else options
        try:
            made = getattr(package, name)(env, **options)
            made.reset(seed=0)
            return made
        except (DependencyNotInstalled, ModuleNotFoundError) as error:
            pytest.skip(str(error))

    return wrapped


def play(env: Any, steps: int, again: bool) -> list[Any]:
    """The infos of some steps under random actions."""
    env.action_space.seed(0)
    env.reset(seed=0)
    infos = []
    for _ in range(steps):
        observation, _, terminated, truncated, info = env.step(env.action_space.sample())
        infos.append(info)
        if not isinstance(observation, torch.Tensor):
            assert env.observation_space.contains(observation)
        if again and (terminated or truncated):
            env.reset()
    env.close()
    return infos


@pytest.mark.filterwarnings("ignore")  # of the packages that wrappers use
@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "pixels") for name in NAMES), *((name, "codes") for name in OF_CODES)]
)
def test_every_wrapper_takes_a_dream(run: Path, wrap: Any, name: str, kind: str) -> None:  # noqa: F811
    env: Any = gymnasium.make(ID, observations=kind, render_mode="rgb_array", horizon=3, **settings(run))
    if name in CONTINUOUS:
        env = wrappers.TransformAction(env, steered, TWO)
    if name == "FilterObservation":
        env = wrappers.AddRenderObservation(env, render_only=False)
    infos = play(wrap(wrappers, name, env, SINGLE.get(name, {})), 7, again=name != "Autoreset")
    assert sum("dream_end_probability" in info for info in infos) >= 5
    assert any("episode" in info for info in infos) == (name == "RecordEpisodeStatistics")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("name", vector.__all__)
def test_every_vector_wrapper_takes_dreams(run: Path, wrap: Any, name: str, mode: str) -> None:  # noqa: F811
    if mode == "SameStep" and name in NEXT_STEP_ONLY:
        pytest.skip("a restriction of gymnasium's own")
    env: Any = gymnasium.make_vec(
        ID, num_envs=3, autoreset_mode=mode, render_mode="rgb_array", horizon=3, **settings(run)
    )
    if name in CONTINUOUS:
        env = vector.TransformAction(env, steered, batch_space(TWO, 3), TWO)
    if name == "FilterObservation":
        pixels = Dict({"pixels": env.single_observation_space})
        env = vector.TransformObservation(env, lambda seen: {"pixels": seen}, batch_space(pixels, 3), pixels)
    infos = play(wrap(vector, name, env, VECTOR.get(name, {})), 7, again=False)
    flat = [one for info in infos for one in (info if isinstance(info, list) else [info])]
    # In the mode SameStep the last step of a dream is described in final_info.
    assert sum("dream_end_probability" in {**info, **(info.get("final_info") or {})} for info in flat) >= 5
    assert any("episode" in info for info in flat) == (name == "RecordEpisodeStatistics")


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "sync"])
def test_statistics_of_episodes_mean_what_they_mean_everywhere(run: Path, mode: str) -> None:  # noqa: F811
    options: dict[str, Any] = {"num_envs": 3, "horizon": 6, "end_threshold": 1.0, **settings(run)}
    if mode == "sync":
        inside = [wrappers.RecordEpisodeStatistics]
        env: Any = gymnasium.make_vec(ID, vectorization_mode="sync", wrappers=inside, **options)
    else:
        env = vector.RecordEpisodeStatistics(gymnasium.make_vec(ID, autoreset_mode=mode, **options))
    lengths = [info["episode"]["l"].tolist() for info in play(env, 21, again=False) if "episode" in info]
    assert lengths == [[6, 6, 6]] * 3


def test_dreams_of_forked_processes_do_not_wait_for_threads(run: Path) -> None:  # noqa: F811
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.zeros(2**20).add_(1)  # starts the threads
    envs = gymnasium.make_vec(ID, num_envs=2, vectorization_mode="async", **settings(run))
    try:
        envs.reset_async(seed=0)
        _, infos = envs.reset_wait(timeout=100)
        assert infos["_dream_episode"].all()
    finally:
        envs.close(terminate=True)
        torch.set_num_threads(threads)


@pytest.mark.parametrize("mode", [None, "sync"])
def test_the_time_limit_of_gymnasium_is_a_setting_of_many_dreams(run: Path, mode: str | None) -> None:  # noqa: F811
    options = {"num_envs": 2, "vectorization_mode": mode, "end_threshold": 1.0, **settings(run)}
    env = gymnasium.make_vec(ID, max_episode_steps=3, **options)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.int64))[3].tolist() for _ in range(3)]
    assert ends == [[False] * 2, [False] * 2, [True] * 2]
    unlimited = gymnasium.make_vec(ID, max_episode_steps=-1, **options)
    unlimited.reset(seed=0)
    assert not any(unlimited.step(np.zeros(2, np.int64))[3].any() for _ in range(4))
