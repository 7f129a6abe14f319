"""A name or an id arrives as it was typed, and a number is still a number."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from omegaconf import OmegaConf

from worldmodel.config.cli import compose_config
from worldmodel.envs import FrameEnv
from worldmodel.errors import ConfigError, DataError

NPZ = ("source=npz", "source.path=x")


@pytest.mark.parametrize(
    ("overrides", "value"),
    [
        ((*NPZ, "source.action_names=[007,1e3,on,yes,null,1_000,true,1.50,-0]"),
         ["007", "1e3", "on", "yes", "null", "1_000", "true", "1.50", "-0"]),
        ((*NPZ, "source.action_names=['a,b', 1e3, \"x\", null]"), ["a,b", "1e3", "x", "null"]),
        ((*NPZ, "source.action_names=null"), None),
        ((*NPZ, "source.name=1e3"), "1e3"),
        ((*NPZ, "source.name=null"), None),  # refused, because a name is needed
        ((*NPZ, "source.keys.obs=1e3"), "1e3"),
        ((*NPZ, "source.longest=1e3"), 1000.0),
        (("source=vctk", "source.path=x", "source.speakers=[225,0226,1e2]"), ["225", "0226", "1e2"]),
        (("env=gym", "env.id=1e3"), "1e3"),
        (("env=gym", "env.id=on", "env.action_names=[null,on]"), ["null", "on"]),
        (("env=gym", "env.id=x", "env.size=3e1"), 30.0),
        (("env=gym", "env.id=test_verbatim:Verbatim-v0", "+env.kwargs.level=1e3"), "1e3"),
        (("env=gym", "env.id=test_verbatim:Verbatim-v0", "+env.kwargs.depth=1e3"), 1000.0),
        (("env=gym", "env.id=test_verbatim:Verbatim-v0", "+env.kwargs.other=1e3"), 1000.0),
        (("env=vizdoom/any", "env.kwargs.scenario=1e3"), "1e3"),
        (("collect.steps=1e3",), 1000),
        (("stem=1e3",), "1e3"),
        (("run=1_0",), "1_0"),
        (("run=null",), None),
        (("seed=1e3",), 1000),
    ],
)  # fmt: skip
def test_a_name_arrives_as_it_was_typed(overrides: tuple[str, ...], value: Any) -> None:
    key = overrides[-1].partition("=")[0].lstrip("+")
    if overrides[-1] == "source.name=null":
        with pytest.raises(ConfigError, match=r"source\.name is null; it must be a text"):
            compose_config(overrides)
        return
    got = OmegaConf.select(compose_config(overrides), key)
    assert (OmegaConf.to_container(got) if OmegaConf.is_config(got) else got) == value and str(got) == str(value)


def test_names_in_a_mapping_and_what_depends_on_a_name_arrive_as_typed() -> None:
    keys = compose_config((*NPZ, "source.keys={obs: 1e3, action: 'a b', reward: null}")).source["keys"]
    assert (keys.obs, keys.action, keys.reward, keys.done) == ("1e3", "a b", "null", "done")
    assert compose_config((*NPZ, "source.name=1e3")).data == "data/1e3"


class Tiny(gymnasium.Env[Any, Any]):
    observation_space, action_space = Box(0, 255, (16, 16, 3), np.uint8), Discrete(9)

    def __init__(self, level: str = "", depth: float = 1, other=None):  # type: ignore[no-untyped-def]
        pass


gymnasium.register("Verbatim-v0", Tiny)


def env_actions(text: str) -> Any:
    return OmegaConf.to_container(compose_config(("env=gym", "env.id=x", f"env.actions={text}")).env.actions)


@pytest.mark.parametrize("name", ["1e3", "true", "null"])
def test_an_action_whose_name_would_change_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="actions"):
        FrameEnv(Tiny(), 16, actions=env_actions(f"{{{name}: 1, up: 2}}"))
    named = FrameEnv(Tiny(), 16, actions=env_actions("{007: 1, on: 2, up: 3}"))
    assert named.data_spec.action_names == ("007", "on", "up")


def test_a_name_of_an_action_is_kept_or_refused() -> None:
    env = FrameEnv(Tiny(), 16, action_names=["turn left", "1e3", *"abcdefg"])
    assert env.data_spec.action_names[:2] == ("turn left", "1e3")
    for name in ("a,b", "a*2", " a"):
        with pytest.raises(DataError, match=r"action name .*; choose another"):
            FrameEnv(Tiny(), 16, action_names=[name, *"abcdefgh"])
