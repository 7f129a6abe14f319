"""A policy that PPO of Stable-Baselines3 has trained: its weights, and what it was made for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Space

from worldmodel.errors import ConfigError, RunError
from worldmodel.util.files import replace_text
from worldmodel.util.ranges import Count, PassedTo

WEIGHTS, SETTINGS = "sb3_ppo.zip", "sb3_ppo.json"
INSTALL = "agent=sb3_ppo needs Stable-Baselines3, which is not installed: pip install 'stable-baselines3>=2.4,<3'"
TRAIN_FIRST = "train it: python -m worldmodel.agents.train agent=sb3_ppo"

View = Literal["frames", "pixels", "codes"]  # real frames, those that a dream shows, its codes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """The settings ``agent.learner``."""

    policy: Literal["CnnPolicy", "MlpPolicy"]
    stack: Count  # frames that it sees at once
    envs: Count  # real environments side by side
    normalize_reward: bool  # divided by the deviation of the returns so far
    decay: bool  # learning rate and clip range fall linearly to zero
    ppo: Annotated[Mapping[str, Any], PassedTo("stable_baselines3.PPO")]
    dream: Annotated[Mapping[str, Any], PassedTo("worldmodel.agents.sb3_training.dream_envs")]


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """What a policy was made for; it lies beside its weights."""

    frame_shape: tuple[int, ...]  # (C, H, W)
    action_names: tuple[str, ...]
    view: View
    grid: tuple[int, ...]  # of codes; () for another view
    codes: int  # K; 0 for another view
    stack: int  # frames that it sees at once
    policy: str  # CnnPolicy or MlpPolicy
    steps: int = 0  # taken in training
    done: bool = False  # whether the training is finished
    reward: tuple[float, float, float] | None = None  # mean, variance, count of the returns that rewards are scaled by

    @property
    def observation_space(self) -> Space[Any]:
        """What the policy sees."""
        if self.view == "codes":
            return MultiDiscrete([self.codes] * int(np.prod(self.grid)))
        channels, *size = self.frame_shape
        return Box(0, 255, (self.stack * channels, *size), np.uint8)

    def save(self, folder: Path) -> None:
        replace_text(folder / SETTINGS, json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def load(cls, folder: Path) -> Knowledge:
        """Raises :class:`RunError` where there is none."""
        try:
            raw = json.loads((folder / SETTINGS).read_text())
            lists = {name: tuple(value) for name, value in raw.items() if isinstance(value, list)}
            return cls(**{**raw, **lists})
        except FileNotFoundError as error:
            raise RunError(f"there is no trained PPO in {folder}; {TRAIN_FIRST}") from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RunError(f"{folder / SETTINGS} is damaged; remove it and {TRAIN_FIRST}") from error


def require() -> Any:
    """The package. Raises :class:`ConfigError`, saying how to install it."""
    try:
        import stable_baselines3
    except ImportError as error:
        raise ConfigError(INSTALL) from error
    return stable_baselines3


def load_policy(folder: Path, knowledge: Knowledge, device: str = "cpu") -> Any:
    """The trained policy. Tensors alone are read from the zip, nothing is unpickled. Raises :class:`RunError`."""
    ppo = require().PPO
    from stable_baselines3.common.save_util import load_from_zip_file

    space, actions = knowledge.observation_space, Discrete(len(knowledge.action_names))
    policy = ppo.policy_aliases[knowledge.policy](space, actions, lambda _: 0.0)
    try:
        weights = load_from_zip_file(folder / WEIGHTS, load_data=False, device="cpu")[1]["policy"]
        policy.load_state_dict(weights)
    except Exception as error:  # whatever torch and zipfile raise for whatever is in the file
        reason = " ".join(str(error).split())[:120]
        raise RunError(f"{folder / WEIGHTS} is missing or damaged ({reason}); {TRAIN_FIRST}") from error
    return policy.to(device).set_training_mode(False) or policy
