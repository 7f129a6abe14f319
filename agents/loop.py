"""An actor-critic's loop: collect ↔ learn the world ↔ learn in the dream.

In rounds, collect steps in the environment (with the explorer at first, then with the actor), train the world model on
all of them, and train the actor and its critic in its dream. Every round is a run of its own, <run>-round1, …, the last
one <run>; its episodes lie in data/<run>. What is finished is kept: the same command goes on. With steps=0 an actor
learns in the world of a run that is trained already.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from worldmodel.agents.actor import ActorCriticAgent
from worldmodel.agents.returns import DISCOUNT
from worldmodel.agents.run import AGENT, RETURNS, save_network
from worldmodel.agents.stage import AgentStage, Learner

from worldmodel.config.checks import build, check_groups
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, RunError
from worldmodel.media import plots
from worldmodel.recording.recorder import ActionSource
from worldmodel.runs.data import record_steps, recorded
from worldmodel.runs.folder import PRIOR, checkpoint_of, find_run, load_config
from worldmodel.runs.load import check_trained
from worldmodel.runs.training import make_fabric, say, train, train_stage
from worldmodel.util.files import replace_text
from worldmodel.util.ranges import PassedTo
from worldmodel.world import WorldModel


@dataclasses.dataclass(frozen=True)
class Round:
    """One turn of the loop."""

    number: int  # from 1
    run: str  # its name
    steps: int  # of the environment, those before included


def plan(name: str, steps: int, rounds: int) -> list[Round]:
    """``rounds`` of them, the steps shared evenly. Raises :class:`ConfigError` for fewer steps than rounds."""
    if rounds > steps:
        raise ConfigError(f"agent.learner.rounds is {rounds}; choose from 1 to the number of steps, {steps}")
    names = [f"{name}-round{number}" for number in range(1, rounds)] + [name]
    return [Round(i + 1, each, steps * (i + 1) // rounds) for i, each in enumerate(names)]


def learn(config: DictConfig, **settings: Annotated[Any, PassedTo(Learner)]) -> Path:
    """All rounds of an actor-critic, or with ``steps`` 0 its training inside the world of ``config.run``, from the
    frames that this learnt from; returns the folder of the last run.

    Raises what collecting and training raise, and KeyboardInterrupt, with everything kept, when asked to stop.
    """
    learner = Learner(**settings)
    check_groups(config, "tokenizer", "second", "prior")
    if config.steps == 0:
        return learn_inside(config, learner)
    name = str(config.run or f"{config.stem}-agent" + (f"-seed{config.seed}" if config.seed else ""))
    if str(config.data) == f"data/{config.source.name}":
        config.data = f"data/{name}"  # the steps of an agent are its own, and counted
    before: Round | None = None
    folder = Path(config.runs) / name
    for turn in plan(name, config.steps, learner.rounds):
        print(f"round {turn.number} of {learner.rounds}: {turn.steps:,} steps")
        gather(config, learner, turn, before)
        config.run = turn.run
        folder = train(config, weights_of=None if before is None else before.run)
        dream(config, learner, folder, None if before is None else Path(config.runs) / before.run)
        before = turn
    keep_returns(EpisodeStore.open(str(config.data)), folder)
    print(f"the agent is in {folder}; python -m worldmodel.agents.evaluate agent=actor_critic run={folder.name}")
    return folder


def learn_inside(config: DictConfig, learner: Learner) -> Path:
    """Train an actor in the dream of a run, without a step in the environment. Raises what :func:`dream` raises."""
    if config.run is None:
        raise ConfigError("steps=0 trains an actor in a world that is there: name it with run=…")
    folder = find_run(Path(str(config.runs)), config.run, PRIOR)
    if not check_trained(folder, PRIOR):
        raise RunError(f"the run {folder} has no trained world to learn in; train it: python -m worldmodel.train "
                       f"run={folder.name}")  # fmt: skip
    data = str(load_config(folder).data)
    if str(config.data) not in (data, f"data/{config.source.name}"):
        raise ConfigError(f"the world of {folder.name} learnt from {data}, not from {config.data}; leave data= out")
    config.data = data
    print(f"learning in the dream of {folder.name}")
    dream(config, learner, folder, None)
    print(f"the agent is in {folder}; python -m worldmodel.agents.evaluate agent=actor_critic run={folder.name}")
    return folder


def gather(config: DictConfig, learner: Learner, turn: Round, before: Round | None) -> None:
    """Collect what a round's steps lack: with the explorer, and with the actor of the round before."""
    missing = turn.steps - recorded(config)
    if missing <= 0:
        return
    if before is None:
        player: ActionSource = build(OmegaConf.to_container(config.explorer, resolve=True), "explorer")
    else:
        player = ActorCriticAgent(
            Path(config.runs) / before.run,
            random_action_probability=learner.random_action_probability,
            max_repeat=learner.max_repeat,
        )
    record_steps(config, player, missing)


def dream(config: DictConfig, learner: Learner, folder: Path, before: Path | None) -> None:
    """Train the actor of a run in the dream of its world, from the weights of the run ``before``."""
    fabric = make_fabric(config)
    fabric.launch()
    if check_trained(folder, AGENT):
        say(fabric, f"the agent is trained already; to train it anew remove {folder / AGENT} and "
                    f"{checkpoint_of(folder, AGENT)}")  # fmt: skip
        return
    world = WorldModel.load(folder, device=str(fabric.device))
    if fabric.is_global_zero:
        save_network(folder, config.agent.learner.network, learner.dream.get("discount", DISCOUNT))
    first = None if before is None else before / AGENT
    train_stage(fabric, config, AgentStage(world, learner.dream), EpisodeStore.open(str(config.data)), folder, first)


def keep_returns(store: EpisodeStore, folder: Path) -> None:
    """Returns of the episodes as they were collected, over the steps of the environment: a file and its plot."""
    ends, returns = returns_of(store)
    records = ({"step": step, "return": value} for step, value in zip(ends, returns, strict=True))
    replace_text(folder / RETURNS, "".join(f"{json.dumps(record)}\n" for record in records))
    line = plots.Line(ends, returns, noisy=True)
    panel = plots.Panel("return of collected episodes", {"return": line}, xlabel="environment steps")
    plots.save_panels(folder / "returns.png", [panel], title=folder.name)


def returns_of(store: EpisodeStore) -> tuple[list[int], list[float]]:
    """For every episode in the order of recording: the steps up to its end, and the sum of its rewards."""
    ends, returns, steps = [], [], 0
    for number in range(len(store)):
        episode = store.episode(number)
        steps += episode.steps
        ends.append(steps)
        returns.append(float(episode.rewards.sum()))
    return ends, returns
