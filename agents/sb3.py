"""Stable-Baselines3's PPO: trained in a run's dream or in the real environment, and played by its weights alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from omegaconf import DictConfig
from worldmodel.agents.base import Agent
from worldmodel.agents.choice import folder_of, run_of
from worldmodel.agents.sb3_policy import SETTINGS, Knowledge, Learner, View, load_policy, require

from worldmodel.errors import ConfigError, RunError
from worldmodel.runs.data import env_maker
from worldmodel.runs.load import load_tokenizer, resolve_device
from worldmodel.tokenizers import Tokenizer
from worldmodel.types import Spec
from worldmodel.util.ranges import PassedTo

NAME = "sb3_ppo"


class SB3Agent(Agent):
    """Plays by a PPO of Stable-Baselines3. Of a PPO that learnt in a dream, real frames go through the tokenizer first,
    so that dream and world look alike.

    Args:
        folder: what was trained; that of a dream lies in the run's folder, two levels up.
        greedy: the most probable action instead of one drawn.
    """

    def __init__(self, folder: str | Path, greedy: bool = False, device: str = "cpu"):
        self.folder, self.greedy, self.device = Path(folder), greedy, device
        require()
        self.knowledge = Knowledge.load(self.folder)
        self._policy: Any = None
        self._tokenizer: Tokenizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_policy": None, "_tokenizer": None}

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        known = self.knowledge
        if tuple(action_names) != known.action_names:
            raise RunError(
                f"{self.folder} was trained on the actions {', '.join(known.action_names)}, and this environment has "
                f"{', '.join(action_names)}; choose its environment with env=…"
            )
        if self._policy is None:
            self._policy = load_policy(self.folder, known, self.device)
            if known.view != "frames":
                self._tokenizer = load_tokenizer(self.folder.parents[1], self.device)
        self._rng = rng
        channels, *size = known.frame_shape
        self._seen = np.zeros((known.stack, channels, *size), np.uint8)

    @torch.no_grad()
    def act(self, frame: np.ndarray) -> int:
        seen = torch.from_numpy(self._view(frame)[None]).to(self.device)
        probabilities = self._policy.get_distribution(seen).distribution.probs[0].double().cpu().numpy()
        if self.greedy:
            return int(probabilities.argmax())
        return int(self._rng.choice(len(probabilities), p=probabilities / probabilities.sum()))

    def _view(self, frame: np.ndarray) -> np.ndarray:
        """What the policy sees at a frame: the last few, as Stable-Baselines3 stacks them, or codes."""
        if self._tokenizer is not None:
            codes = self._tokenizer.encode(torch.from_numpy(frame)[None].to(self.device))
            if self.knowledge.view == "codes":
                return codes.flatten().cpu().numpy()
            frame = self._tokenizer.decode(codes)[0].cpu().numpy()
        self._seen = np.concatenate([self._seen[1:], frame[None]])
        return self._seen.reshape(-1, *frame.shape[1:])


def learn(config: DictConfig, **settings: Annotated[Any, PassedTo(Learner)]) -> Path:
    """Train PPO in the dream of ``config.run``, or without one in the real environment; returns its folder.

    Raises :class:`ConfigError` without the package or for settings that do not fit, what environments and runs raise,
    and KeyboardInterrupt, with everything kept, when asked to stop.
    """
    require()
    from worldmodel.agents.sb3_training import dream_envs, real_envs, train

    make_env = env_maker(config)
    env = make_env()
    spec: Spec = env.data_spec
    env.close()
    run = run_of(config, spec)
    folder = folder_of(config, NAME, run)
    learner = Learner(**settings)
    knowledge = knowledge_of(learner, spec, run)
    if (folder / SETTINGS).is_file():
        knowledge = _go_on(folder, knowledge)
        if knowledge.done:
            print(f"trained already, {knowledge.steps:,} steps, in {folder}; remove it, or choose another seed=…")
            return folder
    steps = int(config.steps if run is None else learner.dream["steps"])
    if not steps:
        name = "steps" if run is None else "agent.learner.dream.steps"
        raise ConfigError(f"{name} is 0; PPO needs some, in the real environment as in the dream of a run (run=…)")
    if run is None:
        envs = real_envs(make_env, learner.envs, int(config.collect.longest))
    else:
        envs = dream_envs(run, str(config.device), **learner.dream)
    where = "the real environment" if run is None else f"the dream of {run.name}"
    print(f"{NAME} in {where}: {steps:,} steps, {knowledge.steps:,} taken before")
    try:
        train(envs, knowledge, learner, steps, int(config.seed), str(resolve_device(str(config.device))), folder)
    finally:
        envs.close()
    run_word = "" if run is None else f" run={run.name}"
    print(
        f"the agent is in {folder}; "
        f"python -m worldmodel.agents.evaluate agent={NAME} env=…{run_word} seed={config.seed}"
    )
    return folder


def knowledge_of(learner: Learner, spec: Spec, run: Path | None) -> Knowledge:
    """What a policy of the settings is made for. Raises :class:`ConfigError` for what does not go together."""
    view: View = "frames" if run is None else learner.dream["observations"]
    if view == "codes" and (learner.stack != 1 or learner.policy != "MlpPolicy"):
        raise ConfigError("codes are seen alone, by a network without convolutions: agent.learner.stack=1 "
                          "agent.learner.policy=MlpPolicy")  # fmt: skip
    grid: tuple[int, ...] = ()
    codes = 0
    if run is not None and view == "codes":
        tokenizer = load_tokenizer(run)
        grid, codes = tuple(tokenizer.grid), tokenizer.num_codes
    return Knowledge(spec.frame_shape, spec.action_names, view, grid, codes, learner.stack, learner.policy)


def _go_on(folder: Path, wanted: Knowledge) -> Knowledge:
    """What is known of a training that was begun. Raises :class:`ConfigError` for one of other settings."""
    known = Knowledge.load(folder)
    same = dataclasses.replace(known, steps=0, done=False, reward=None)
    if same != wanted:
        raise ConfigError(f"{folder} holds a PPO of other settings ({same}); remove it, or choose another seed=…")
    return known
