"""Loads a policy that was trained by PPO of Stable-Baselines3: weights and the info saved with them."""

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

View = Literal["frames", "pixels", "codes"]  # real frames, decoded frames of a dream, codes


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


@dataclasses.dataclass(frozen=True)
class PolicyInfo:
    """The observations, actions and training progress of a policy; it is saved next to the weights."""

    frame_shape: tuple[int, ...]  # (C, H, W)
    action_names: tuple[str, ...]
    view: View
    grid: tuple[int, ...]  # of codes; () for other views
    codes: int  # K; 0 for other views
    stack: int  # frames per observation
    policy: str  # CnnPolicy or MlpPolicy
    steps: int = 0  # training steps taken
    done: bool = False  # whether the training is finished
    reward: tuple[float, float, float] | None = None  # mean, variance and count of the returns, which scale rewards

    @property
    def observation_space(self) -> Space[Any]:

        if self.view == "codes":
            return MultiDiscrete([self.codes] * int(np.prod(self.grid)))
        channels, *size = self.frame_shape
        return Box(0, 255, (self.stack * channels, *size), np.uint8)

    def save(self, folder: Path) -> None:
        replace_text(folder / SETTINGS, json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def load(cls, folder: Path) -> PolicyInfo:
        """Read the info in a folder. Raises :class:`RunError` if it is missing or damaged."""
        try:
            raw = json.loads((folder / SETTINGS).read_text())
            lists = {name: tuple(value) for name, value in raw.items() if isinstance(value, list)}
            return cls(**{**raw, **lists})
        except FileNotFoundError as error:
            raise RunError(f"there is no trained PPO in {folder}; {TRAIN_FIRST}") from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RunError(f"{folder / SETTINGS} is damaged; remove it and {TRAIN_FIRST}") from error


def require_sb3() -> Any:
    """Import the package. Raises :class:`ConfigError` with the command that installs it."""
    try:
        import stable_baselines3
    except ImportError as error:
        raise ConfigError(INSTALL) from error
    return stable_baselines3


def load_policy(folder: Path, info: PolicyInfo, device: str = "cpu") -> Any:
    """Load the trained policy. Only tensors are read from the zip, nothing is unpickled. Raises :class:`RunError`."""
    ppo = require_sb3().PPO
    from stable_baselines3.common.save_util import load_from_zip_file

    space, actions = info.observation_space, Discrete(len(info.action_names))
    policy = ppo.policy_aliases[info.policy](space, actions, lambda _: 0.0)
    try:
        weights = load_from_zip_file(folder / WEIGHTS, load_data=False, device="cpu")[1]["policy"]
        policy.load_state_dict(weights)
    except Exception as error:  # torch and zipfile raise various errors for damaged files
        reason = " ".join(str(error).split())[:120]
        raise RunError(f"{folder / WEIGHTS} is missing or damaged ({reason}); {TRAIN_FIRST}") from error
    return policy.to(device).set_training_mode(False) or policy
