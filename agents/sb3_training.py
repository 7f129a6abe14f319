"""Training of Stable-Baselines3's PPO in a run's dream or in the real environment."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit
from omegaconf import DictConfig

from worldmodel.agents.actor import RETURNS
from worldmodel.agents.choice import agent_folder, find_agent_run
from worldmodel.agents.report import plot_returns
from worldmodel.agents.sb3 import INSTALL, SETTINGS, TRAIN_FIRST, WEIGHTS, PolicyInfo, View
from worldmodel.config.cli import one_line
from worldmodel.errors import ConfigError, RunError
from worldmodel.runs.data import env_maker, spec_of
from worldmodel.runs.folder import claim
from worldmodel.runs.models import load_tokenizer, resolve_device
from worldmodel.training.hooks import read_json_lines
from worldmodel.types import Spec
from worldmodel.util.files import append_line, replace_text, whole
from worldmodel.util.progress import Bars, deferred
from worldmodel.util.ranges import Count, PassedTo, Whole

try:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize
except ImportError as error:
    raise ConfigError(INSTALL) from error

NAME = "sb3_ppo"
CHECKPOINT_SECONDS = 30.0
REWARD_CLIP = 10.0  # in standard deviations of the returns; the default of VecNormalize


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerSettings:
    """The settings ``agent.learner``."""

    policy: Literal["CnnPolicy", "MlpPolicy"]
    stack: Count  # frames per observation
    envs: Count  # number of real environments
    normalize_reward: bool  # divide rewards by the running standard deviation of the returns
    decay: bool  # decrease learning rate and clip range linearly to zero
    ppo: Annotated[Mapping[str, Any], PassedTo("stable_baselines3.PPO")]
    dream: Annotated[Mapping[str, Any], PassedTo("worldmodel.agents.sb3_training.dream_envs")]


class DreamVecEnv(VecEnv):
    """Adapts a gymnasium vector environment in mode ``SameStep`` to Stable-Baselines3."""

    def __init__(self, envs: gymnasium.vector.VectorEnv[Any, Any, Any]):
        self.envs = envs
        space = envs.single_observation_space
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
        seen, rewards, terminated, truncated, step_infos = self.envs.step(self._actions)
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(done):
            infos[row] = {
                "terminal_observation": self._frames(step_infos["final_obs"][row]),
                "TimeLimit.truncated": bool(truncated[row] and not terminated[row]),
            }
        return self._frames(seen), rewards.astype(np.float32), done, infos

    def _frames(self, seen: np.ndarray) -> np.ndarray:
        """(…, H, W, C) → (…, C, H, W), as in the real environments; codes are unchanged."""
        return np.ascontiguousarray(np.moveaxis(seen, -1, -3)) if isinstance(self.observation_space, Box) else seen

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
    """``envs`` parallel dreams of a run; ``steps`` is read by the training."""
    options |= {"run": str(run), "device": device, "observations": observations, "autoreset_mode": "SameStep"}
    mode = "vector_entry_point"
    return DreamVecEnv(gymnasium.make_vec("worldmodel/Dream-v0", num_envs=envs, vectorization_mode=mode, **options))


class CheckpointCallback(BaseCallback):
    """Saves weights and the number of steps periodically, shows a progress bar, and stops after an interruption."""

    def __init__(self, folder: Path, info: PolicyInfo, total: int, stopped: Callable[[], bool], bars: Bars):
        super().__init__()
        self.folder, self.info, self.total, self.stopped, self.bars = folder, info, total, stopped, bars
        self._task = bars.add_task("PPO", total=total, completed=info.steps)
        self._saved = time.monotonic()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                record = {"step": self.num_timesteps, "return": float(info["episode"]["r"])}
                append_line(self.folder / RETURNS, json.dumps(record))
        if self.n_calls % 20 == 0:
            recent = [episode["r"] for episode in self.model.ep_info_buffer or ()]
            shown = f"mean return {np.mean(recent):.4g}" if recent else ""
            self.bars.update(self._task, completed=min(self.num_timesteps, self.total), shown=shown)
        return not self.stopped()

    def _on_rollout_start(self) -> None:  # here weights and the number of steps agree
        if time.monotonic() - self._saved > CHECKPOINT_SECONDS:
            self.save()

    def save(self, done: bool = False) -> None:
        """Write the weights, then the info: after an interruption in between, only the number of steps is too low."""
        with whole(self.folder / WEIGHTS) as part:
            self.model.save(part)
        scale = self.model.get_vec_normalize_env()
        returns = scale and scale.ret_rms
        reward = None if returns is None else (float(returns.mean), float(returns.var), float(returns.count))
        info = dataclasses.replace(self.info, steps=self.model.num_timesteps, done=done, reward=reward)
        info.save(self.folder)
        self.bars.update(self._task, completed=min(info.steps, self.total))
        self._saved = time.monotonic()


def train(
    envs: VecEnv, info: PolicyInfo, settings: LearnerSettings, total: int, seed: int, device: str, folder: Path
) -> None:
    """Train in whole rollouts until ``total`` steps are taken, including those before an interruption.

    Raises :class:`ConfigError` for settings that PPO rejects and KeyboardInterrupt after an interruption; finished work
    is kept.
    """
    kept = [record for record in read_json_lines(folder / RETURNS) if record["step"] <= info.steps]
    replace_text(folder / RETURNS, "".join(json.dumps(record) + "\n" for record in kept))  # up to the last checkpoint
    model = make_model(envs, info, settings, seed, device)
    if info.steps:
        restore(model, folder, info)
    with deferred() as stopped, Bars() as bars:
        checkpoints = CheckpointCallback(folder, info, total, stopped, bars)
        model.learn(total - info.steps, callback=checkpoints, reset_num_timesteps=False)
        checkpoints.save(done=not stopped())
        if stopped():
            raise KeyboardInterrupt
    if records := read_json_lines(folder / RETURNS):
        plot_returns(folder, [(record["step"], record["return"]) for record in records])


def make_model(envs: VecEnv, info: PolicyInfo, settings: LearnerSettings, seed: int, device: str) -> PPO:
    """Build an untrained PPO with its environments. Raises :class:`ConfigError`."""
    monitored: VecEnv = VecMonitor(envs)
    if settings.normalize_reward:
        gamma = settings.ppo.get("gamma", 0.99)
        monitored = VecNormalize(monitored, norm_obs=False, clip_reward=REWARD_CLIP, gamma=gamma)
    if info.stack > 1:
        monitored = VecFrameStack(monitored, info.stack, channels_order="first")
    options = dict(settings.ppo)
    if settings.decay:
        for name in ("learning_rate", "clip_range"):
            if name in options:
                options[name] = lambda remaining, start=float(options[name]): start * remaining
    try:
        # Every resumed training needs another seed, or it would repeat the same random actions.
        return PPO(info.policy, monitored, seed=seed + info.steps, device=device, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"PPO does not work with agent.learner: {one_line(error)[:200]}") from error


def restore(model: PPO, folder: Path, info: PolicyInfo) -> None:
    """Load the state of an interrupted training into a model. Raises :class:`RunError` for a file that does not fit."""
    try:
        model.set_parameters(str(folder / WEIGHTS), device=model.device)  # reads only tensors
    except Exception as error:  # torch and zipfile raise various errors for damaged files
        raise RunError(f"{folder / WEIGHTS} is missing or damaged ({one_line(error)[:120]}); remove "
                       f"{folder / SETTINGS} and {TRAIN_FIRST}") from error  # fmt: skip
    model.num_timesteps = info.steps
    scale = model.get_vec_normalize_env()
    if scale is not None and info.reward is not None:
        mean, variance, scale.ret_rms.count = info.reward
        scale.ret_rms.mean, scale.ret_rms.var = np.array(mean), np.array(variance)


def learn(config: DictConfig, **settings: Annotated[Any, PassedTo(LearnerSettings)]) -> Path:
    """Train PPO in the dream of ``config.run``, or without a run in the real environment; returns its folder.

    Raises :class:`ConfigError` without the package or for invalid settings, the errors of environments and runs, and
    KeyboardInterrupt after an interruption; finished work is kept.
    """
    make_env = env_maker(config)
    spec = spec_of(make_env)
    run = find_agent_run(config, spec)
    folder = agent_folder(config, NAME, run)
    learner = LearnerSettings(**settings)
    expected = make_policy_info(learner, spec, run)
    steps = int(config.steps if run is None else learner.dream["steps"])
    if not steps:
        name = "steps" if run is None else "agent.learner.dream.steps"
        raise ConfigError(f"{name} is 0; PPO needs steps in the real environment or in the dream of a run (run=…)")
    folder.mkdir(parents=True, exist_ok=True)
    with claim(folder):
        info = _resume(folder, expected) if (folder / SETTINGS).is_file() else expected
        if info.done and info.steps >= steps:
            print(f"trained already, {info.steps:,} steps, in {folder}; remove it, or choose another seed=…")
            return folder
        if run is None:
            limited: Any = TimeLimit  # FrameSource has the methods of a gymnasium environment, but not its type
            envs: VecEnv = DummyVecEnv([lambda: limited(make_env(), int(config.collect.longest))] * learner.envs)
        else:
            envs = dream_envs(run, str(config.device), **learner.dream)
        where = "the real environment" if run is None else f"the dream of {run.name}"
        print(f"{NAME} in {where}: {steps:,} steps, {info.steps:,} already taken")
        try:
            train(envs, info, learner, steps, int(config.seed), str(resolve_device(str(config.device))), folder)
        finally:
            envs.close()
    run_word = "" if run is None else f" run={run.name}"
    command = f"python -m worldmodel.agents.evaluate agent={NAME} env=…{run_word} seed={config.seed}"
    print(f"the agent is in {folder}; {command}")
    return folder


def make_policy_info(learner: LearnerSettings, spec: Spec, run: Path | None) -> PolicyInfo:
    """Describe the policy of the settings. Raises :class:`ConfigError` for settings that exclude each other."""
    view: View = "frames" if run is None else learner.dream["observations"]
    if view == "codes" and (learner.stack != 1 or learner.policy != "MlpPolicy"):
        raise ConfigError("observations=codes needs one frame and a network without convolutions: "
                          "agent.learner.stack=1 agent.learner.policy=MlpPolicy")  # fmt: skip
    tokenizer = load_tokenizer(run) if run is not None and view == "codes" else None
    grid, num_codes = (tuple(tokenizer.grid), tokenizer.num_codes) if tokenizer is not None else ((), 0)
    return PolicyInfo(spec.frame_shape, spec.action_names, view, grid, num_codes, learner.stack, learner.policy)


def _resume(folder: Path, expected: PolicyInfo) -> PolicyInfo:
    """The info of an earlier training. Raises :class:`ConfigError` if its settings differ."""
    info = PolicyInfo.load(folder)
    initial = dataclasses.replace(info, steps=0, done=False, reward=None)
    if initial != expected:
        raise ConfigError(f"{folder} holds a PPO with other settings ({initial}); remove it, or choose another seed=…")
    return info
