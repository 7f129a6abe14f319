"""The agent that plays with a trained actor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch.nn import functional as F

from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.agents.base import Agent, check_actions, choose
from worldmodel.config.cli import one_line
from worldmodel.errors import ConfigError, RunError
from worldmodel.runs.folder import find_run, load_spec
from worldmodel.runs.migrate import migrate
from worldmodel.runs.models import build_module, load_tokenizer, load_weights, resolve_device
from worldmodel.tokenizers import Tokenizer
from worldmodel.types import NO_ACTION
from worldmodel.util.files import replace_text
from worldmodel.util.ranges import Count, Share

AGENT = "agent.safetensors"  # the file of a run with the weights of its actor and critic
SETTINGS = "agent.yaml"
RETURNS = "returns.jsonl"
"""A line for every training episode in the real environment: the steps up to its end, and its return."""
TRAIN_FIRST = "train one: python -m worldmodel.agents.train agent=actor_critic env=…"


def build_actor(network: DictConfig, tokenizer: Tokenizer, num_actions: int) -> ActorCritic:
    """The untrained actor and critic of the settings. Raises :class:`ConfigError`."""
    actor: ActorCritic = build_module(network, "agent", ActorCritic, tokenizer=tokenizer, num_actions=num_actions)
    return actor


def save_network(folder: Path, network: DictConfig, discount: float) -> None:
    """Write the settings of a run's actor and the γ of its critic."""
    settings = {"network": OmegaConf.to_container(network, resolve=True), "discount": discount}
    replace_text(folder / SETTINGS, OmegaConf.to_yaml(settings))


def load_network(folder: Path) -> DictConfig:
    """The settings of a run's actor: its network and γ. Raises :class:`RunError` if they are missing or damaged."""
    path = folder / SETTINGS
    if not path.is_file():
        raise RunError(f"the run {folder} has no actor; {TRAIN_FIRST}")
    try:
        settings = OmegaConf.load(path)
    except Exception as error:  # the YAML parser may raise anything
        raise RunError(f"{path} is damaged ({one_line(error)}); {TRAIN_FIRST}") from error
    if not isinstance(settings, DictConfig):
        raise RunError(f"{path} is damaged; {TRAIN_FIRST}")
    settings = OmegaConf.create(migrate(OmegaConf.to_container(settings)))
    return settings if "network" in settings else OmegaConf.create({"network": settings})  # older runs have no γ


def check_network(folder: Path, network: DictConfig) -> None:
    """Raises :class:`ConfigError` unless the trained actor of a run has this network."""
    if load_network(folder).network != OmegaConf.create(OmegaConf.to_container(network, resolve=True)):
        fault = f"the agent of {folder.name} has another network than agent.learner.network"
        raise ConfigError(f"{fault}; choose its own, or remove {folder / AGENT}")


def load_actor(folder: Path, device: str | torch.device = "cpu") -> tuple[Tokenizer, ActorCritic]:
    """Load the tokenizer and the trained actor of a run. Raises :class:`RunError` if there is no actor."""
    settings = load_network(folder)
    where = resolve_device(device) if isinstance(device, str) else device
    tokenizer = load_tokenizer(folder, where)
    actor = build_actor(settings.network, tokenizer, len(load_spec(folder).action_names)).to(where)
    actor.discount = settings.get("discount")
    load_weights(actor, folder / AGENT, TRAIN_FIRST)
    return tokenizer, actor.eval().requires_grad_(False)


class ActorCriticAgent(Agent):
    """Plays with a trained actor, whose input is the codes of the frames.

    Args:
        run: folder of a run with a trained actor; every process loads it at its first episode.
        greedy: take the most probable action instead of sampling.
        random_action_probability: of a random action instead of the policy's, repeated for up to ``max_repeat`` steps.
        runs: folder in which ``run`` is a name, or None for the latest run that has an actor.

    Raises :class:`RunError` for a missing run and, at the first episode, for one without an actor or with other
    actions.
    """

    needs = AGENT

    def __init__(
        self,
        run: str | Path | None,
        greedy: bool = False,
        random_action_probability: Share = 0.0,
        max_repeat: Count = 1,
        device: str = "cpu",
        runs: str | Path | None = None,
    ):
        if runs is not None:
            run = find_run(runs, run, AGENT)
        self.run, self.greedy, self.device = str(run), greedy, device
        self.random_action_probability, self.max_repeat = random_action_probability, max_repeat
        self._loaded: tuple[Tokenizer, ActorCritic] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        if self._loaded is None:
            self._loaded = load_actor(Path(self.run), self.device)
        trained = load_spec(Path(self.run)).action_names
        check_actions(action_names, trained, f"the actor of {self.run}", "choose another run=…")
        self._rng, self._action, self._repeats_left = rng, NO_ACTION, 0
        self._recent = self._loaded[1].begin(1)

    @torch.no_grad()
    def act(self, frame: np.ndarray) -> int:
        assert self._loaded is not None, "call begin before act"
        tokenizer, actor = self._loaded
        device = self._recent.actions.device
        grids = tokenizer.encode(torch.from_numpy(frame)[None].to(device))
        self._recent = self._recent.appended(grids, torch.tensor([self._action], device=device))
        if self._repeats_left:
            self._repeats_left -= 1
            return self._action
        probabilities = F.softmax(actor(self._recent).logits[0].double(), -1).cpu().numpy()
        if self.random_action_probability and self._rng.random() < self.random_action_probability:
            self._action = int(self._rng.integers(len(probabilities)))
            self._repeats_left = int(self._rng.integers(self.max_repeat))
        else:
            self._action = choose(probabilities, self.greedy, self._rng)
        return self._action
