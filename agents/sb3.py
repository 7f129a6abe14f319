"""Stable-Baselines3's PPO as an agent; it is trained in a run's dream or in the real environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from omegaconf import DictConfig

from worldmodel.agents.base import Agent
from worldmodel.agents.choice import agent_folder, find_agent_run
from worldmodel.agents.sb3_policy import SETTINGS, LearnerSettings, PolicyInfo, View, load_policy, require_sb3
from worldmodel.errors import ConfigError, RunError
from worldmodel.runs.data import env_maker
from worldmodel.runs.models import load_tokenizer, resolve_device
from worldmodel.tokenizers import Tokenizer
from worldmodel.types import Spec
from worldmodel.util.ranges import PassedTo

NAME = "sb3_ppo"


class SB3Agent(Agent):
    """Plays with a PPO policy of Stable-Baselines3. For a policy that was trained in a dream, real frames pass through
    the tokenizer first, so that they look like dreamt ones.

    Args:
        folder: of the policy; if it was trained in a dream, the run's folder is two levels up.
        greedy: take the most probable action instead of sampling.
    """

    def __init__(self, folder: str | Path, greedy: bool = False, device: str = "cpu"):
        self.folder, self.greedy, self.device = Path(folder), greedy, device
        require_sb3()
        self.info = PolicyInfo.load(self.folder)
        self._policy: Any = None
        self._tokenizer: Tokenizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_policy": None, "_tokenizer": None}

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        info = self.info
        if tuple(action_names) != info.action_names:
            raise RunError(
                f"{self.folder} was trained with the actions {', '.join(info.action_names)}, and this environment has "
                f"{', '.join(action_names)}; choose its environment with env=…"
            )
        if self._policy is None:
            self._policy = load_policy(self.folder, info, self.device)
            if info.view != "frames":
                self._tokenizer = load_tokenizer(self.folder.parents[1], self.device)
        self._rng = rng
        channels, *size = info.frame_shape
        self._seen = np.zeros((info.stack, channels, *size), np.uint8)

    @torch.no_grad()
    def act(self, frame: np.ndarray) -> int:
        seen = torch.from_numpy(self._observation(frame)[None]).to(self.device)
        probabilities = self._policy.get_distribution(seen).distribution.probs[0].double().cpu().numpy()
        if self.greedy:
            return int(probabilities.argmax())
        return int(self._rng.choice(len(probabilities), p=probabilities / probabilities.sum()))

    def _observation(self, frame: np.ndarray) -> np.ndarray:
        """The policy's observation: the last frames, as Stable-Baselines3 stacks them, or codes."""
        if self._tokenizer is not None:
            codes = self._tokenizer.encode(torch.from_numpy(frame)[None].to(self.device))
            if self.info.view == "codes":
                return codes.flatten().cpu().numpy()
            frame = self._tokenizer.decode(codes)[0].cpu().numpy()
        self._seen = np.concatenate([self._seen[1:], frame[None]])
        return self._seen.reshape(-1, *frame.shape[1:])


def learn(config: DictConfig, **settings: Annotated[Any, PassedTo(LearnerSettings)]) -> Path:
    """Train PPO in the dream of ``config.run``, or without a run in the real environment; returns its folder.

    Raises :class:`ConfigError` without the package or for invalid settings, the errors of environments and runs, and
    KeyboardInterrupt after an interruption; finished work is kept.
    """
    require_sb3()
    from worldmodel.agents.sb3_training import dream_envs, real_envs, train

    make_env = env_maker(config)
    env = make_env()
    spec: Spec = env.data_spec
    env.close()
    run = find_agent_run(config, spec)
    folder = agent_folder(config, NAME, run)
    learner = LearnerSettings(**settings)
    info = make_policy_info(learner, spec, run)
    if (folder / SETTINGS).is_file():
        info = _resume(folder, info)
        if info.done:
            print(f"trained already, {info.steps:,} steps, in {folder}; remove it, or choose another seed=…")
            return folder
    steps = int(config.steps if run is None else learner.dream["steps"])
    if not steps:
        name = "steps" if run is None else "agent.learner.dream.steps"
        raise ConfigError(f"{name} is 0; PPO needs steps in the real environment or in the dream of a run (run=…)")
    if run is None:
        envs = real_envs(make_env, learner.envs, int(config.collect.longest))
    else:
        envs = dream_envs(run, str(config.device), **learner.dream)
    where = "the real environment" if run is None else f"the dream of {run.name}"
    print(f"{NAME} in {where}: {steps:,} steps, {info.steps:,} already taken")
    try:
        train(envs, info, learner, steps, int(config.seed), str(resolve_device(str(config.device))), folder)
    finally:
        envs.close()
    run_word = "" if run is None else f" run={run.name}"
    print(
        f"the agent is in {folder}; "
        f"python -m worldmodel.agents.evaluate agent={NAME} env=…{run_word} seed={config.seed}"
    )
    return folder


def make_policy_info(learner: LearnerSettings, spec: Spec, run: Path | None) -> PolicyInfo:
    """Describe the policy of the settings. Raises :class:`ConfigError` for settings that exclude each other."""
    view: View = "frames" if run is None else learner.dream["observations"]
    if view == "codes" and (learner.stack != 1 or learner.policy != "MlpPolicy"):
        raise ConfigError("observations=codes needs one frame and a network without convolutions: "
                          "agent.learner.stack=1 agent.learner.policy=MlpPolicy")  # fmt: skip
    grid: tuple[int, ...] = ()
    num_codes = 0
    if run is not None and view == "codes":
        tokenizer = load_tokenizer(run)
        grid, num_codes = tuple(tokenizer.grid), tokenizer.num_codes
    return PolicyInfo(spec.frame_shape, spec.action_names, view, grid, num_codes, learner.stack, learner.policy)


def _resume(folder: Path, expected: PolicyInfo) -> PolicyInfo:
    """The info of an unfinished training. Raises :class:`ConfigError` if its settings differ."""
    info = PolicyInfo.load(folder)
    initial = dataclasses.replace(info, steps=0, done=False, reward=None)
    if initial != expected:
        raise ConfigError(f"{folder} holds a PPO with other settings ({initial}); remove it, or choose another seed=…")
    return info
