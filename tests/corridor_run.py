"""A run of the corridor, for tests of agents."""

from __future__ import annotations

from pathlib import Path

import torch
from corridor import CHOOSE, SPEC

from worldmodel.agents.actor import AGENT, build_actor, save_network
from worldmodel.config.cli import compose_config
from worldmodel.runs.folder import PRIOR, TOKENIZER, new_run
from worldmodel.runs.models import build_prior, build_tokenizer
from worldmodel.training.checkpoint import save_tensors

TINY = ("tokenizer.widths=[8,8]", "tokenizer.blocks=1", "tokenizer.num_codes=16", "prior.trunk.width=16",
        "prior.trunk.blocks=1", "prior.head.width=16", "agent=actor_critic", "agent.learner.network.width=16",
        "agent.learner.network.reader.channels=8")  # fmt: skip


def save_run(runs: Path, name: str = "tiny") -> Path:
    """A run of the corridor with untrained weights, its actor among them."""
    config = compose_config([*CHOOSE, *TINY, f"runs={runs}", f"run={name}"])
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config, SPEC)
    prior = build_prior(config, SPEC, tokenizer)
    folder = new_run(config, SPEC)
    save_tensors(folder / TOKENIZER, tokenizer.state_dict())
    save_tensors(folder / PRIOR, prior.state_dict())
    network = config.agent.learner.network
    save_network(folder, network, 0.9)
    save_tensors(folder / AGENT, build_actor(network, tokenizer, 2).state_dict())  # type: ignore[arg-type]
    return folder
