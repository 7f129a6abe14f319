"""The training loop of an actor-critic.

Every round collects steps in the environment (the first with the explorer, the others with the actor), trains the
world model on all steps, and trains the actor and its critic in its dream. Every round is a run, <run>-round1, …, the
last one <run>; the episodes are in data/<run>. The same command resumes an interrupted training. With steps=0 an actor
is trained in the world model of an existing run.
"""

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf

from worldmodel.agents.actor import AGENT, RETURNS, ActorCriticAgent, build_actor, check_network, save_network
from worldmodel.agents.actor_critic import DISCOUNT, ActorCritic
from worldmodel.agents.imagination import ImaginationObjective
from worldmodel.agents.report import plot_returns
from worldmodel.config.checks import build, check_groups
from worldmodel.data.store import EpisodeStore, Split
from worldmodel.data.windows import Windows
from worldmodel.errors import ConfigError, RunError
from worldmodel.recording.recorder import ActionSource
from worldmodel.runs.data import env_maker, record_steps, recorded, spec_of
from worldmodel.runs.folder import PRIOR, checkpoint_of, claim, find_run, load_config
from worldmodel.runs.models import check_trained
from worldmodel.runs.resume import to_be_trained
from worldmodel.runs.stages import Source, Stage, StageSettings, stage_settings, stages_of
from worldmodel.runs.training import make_fabric, rehearse_stage, rehearse_world, train, train_stage
from worldmodel.tokenizers import Tokenizer
from worldmodel.types import Spec
from worldmodel.util.files import replace_text
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
        training = Windows(source, "all", lead + 1, lead, rewarded=settings.rewarded)
        return {"train": training, "held_out": Windows(source, [], lead + 1, lead)}

    def objective(
        self, config: DictConfig, model: ActorCritic, tokenizer: Tokenizer, epoch: int = 100
    ) -> ImaginationObjective:
        return ImaginationObjective(self.world, model, **self.dream)


def plan_rounds(name: str, steps: int, rounds: int) -> list[tuple[str, int]]:
    """For each round, the name of its run and the steps of the environment up to its end; the rounds share the steps
    evenly. Raises :class:`ConfigError` for fewer steps than rounds."""
    if rounds > steps:
        raise ConfigError(f"agent.learner.rounds is {rounds}; choose from 1 to the number of steps, {steps}")
    names = [f"{name}-round{number}" for number in range(1, rounds)] + [name]
    return [(each, steps * number // rounds) for number, each in enumerate(names, 1)]


def learn(config: DictConfig, **options: Annotated[Any, PassedTo(LearnerSettings)]) -> Path:
    """Run all rounds or, with ``steps`` 0, train an actor in the world model of ``config.run``, starting from the data
    that it was trained on; returns the folder of the last run.

    Raises the errors of collecting and training, and KeyboardInterrupt after an interruption; finished work is kept.
    """
    settings = LearnerSettings(**options)
    check_groups(config, "tokenizer", "second", "prior")
    # What is not possible is refused now, and not after hours of collecting and training.
    for stage in stages_of(config):
        stage_settings(config, stage)
    stage_settings(config, AgentStage)
    if config.steps == 0:
        return learn_in_dream(config, settings)
    rehearse_agent(config, settings)
    name = str(config.run or f"{config.stem}-agent" + (f"-seed{config.seed}" if config.seed else ""))
    if str(config.data) == f"data/{config.source.name}":
        config.data = f"data/{name}"  # an agent has its own data, whose steps are counted
    previous: Path | None = None
    for number, (run, steps) in enumerate(plan_rounds(name, config.steps, settings.rounds), 1):
        print(f"round {number} of {settings.rounds}: {steps:,} steps")
        collect_steps(config, settings, steps, previous)
        config.run = run
        folder = train(config, weights_of=None if previous is None else previous.name)
        train_actor(config, settings, folder, previous)
        previous = folder
    save_returns(EpisodeStore.open(str(config.data)), folder)
    print(f"the agent is in {folder}; python -m worldmodel.agents.evaluate agent=actor_critic run={folder.name}")
    return folder


def rehearse_agent(config: DictConfig, settings: LearnerSettings) -> None:
    """Build the world model and the agent, and compute their losses once. Raises :class:`ConfigError`."""
    spec = spec_of(env_maker(config))
    tokenizer, prior = rehearse_world(config, spec)
    stage = AgentStage(WorldModel(spec, tokenizer, prior), {**settings.dream, "horizon": 2})
    rehearse_stage(config, spec, stage, tokenizer)


def learn_in_dream(config: DictConfig, settings: LearnerSettings) -> Path:
    """Train an actor in the dream of a run, without steps in the environment. Raises as :func:`train_actor` does."""
    if config.run is None:
        raise ConfigError("steps=0 trains an actor in the world model of an existing run: name it with run=…")
    folder = find_run(Path(str(config.runs)), config.run, PRIOR)
    if not check_trained(folder, PRIOR):
        raise RunError(f"the run {folder} has no trained world model; train it: python -m worldmodel.train "
                       f"run={folder.name}")  # fmt: skip
    data = str(load_config(folder).data)
    if str(config.data) != f"data/{config.source.name}" and os.path.abspath(config.data) != data:
        raise ConfigError(f"{folder.name} was trained on {data}, not on {config.data}; leave data= out")
    config.data = data
    print(f"training the actor in the dream of {folder.name}")
    train_actor(config, settings, folder, None)
    print(f"the agent is in {folder}; python -m worldmodel.agents.evaluate agent=actor_critic run={folder.name}")
    return folder


def collect_steps(config: DictConfig, settings: LearnerSettings, steps: int, previous: Path | None) -> None:
    """Collect what is missing of so many steps with the explorer or the actor of the run ``previous``."""
    missing = steps - recorded(config)
    if missing <= 0:
        return
    if previous is None:
        agent: ActionSource = build(OmegaConf.to_container(config.explorer, resolve=True), "explorer")
    else:
        random = settings.random_action_probability
        agent = ActorCriticAgent(previous, random_action_probability=random, max_repeat=settings.max_repeat)
    record_steps(config, agent, missing)


def train_actor(config: DictConfig, settings: LearnerSettings, folder: Path, previous: Path | None) -> None:
    """Train the actor of a run in the dream of its world model, starting from the weights of the run ``previous``."""
    fabric = make_fabric(config)
    fabric.launch()
    world = WorldModel.load(folder, device=str(fabric.device))
    stage, store = AgentStage(world, settings.dream), EpisodeStore.open(str(config.data))
    with claim(folder) if fabric.is_global_zero else contextlib.nullcontext():
        if not to_be_trained(config, folder, stage):
            fabric.print(f"the agent is trained already; to train it again remove {folder / AGENT} and "
                        f"{checkpoint_of(folder, AGENT)}")  # fmt: skip
            return
        if fabric.is_global_zero:
            if (folder / AGENT).is_file():
                check_network(folder, config.agent.learner.network)
            save_network(folder, config.agent.learner.network, settings.dream.get("discount", DISCOUNT))
        train_stage(fabric, config, stage, store, folder, None if previous is None else previous / AGENT)


def save_returns(store: EpisodeStore, folder: Path) -> None:
    """Write and plot, for every collected episode, the steps up to its end and the sum of its rewards."""
    episodes = [store.episode(number) for number in range(len(store))]
    ends = itertools.accumulate(episode.steps for episode in episodes)
    curve = [(end, float(episode.rewards.sum())) for end, episode in zip(ends, episodes, strict=True)]
    lines = (json.dumps({"step": step, "return": value}) + "\n" for step, value in curve)
    replace_text(folder / RETURNS, "".join(lines))
    plot_returns(folder, curve)
