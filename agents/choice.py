"""What a command line means by an agent: its name, the run that it needs, the folder that is its own, its learner."""

from __future__ import annotations

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
from worldmodel.runs.folder import PRIOR, find_run, list_runs, load_spec
from worldmodel.types import Spec

AGENTS = "agents"  # folder, of a run or of all runs, with a folder for each agent and environment
NOT_OF_THE_AGENT = ("learner",)  # settings of those who make it


def name_of(overrides: Sequence[str], config: DictConfig) -> str:
    """What the agent of the settings is called: the choice of the group ``agent``, else by what is built."""
    chosen = [word.partition("=")[2] for word in overrides if word.lstrip("+").startswith("agent=")]
    if chosen:
        return chosen[-1].strip("'\"")
    folder = Path(str(files("worldmodel.configs"))) / "agent"
    for name in choices()["agent"]:
        if OmegaConf.select(OmegaConf.load(folder / f"{name}.yaml"), "_target_") == config.agent.get("_target_"):
            return name
    return str(config.agent.get("_target_")).rpartition(".")[2].lower()


def folder_of(config: DictConfig, name: str, run: Path | None) -> Path:
    """Where what is known of an agent in an environment lies: in its run's folder, or in that of the runs."""
    seed = f"-seed{config.seed}" if config.seed else ""
    return (Path(str(config.runs)) if run is None else run) / AGENTS / f"{name}-{config.env.name}{seed}"


def run_of(config: DictConfig, spec: Spec) -> Path | None:
    """The run that an agent plays with: the one that is named, or the latest of the environment that has what the
    agent needs (its attribute ``needs``, a file of the run); None for an agent that needs none and was given none.

    Raises :class:`RunError` when there is none, or when the one that is named knows other frames or actions.
    """
    needs = "run" in config.agent.keys()  # noqa: SIM118 (a value that is missing is not "in" OmegaConf's nodes)
    if config.run is None and not needs:
        return None
    holding = str(getattr(_target(config), "needs", PRIOR)) if needs else PRIOR
    runs = Path(str(config.runs))
    if config.run is None:
        for name in reversed(list_runs(runs)):
            if (runs / name / holding).is_file() and _same_place(load_spec(runs / name), spec):
                return runs / name
    folder = find_run(runs, config.run, holding)
    if not (folder / holding).is_file():
        raise RunError(f"the run {folder} has no {holding}, which this agent needs; train it, or choose another run=…")
    known = load_spec(folder)
    if (known.frame_shape, known.action_names) != (spec.frame_shape, spec.action_names):
        raise RunError(
            f"the run {folder} is of {known.env_id} with frames {known.frame_shape} and actions "
            f"{', '.join(known.action_names)}, not of {spec.env_id} with {spec.frame_shape} and "
            f"{', '.join(spec.action_names)}; choose its environment with env=…, or another run=…"
        )
    return folder


def _same_place(one: Spec, other: Spec) -> bool:
    def facts(spec: Spec) -> tuple[Any, ...]:
        return spec.env_id, spec.env_kwargs, spec.frame_shape, spec.action_names

    return facts(one) == facts(other)


def build_agent(config: DictConfig, run: Path | None, folder: Path) -> Agent:
    """The agent of the settings; its ``run`` and its ``folder`` are filled in where it has them.

    Raises :class:`ConfigError`.
    """
    node = OmegaConf.to_container(config.agent, resolve=True)
    assert isinstance(node, dict)
    settings = {str(key): value for key, value in node.items() if key not in NOT_OF_THE_AGENT}
    for key, value in (("run", run), ("folder", folder)):
        if key in settings:
            settings[key] = str(value)
    agent = build(settings, "agent")
    if not isinstance(agent, Agent):
        raise ConfigError(f"{settings.get('_target_')} is no agent; choose one of {', '.join(choices()['agent'])}")
    return agent


def learner_of(config: DictConfig, name: str) -> Callable[[DictConfig], Path]:
    """What trains the agent of the settings: the function that ``agent.learner._target_`` names.

    Raises :class:`ConfigError` for an agent that learns nothing.
    """
    target = OmegaConf.select(config, "agent.learner._target_")
    if target is None:
        teachable = [each for each in choices()["agent"] if _learns(each)]
        raise ConfigError(f"there is nothing to learn for agent={name}; choose agent={' or agent='.join(teachable)}")
    settings = check(OmegaConf.to_container(config.agent.learner, resolve=True), "agent.learner")
    learner: Callable[..., Path] = find(settings.pop("_target_"), "agent.learner._target_")
    return functools.partial(learner, **settings)


def _learns(name: str) -> bool:
    return "learner" in OmegaConf.load(Path(str(files("worldmodel.configs"))) / "agent" / f"{name}.yaml")


def _target(config: DictConfig) -> Any:
    return find(config.agent.get("_target_"), "agent._target_")
