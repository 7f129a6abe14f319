"""Saves and loads the settings and weights of a run's actor and critic."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.errors import RunError
from worldmodel.runs.folder import load_spec
from worldmodel.runs.migrate import migrate
from worldmodel.runs.models import build_module, load_tokenizer, load_weights
from worldmodel.tokenizers import Tokenizer
from worldmodel.util.files import replace_text

AGENT = "agent.safetensors"
"""The file of a run with the weights of its actor and critic."""
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


def load_actor(folder: Path, device: str | torch.device = "cpu") -> tuple[Tokenizer, ActorCritic]:
    """Load the tokenizer and the trained actor of a run. Raises :class:`RunError` if there is no actor."""
    if not (folder / SETTINGS).is_file():
        raise RunError(f"the run {folder} has no actor; {TRAIN_FIRST}")
    settings = OmegaConf.load(folder / SETTINGS)
    if not isinstance(settings, DictConfig):
        raise RunError(f"{folder / SETTINGS} is damaged; {TRAIN_FIRST}")
    settings = OmegaConf.create(migrate(OmegaConf.to_container(settings)))
    network, discount = settings.get("network", settings), settings.get("discount")  # older runs have the network only
    tokenizer = load_tokenizer(folder, device)
    actor = build_actor(network, tokenizer, len(load_spec(folder).action_names)).to(device)
    actor.discount = discount
    load_weights(actor, folder / AGENT, TRAIN_FIRST)
    return tokenizer, actor.eval().requires_grad_(False)
