"""The training stage of an actor and its critic, behind those of the world model in whose dream they learn."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from omegaconf import DictConfig, OmegaConf
from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.agents.imagination import ImaginationObjective
from worldmodel.agents.run import AGENT, build_actor

from worldmodel.data.store import Split
from worldmodel.data.windows import Windows
from worldmodel.errors import ConfigError
from worldmodel.runs.stages import Source, Stage, StageSettings
from worldmodel.tokenizers import Tokenizer
from worldmodel.types import Spec
from worldmodel.util.ranges import Share
from worldmodel.world import WorldModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentSettings(StageSettings):
    rewarded: Share = 0.0  # share of the starts from which a rare reward is near


class AgentStage(Stage):
    """Windows of codes, whose last frames dreams start from → an actor and its critic. All episodes are trained on."""

    name, title, file, needs = "agent", "agent", AGENT, ("tokenizer", "second", "prior")
    settings = AgentSettings

    def __init__(self, world: WorldModel):
        self.world = world

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
        return ImaginationObjective(self.world, model, **dream_settings(config))


def dream_settings(config: DictConfig) -> dict[str, Any]:
    """The arguments of :class:`ImaginationObjective`. Raises :class:`ConfigError` for one that does not exist."""
    settings = OmegaConf.to_container(config.agent.learner.dream, resolve=True)
    known = list(inspect.signature(ImaginationObjective).parameters)[2:]  # behind the world and the agent
    assert isinstance(settings, dict)
    for name in map(str, settings):
        if name not in known:
            raise ConfigError(f"there is no agent.learner.dream.{name}; choose {', '.join(known)}")
    return {str(name): value for name, value in settings.items()}
