"""The commands as functions of other people's programs: Hydra applications, notebooks, scripts without a main guard."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.version import VersionBase
from omegaconf import OmegaConf

from worldmodel.agents.explorers import UniformExplorer
from worldmodel.config.cli import Config, compose_config
from worldmodel.config.entry_point import entry_point
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import EnvError
from worldmodel.recording.collect import collect
from worldmodel.recording.recorder import place_of
from worldmodel.types import Spec

ROOT = Path(__file__).parents[1]

MINE = """
import gymnasium, numpy as np
from gymnasium.spaces import Box, Discrete

class Mine(gymnasium.Env):
    observation_space, action_space = Box(0, 255, (32, 32, 3), np.uint8), Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros((32, 32, 3), np.uint8), {"pose": "sitting", "episode": None}

    def step(self, action):
        self.t += 1
        return np.full((32, 32, 3), self.t, np.uint8), 0.0, self.t > 5, False, {"pose": None, "frame": [self]}
"""
COLLECT = """
from worldmodel import collect
from worldmodel.data.store import EpisodeStore

def record(id):
    words = ["env=gym", f"env.id={id}", "env.size=32", "collect.steps=20", "collect.workers=2", f"data={id}"]
    return collect.main(words), EpisodeStore.open(id).steps
"""
APPLICATION = (
    MINE
    + COLLECT
    + """
import dataclasses, hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

gymnasium.register("Mine-v0", entry_point=Mine)

@dataclasses.dataclass
class Settings:
    seed: int = 4

ConfigStore.instance().store(name="config", node=Settings)
ConfigStore.instance().store(group="env", name="gym", node={"id": "theirs"})

@hydra.main(version_base=None, config_name="config")
def main(settings):
    recorded = record("Mine-v0")
    print("result", recorded, settings.seed, GlobalHydra.instance().is_initialized(), HydraConfig.get().job.name)

main()
"""
)
NOTEBOOK = (
    MINE
    + COLLECT
    + """
import asyncio, os
from hydra import compose, initialize_config_dir

initialize_config_dir(os.path.abspath("conf"), version_base=None)
gymnasium.register("Main-v0", entry_point="__main__:Mine")

async def cell():
    return record("Main-v0")

print("result", asyncio.run(cell()), compose("config").seed)
"""
)


def run(tmp_path: Path, *command: str, text: str | None = None) -> list[str]:
    """The lines of results that a program prints in a folder with a configuration of its own."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/config.yaml").write_text("seed: 3\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], input=text, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("result")]


def test_a_hydra_application_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    assert run(tmp_path, "app.py") == ["result (0, 20) 4 True app"]


def test_a_script_that_is_its_own_module_is_refused_without_a_main_guard(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(MINE + """
from worldmodel import collect

if "Mine-v0" not in gymnasium.registry:
    gymnasium.register("Mine-v0", entry_point=Mine)
code = collect.main(["env=gym", "env.id=app:Mine-v0", "env.size=32", "collect.steps=20", "collect.workers=1"])
print("result", __name__, code)
""")  # fmt: skip
    assert run(tmp_path, "app.py") == ["result __main__ 2"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__"] == ["conf"]


def test_a_class_that_cannot_be_sent_by_value_is_reported_with_the_remedy(tmp_path: Path) -> None:
    """The body of a class within a function refers to names that are found only when it runs."""
    body = "\n".join(f"    {line}" for line in MINE.splitlines() if not line.startswith("from gymnasium"))
    (tmp_path / "app.py").write_text("from gymnasium.spaces import Box, Discrete\ndef make():\n" + body + """
    return Mine()
import gymnasium
gymnasium.register("Mine-v0", entry_point=lambda: make())
""" + COLLECT + """
import contextlib, io
with contextlib.redirect_stderr(io.StringIO()) as errors:
    code = collect.main(["env=gym", "env.id=Mine-v0", "env.size=32", "collect.steps=20"])
print("result", code, errors.getvalue().splitlines()[-1])
""")  # fmt: skip
    (line,) = run(tmp_path, "app.py")
    assert line.startswith("result 2 error: recording fails") and "'Box'" in line
    assert line.endswith("define and register it in a module: env.id=my_module:Mine-v0")


def test_a_notebook_has_a_running_loop_and_no_file(tmp_path: Path) -> None:
    assert run(tmp_path, "-", text=NOTEBOOK) == ["result (0, 20) 3"]


def test_composing_leaves_hydra_and_resolvers_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(Singleton._instances, GlobalHydra, raising=False)
    OmegaConf.register_new_resolver("slug", lambda text: "mine", replace=True)
    OmegaConf.register_new_resolver("now", lambda text: "later", replace=True)
    base = VersionBase.instance().version_base
    try:
        config = compose_config(["env=gym", "env.id=ALE/Pong-v5", "seed=5"])
        assert (config.seed, config.env.name) == (5, "ale-pong-v5")
        assert OmegaConf.create({"a": "${slug:x y} ${now:%Y}"}).a == "mine later"
        assert VersionBase.instance().version_base is base and GlobalHydra not in Singleton._instances
    finally:
        OmegaConf.clear_resolver("slug")
        OmegaConf.clear_resolver("now")


def test_what_cannot_be_sent_to_a_recorder_is_reported_with_the_remedy(tmp_path: Path) -> None:
    lock = threading.Lock()
    spec = Spec("locked", (3, 8, 8), ("stay",), 10.0)
    with EpisodeStore.writer(tmp_path, spec) as store, pytest.raises(EnvError, match=r"lock.*env\.id=my_module:MyEnv"):
        collect(store, lambda: lock, UniformExplorer(), 10, progress=False)  # type: ignore[arg-type,return-value]


def test_foreign_infos_are_no_places() -> None:
    frame = np.zeros((3, 8, 8), np.uint8)
    infos = [{}, {"pose": "sitting"}, {"pose": None}, {"pose": np.full(3, np.nan)}, {"episode": 1, "frame": object()}]
    assert len({place_of(frame, info) for info in infos}) == 1


def test_a_command_leaves_the_generators_of_the_program_as_they_were() -> None:
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1], random.getstate()

    @entry_point("test", None)
    def main(args: argparse.Namespace, config: Config) -> None:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)

    assert main([]) == 0
    assert torch.equal(torch.get_rng_state(), states[0]) and np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
