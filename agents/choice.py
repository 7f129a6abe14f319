"""Finds the name, run, folder and learner of the agent that the settings describe, and builds the agent."""

import functools
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from worldmodel.agents.base import Agent
from worldmodel.config.checks import build, check, find
from worldmodel.config.cli import choices
from worldmodel.errors import ConfigError, RunError
from worldmodel.runs.folder import PRIOR, find_run, load_spec
from worldmodel.types import Spec

AGENTS = "agents"  # subfolder of a run or of runs/, with a folder per agent and environment
LEARNER_SETTINGS = ("learner",)  # settings of the group agent that are not arguments of the agent


def agent_name_of(overrides: Sequence[str], config: DictConfig) -> str:
    """Name of the agent of the settings: the choice of the group ``agent``, else that with the same ``_target_``."""
    chosen = [word.partition("=")[2] for word in overrides if word.lstrip("+").startswith("agent=")]
    if chosen:
        return chosen[-1].strip("'\"")
    for name in choices()["agent"]:
        if OmegaConf.select(_load_agent(name), "_target_") == config.agent.get("_target_"):
            return name
    return str(config.agent.get("_target_")).rpartition(".")[2].lower()


def agent_folder(config: DictConfig, name: str, run: Path | None) -> Path:
    """Folder for the results of an agent in an environment, below its run's folder or that of all runs."""
    seed = f"-seed{config.seed}" if config.seed else ""
    return (Path(str(config.runs)) if run is None else run) / AGENTS / f"{name}-{config.env.name}{seed}"


def find_agent_run(config: DictConfig, spec: Spec) -> Path | None:
    """The run of an agent: the named one, or the latest one of the environment that has the file which the agent needs
    (its attribute ``needs``); None for an agent that needs no run if none is named.

    Raises :class:`RunError` if there is no such run, or if the named run has other frames or actions.
    """
    needs = "run" in config.agent.keys()  # noqa: SIM118 (OmegaConf's "in" ignores missing values)
    if config.run is None and not needs:
        return None
    holding = str(getattr(find(config.agent.get("_target_"), "agent._target_"), "needs", PRIOR)) if needs else PRIOR
    folder = find_run(config.runs, config.run, holding, suits=lambda run: _identity(load_spec(run)) == _identity(spec))
    if not (folder / holding).is_file():
        raise RunError(f"the run {folder} has no {holding}, which this agent needs; train it, or choose another run=…")
    trained = load_spec(folder)
    if (trained.frame_shape, trained.action_names) != (spec.frame_shape, spec.action_names):
        raise RunError(
            f"the run {folder} is of {trained.env_id} with frames {trained.frame_shape} and actions "
            f"{', '.join(trained.action_names)}, not of {spec.env_id} with {spec.frame_shape} and "
            f"{', '.join(spec.action_names)}; choose its environment with env=…, or another run=…"
        )
    return folder


def _identity(spec: Spec) -> tuple[Any, ...]:
    """What two environments have in common if they are the same."""
    return spec.env_id, spec.env_kwargs, spec.frame_shape, spec.action_names


def arguments_of(config: DictConfig) -> dict[str, Any]:
    """The settings of the group agent without those of its learner."""
    node: Any = OmegaConf.to_container(config.agent, resolve=True)
    return {name: value for name, value in node.items() if name not in LEARNER_SETTINGS}


def build_agent(config: DictConfig, run: Path | None, folder: Path) -> Agent:
    """Build the agent of the settings, with its arguments ``run`` and ``folder``, if any. Raises ConfigError."""
    settings = arguments_of(config)
    settings |= {key: str(value) for key, value in (("run", run), ("folder", folder)) if key in settings}
    agent = build(settings, "agent")
    if not isinstance(agent, Agent):
        raise ConfigError(f"{settings.get('_target_')} is no agent; choose one of {', '.join(choices()['agent'])}")
    return agent


def find_learner(config: DictConfig, name: str) -> Callable[[DictConfig], Path]:
    """The training function, ``agent.learner._target_``. Raises :class:`ConfigError` for an agent without one."""
    if OmegaConf.select(config, "agent.learner._target_") is None:
        trainable = [each for each in choices()["agent"] if "learner" in _load_agent(each)]
        raise ConfigError(f"agent={name} cannot be trained; choose agent={' or agent='.join(trainable)}")
    settings = check(OmegaConf.to_container(config.agent.learner, resolve=True), "agent.learner")
    learner: Callable[..., Path] = find(settings.pop("_target_"), "agent.learner._target_")
    return functools.partial(learner, **settings)


def _load_agent(name: str) -> Any:
    return OmegaConf.load(Path(str(files("worldmodel.configs"))) / "agent" / f"{name}.yaml")
