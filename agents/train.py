"""Train an agent. agent=actor_critic: every round collects steps in the environment (the first round
with the explorer, the others with the actor), trains the world model on all steps, and trains the
actor and its critic in its dream.

Every round has a run: <run>-round1, …, and <run> for the last one. The episodes are in data/<run>.
The budgets of training.tokenizer, training.prior and training.agent apply to each round. With
steps=0 run=… no steps are collected: the actor is trained in the dream of that run.

agent=sb3_ppo run=… trains the PPO of Stable-Baselines3 in the dream of a run. Without run=, it is
trained in the real environment for steps=… steps, as a baseline.

The same command resumes an interrupted training.
"""

import argparse
import sys

from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.errors import RunError


@entry_point("worldmodel.agents.train", __doc__)
def main(args: argparse.Namespace, config: Config) -> None:
    from worldmodel.agents.choice import agent_name_of, find_learner  # slow: imports torch

    learn = find_learner(config, agent_name_of(args.overrides, config))
    if config.source.name != config.env.name and "_target_" in config.source:
        raise RunError("an agent is trained in an environment; choose source=env env=…")
    learn(config)


if __name__ == "__main__":
    sys.exit(main())
