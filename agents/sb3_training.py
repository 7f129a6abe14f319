"""The training of agents.sb3: environments as Stable-Baselines3 wants them, a callback that keeps what is learnt."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize
from worldmodel.agents.run import RETURNS
from worldmodel.agents.sb3_policy import SETTINGS, TRAIN_FIRST, WEIGHTS, Knowledge, Learner

from worldmodel.errors import ConfigError, RunError
from worldmodel.media import plots
from worldmodel.recording.recorder import FrameSource
from worldmodel.training.hooks import read_json_lines
from worldmodel.util.files import append_line, replace_text, whole
from worldmodel.util.interrupts import deferred
from worldmodel.util.progress import Bars
from worldmodel.util.ranges import Count, PassedTo, Whole

CHECKPOINT_SECONDS = 30.0
SCALED = 10.0  # rewards of a unit of deviation of the returns are clipped at this many, as the package does by itself


class Dreams(VecEnv):
    """A vector environment of gymnasium's, in its mode ``SameStep``, as one of Stable-Baselines3: one pass for all."""

    def __init__(self, envs: gymnasium.vector.VectorEnv[Any, Any, Any]):
        self.envs = envs
        space = envs.single_observation_space
        self._pictures = isinstance(space, Box)
        if isinstance(space, Box):
            height, width, channels = space.shape
            space = Box(0, 255, (channels, height, width), np.uint8)
        self.render_mode = None
        super().__init__(envs.num_envs, space, envs.single_action_space)
        self._seed: int | None = None

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        self._seed = seed
        return [None if seed is None else seed + row for row in range(self.num_envs)]

    def reset(self) -> np.ndarray:
        seen, _ = self.envs.reset(seed=self._seed)
        self._seed = None
        return self._frames(seen)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        seen, rewards, terminated, truncated, told = self.envs.step(self._actions)
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(done):
            infos[row] = {
                "terminal_observation": self._frames(told["final_obs"][row]),
                "TimeLimit.truncated": bool(truncated[row] and not terminated[row]),
            }
        return self._frames(seen), rewards.astype(np.float32), done, infos

    def _frames(self, seen: np.ndarray) -> np.ndarray:
        """(…, H, W, C) → (…, C, H, W), as the real environments show them; codes as they are."""
        return np.ascontiguousarray(np.moveaxis(seen, -1, -3)) if self._pictures else seen

    def close(self) -> None:
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.envs, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [getattr(self.envs, method_name)(*args, **kwargs)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))


def dream_envs(
    run: Path,
    device: str,
    steps: Whole = 0,
    envs: Count = 1,
    observations: Literal["pixels", "codes"] = "pixels",
    **options: Annotated[Any, PassedTo("worldmodel.envs.dreams.open_dreams")],
) -> VecEnv:
    """The dreams of a run, ``envs`` side by side; ``steps`` is for whoever learns in them."""
    made = gymnasium.make_vec(
        "worldmodel/Dream-v0",
        num_envs=envs,
        vectorization_mode="vector_entry_point",
        run=str(run),
        device=device,
        observations=observations,
        autoreset_mode="SameStep",
        **options,
    )
    return Dreams(made)


def real_envs(make_env: Callable[[], FrameSource], count: int, longest: int) -> VecEnv:
    """Real environments, in this process, one after the other; episodes are cut after ``longest`` steps."""
    limited: Any = TimeLimit  # an environment has what it needs of gymnasium's, and is none of them to a type checker
    return DummyVecEnv([lambda: limited(make_env(), longest)] * count)


class Keeper(BaseCallback):
    """Saves weights and counts every so often and at the end, shows a bar, and stops when asked to."""

    def __init__(self, folder: Path, knowledge: Knowledge, total: int, stopped: Callable[[], bool], bars: Bars):
        super().__init__()
        self.folder, self.knowledge, self.total, self.stopped, self.bars = folder, knowledge, total, stopped, bars
        self._task = bars.add_task("PPO", total=total, completed=knowledge.steps)
        self._saved = time.monotonic()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                facts = {"step": self.num_timesteps, "return": float(info["episode"]["r"])}
                append_line(self.folder / RETURNS, json.dumps(facts))
        if self.n_calls % 20 == 0:
            recent = [episode["r"] for episode in self.model.ep_info_buffer or ()]
            shown = f"mean return {np.mean(recent):.4g}" if recent else ""
            self.bars.update(self._task, completed=min(self.num_timesteps, self.total), shown=shown)
        return not self.stopped()

    def _on_rollout_start(self) -> None:  # between two updates weights and counts agree
        if time.monotonic() - self._saved > CHECKPOINT_SECONDS:
            self.save()

    def save(self, done: bool = False) -> None:
        """The zip first: counts of older weights are only a little behind."""
        with whole(self.folder / WEIGHTS) as part:
            self.model.save(part)
        scale = self.model.get_vec_normalize_env()
        reward = None if scale is None else _moments(scale.ret_rms)
        known = dataclasses.replace(self.knowledge, steps=self.model.num_timesteps, done=done, reward=reward)
        known.save(self.folder)
        self.bars.update(self._task, completed=min(known.steps, self.total))
        self._saved = time.monotonic()


def _moments(running: Any) -> tuple[float, float, float]:
    return float(running.mean), float(running.var), float(running.count)


def train(
    envs: VecEnv, knowledge: Knowledge, settings: Learner, total: int, seed: int, device: str, folder: Path
) -> None:
    """Train until ``total`` steps are taken, those of earlier sessions included; whole rollouts are taken.

    Raises :class:`ConfigError` for settings that PPO refuses, KeyboardInterrupt, with everything kept, when asked to
    stop.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _forget_behind(folder / RETURNS, knowledge.steps)
    model = make_model(envs, knowledge, settings, seed, device)
    if knowledge.steps:
        take_up(model, folder, knowledge)
    with deferred() as stopped, Bars() as bars:
        keeper = Keeper(folder, knowledge, total, stopped, bars)
        model.learn(total - knowledge.steps, callback=keeper, reset_num_timesteps=False)
        keeper.save(done=not stopped())
        if stopped():
            raise KeyboardInterrupt
    plot_returns(folder)


def make_model(envs: VecEnv, knowledge: Knowledge, settings: Learner, seed: int, device: str) -> PPO:
    """PPO as the settings have it, untrained, around the environments. Raises :class:`ConfigError`."""
    watched: VecEnv = VecMonitor(envs)
    if settings.normalize_reward:
        watched = VecNormalize(watched, norm_obs=False, clip_reward=SCALED, gamma=settings.ppo.get("gamma", 0.99))
    if knowledge.stack > 1:
        watched = VecFrameStack(watched, knowledge.stack, channels_order="first")
    options = dict(settings.ppo)
    if settings.decay:
        for name in ("learning_rate", "clip_range"):
            if name in options:
                options[name] = _falling(float(options[name]))
    try:
        # Another seed in every session, or it would do again what it did.
        return PPO(knowledge.policy, watched, seed=seed + knowledge.steps, device=device, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"PPO does not work with agent.learner: {reason}") from error


def _falling(start: float) -> Callable[[float], float]:
    return lambda left: start * left


def take_up(model: PPO, folder: Path, knowledge: Knowledge) -> None:
    """Put what an earlier session has learnt into a model. Raises :class:`RunError` for a file that does not fit."""
    try:
        model.set_parameters(str(folder / WEIGHTS), device=model.device)  # tensors alone
    except Exception as error:  # whatever torch and zipfile raise for whatever is in the file
        reason = " ".join(str(error).split())[:120]
        raise RunError(f"{folder / WEIGHTS} is missing or damaged ({reason}); remove {folder / SETTINGS} and "
                       f"{TRAIN_FIRST}") from error  # fmt: skip
    model.num_timesteps = knowledge.steps
    scale = model.get_vec_normalize_env()
    if scale is not None and knowledge.reward is not None:
        mean, variance, scale.ret_rms.count = knowledge.reward
        scale.ret_rms.mean, scale.ret_rms.var = np.array(mean), np.array(variance)


def _forget_behind(path: Path, steps: int) -> None:
    """Drop the returns of what an interruption took back."""
    kept = [record for record in read_json_lines(path) if record["step"] <= steps]
    replace_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def plot_returns(folder: Path) -> None:
    """Draws the returns of training episodes over the steps as ``returns.png``."""
    records = read_json_lines(folder / RETURNS)
    if records:
        line = plots.Line([r["step"] for r in records], [r["return"] for r in records], noisy=True)
        panel = plots.Panel("return of training episodes", {"return": line}, xlabel="steps")
        plots.save_panels(folder / "returns.png", [panel], title=folder.name)
