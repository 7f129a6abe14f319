"""The training stage of an actor and its critic, which follows those of the world model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from omegaconf import DictConfig

from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.agents.imagination import ImaginationObjective
from worldmodel.agents.run import AGENT, build_actor
from worldmodel.data.store import Split
from worldmodel.data.windows import Windows
from worldmodel.runs.stages import Source, Stage, StageSettings
from worldmodel.tokenizers import Tokenizer
from worldmodel.types import Spec
from worldmodel.util.ranges import Count, PassedTo, Share
from worldmodel.world import WorldModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentSettings(StageSettings):
    rewarded: Share = 0.0  # fraction of start states shortly before a rare reward


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerSettings:
    """The settings ``agent.learner``."""

    network: Any  # settings of an :class:`ActorCritic`
    dream: Annotated[Mapping[str, Any], PassedTo(ImaginationObjective)]
    rounds: Count = 1  # of collecting, training the world model and training the agent in its dream
    random_action_probability: Share = 0.0  # of the actor that collects, see :class:`ActorCriticAgent`
    max_repeat: Count = 1


class AgentStage(Stage):
    """Trains an actor and its critic in dreams that start from the last frames of windows of codes, of all episodes."""

    name, title, file = "agent", "agent", AGENT
    settings = AgentSettings

    def __init__(self, world: WorldModel, dream: Mapping[str, Any]):
        self.world, self.dream = world, dream

    def build(self, config: DictConfig, spec: Spec, tokenizer: Tokenizer) -> ActorCritic:
        return build_actor(config.agent.learner.network, self.world.tokenizer, len(spec.action_names))

    def lead(self, model: ActorCritic) -> int:
        return max(model.history, self.world.prior.context) - 1

    def windows(self, settings: AgentSettings, source: Source, model: ActorCritic) -> dict[Split, Windows]:
        lead = self.lead(model)
        return {
            "train": Windows(source, "all", lead + 1, lead, rewarded=settings.rewarded),
            "held_out": Windows(source, [], lead + 1, lead),
        }

    def objective(
        self, config: DictConfig, model: ActorCritic, tokenizer: Tokenizer, epoch: int = 100
    ) -> ImaginationObjective:
        return ImaginationObjective(self.world, model, **self.dream)
