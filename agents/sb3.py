"""Stable-Baselines3's PPO as an agent."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Space

from worldmodel.agents.base import Agent, check_actions, choose
from worldmodel.config.cli import one_line
from worldmodel.errors import ConfigError, RunError
from worldmodel.runs.models import load_tokenizer, resolve_device
from worldmodel.tokenizers import Tokenizer
from worldmodel.util.files import replace_text

WEIGHTS, SETTINGS = "sb3_ppo.zip", "sb3_ppo.json"
INSTALL = "agent=sb3_ppo needs Stable-Baselines3, which is not installed: pip install 'stable-baselines3>=2.4,<3'"
TRAIN_FIRST = "train it: python -m worldmodel.agents.train agent=sb3_ppo"

View = Literal["frames", "pixels", "codes"]  # real frames, decoded frames of a dream, codes


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
    def load(cls, folder: Path) -> Self:
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


def load_policy(folder: Path, info: PolicyInfo, device: str | torch.device = "cpu") -> Any:
    """Load the trained policy. Only tensors are read from the zip, nothing is unpickled. Raises :class:`RunError`."""
    ppo = require_sb3().PPO
    from stable_baselines3.common.save_util import load_from_zip_file

    space, actions = info.observation_space, Discrete(len(info.action_names))
    policy = ppo.policy_aliases[info.policy](space, actions, lambda _: 0.0)
    try:
        weights = load_from_zip_file(folder / WEIGHTS, load_data=False, device="cpu")[1]["policy"]
        policy.load_state_dict(weights)
    except Exception as error:  # torch and zipfile raise various errors for damaged files
        raise RunError(f"{folder / WEIGHTS} is missing or damaged ({one_line(error)[:120]}); {TRAIN_FIRST}") from error
    return policy.to(device).set_training_mode(False) or policy


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
        check_actions(action_names, info.action_names, str(self.folder), "choose its environment with env=…")
        if self._policy is None:
            self._device = resolve_device(self.device)
            self._policy = load_policy(self.folder, info, self._device)
            if info.view != "frames":
                self._tokenizer = load_tokenizer(self.folder.parents[1], self._device)
        self._rng = rng
        channels, *size = info.frame_shape
        self._seen = np.zeros((info.stack, channels, *size), np.uint8)

    @torch.no_grad()
    def act(self, frame: np.ndarray) -> int:
        seen = torch.from_numpy(self._observation(frame)[None]).to(self._device)
        probabilities = self._policy.get_distribution(seen).distribution.probs[0].double().cpu().numpy()
        return choose(probabilities, self.greedy, self._rng)

    def _observation(self, frame: np.ndarray) -> np.ndarray:
        """The policy's observation: the last frames, as Stable-Baselines3 stacks them, or codes."""
        if self._tokenizer is not None:
            codes = self._tokenizer.encode(torch.from_numpy(frame)[None].to(self._device))
            if self.info.view == "codes":
                return codes.flatten().cpu().numpy()
            frame = self._tokenizer.decode(codes)[0].cpu().numpy()
        self._seen = np.concatenate([self._seen[1:], frame[None]])
        return self._seen.reshape(-1, *frame.shape[1:])
