"""Every setting of every file in configs/ sits on an annotated parameter, which refuses values that are too small."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest
from annotated_types import Ge, Gt
from omegaconf import OmegaConf

from worldmodel.agents.loop import AgentStage
from worldmodel.config import checks
from worldmodel.config.cli import Settings, choices, compose_config
from worldmodel.errors import ConfigError
from worldmodel.runs.data import NOT_OF_THE_ENVIRONMENT
from worldmodel.runs.stages import STAGES
from worldmodel.util.ranges import PassedTo

GROUPS = {name: names for name, names in choices().items() if "/" not in name}
NEEDED = {"sb3_ppo": "stable_baselines3"}  # package that an optional choice needs
FOREIGN = "agent.learner.ppo."  # parameters of Stable-Baselines3's PPO: their types are checked


class Setting(NamedTuple):
    name: str
    annotation: Any  # None: none
    value: Any


def built(node: Any, name: str) -> Iterator[Setting]:
    """The settings of a node, or of those in a list, that are built."""
    if checks.is_list(node):
        for index, item in enumerate(node):
            yield from built(item, f"{name}[{index}]")
    elif "_target_" in node:
        rest = {key: value for key, value in node.items() if key not in checks.HYDRA}
        yield from arguments(checks.find(node["_target_"], name), rest, name)
    else:
        for key, value in node.items():
            yield from built(value, f"{name}.{key}")


def arguments(target: Any, settings: Mapping[str, Any], name: str) -> Iterator[Setting]:
    types = checks.parameters(target).types
    for key, value in settings.items():
        annotation = types.get(key)
        mark = next((mark for mark in checks.marks(annotation) if isinstance(mark, PassedTo)), None)
        if checks._builds(value):
            yield from built(value, f"{name}.{key}")
        elif mark is not None and isinstance(value, Mapping):
            inner = checks.receiver(annotation, settings.get("id"))
            if inner is not None:  # of a package that is installed
                yield from arguments(inner, value, f"{name}.{key}")
        else:
            yield Setting(f"{name}.{key}", annotation, value)


@functools.cache
def settings_of(group: str, choice: str) -> list[Setting]:
    """All settings that a choice of a group brings."""
    plain: Any = OmegaConf.to_container(compose_config([f"{group}={choice}"]))
    plain["env"].pop("name")  # of the folder of the data
    for name in NOT_OF_THE_ENVIRONMENT:
        plain["env"].pop(name, None)
    experiment = ("env", "explorer", "agent", "tokenizer", "second", "prior", "training")
    found: list[Setting] = []
    for name in experiment if group == "experiment" else (group,):
        if name == "training":
            for stage in (*STAGES.values(), AgentStage):
                found += arguments(stage.settings, plain[name][stage.name], f"{name}.{stage.name}")
        elif plain.get(name) is not None and (name, choice) != ("source", "env"):
            found += built(plain[name], name)
    return found


def check_setting(setting: Setting) -> None:
    assert setting.annotation not in (None, Any), f"{setting.name} has no annotated parameter"
    checks.check_value(setting.name, setting.annotation, setting.value)
    if isinstance(setting.value, (int, float)) and not isinstance(setting.value, bool):
        least = [mark for mark in checks.marks(setting.annotation) if isinstance(mark, (Ge, Gt))]
        if setting.name.startswith(FOREIGN):
            return
        assert least, f"{setting.name} may be as small as you like"
        for mark in least:
            wrong = mark.ge - 1 if isinstance(mark, Ge) else mark.gt  # type: ignore[operator]
            with pytest.raises(ConfigError, match=r"; it must be (at least|above|a multiple of) "):
                checks.check_value(setting.name, setting.annotation, wrong)


@pytest.mark.parametrize("group", GROUPS)
def test_every_setting_of_a_group_is_checked(group: str) -> None:
    seen = set()
    for choice in GROUPS[group]:
        if importlib.util.find_spec(NEEDED.get(choice, "worldmodel")) is None:
            continue
        for setting in settings_of(group, choice):
            if setting.value != checks.MISSING and (key := (setting.name, repr(setting))) not in seen:
                seen.add(key)
                check_setting(setting)
    assert seen


def test_every_setting_beside_the_groups_is_checked() -> None:
    config: Any = OmegaConf.to_container(compose_config())
    beside = {key: value for key, value in config.items() if key not in GROUPS}
    found = list(arguments(Settings, beside, "root"))
    assert {"root.seed", "root.collect.workers"} <= {setting.name for setting in found}
    for setting in found:
        check_setting(setting)
