"""Train an agent, by what its settings name as its learner."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from worldmodel.config.cli import run_entry_point
from worldmodel.errors import RunError

if TYPE_CHECKING:
    from omegaconf import DictConfig

DESCRIPTION = """\
Train an agent. agent=actor_critic: in rounds, collect steps in the environment (with the explorer
at first, then with the actor), train the world model on all of them, and train the actor and its
critic in its dream.

Every round is a run of its own, <run>-round1, …, the last one <run>; its episodes lie in
data/<run>. The budgets of training.tokenizer, training.prior and training.agent are those of each
round. With steps=0 run=… nothing is collected: the actor learns in the dream of that run.

agent=sb3_ppo run=…: Stable-Baselines3's PPO inside the dream of a run. Without run=, in the real
environment, for as many steps as steps= says: the yardstick.

What is finished is kept: after an interruption the same command goes on."""


def run(args: argparse.Namespace, config: DictConfig) -> None:
    """Choose the learner of the agent and let it learn."""
    from worldmodel.agents.choice import learner_of, name_of  # only now, since what it names imports torch

    learn = learner_of(config, name_of(args.overrides, config))
    if config.source.name != config.env.name and "_target_" in config.source:
        raise RunError("an agent learns in an environment; choose source=env env=…")
    learn(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_entry_point(run, "worldmodel.agents.train", DESCRIPTION, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
