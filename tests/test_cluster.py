"""Recording with actors of Ray: exact numbers of steps although actors die, and nothing written is lost."""

from __future__ import annotations

import functools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting import SPEC, Counting

from worldmodel import collect as collect_module
from worldmodel import quickstart
from worldmodel.agents.explorers import UniformExplorer
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import EnvError
from worldmodel.recording import cluster
from worldmodel.recording.collect import Collected, CollectSettings

WITHOUT = "Ray is not installed: pip install 'worldmodel[ray]'"


class Killing(Counting):
    """The fifth step of the third episode kills, once, the actor to which this process belongs, or stops it: it is sent
    the signal ``number``, unless that is 0. ``flag``: a file, which the process that sends the signal removes."""

    def __init__(self, flag: str, number: int):
        super().__init__()
        self.flag, self.number, self.episodes = flag, number, 0

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.episodes += 1
        return super().reset(seed=seed)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.number and self.steps == 4 and self.episodes == 3:
            try:
                os.unlink(self.flag)
            except FileNotFoundError:
                pass
            else:
                time.sleep(1)  # until the actor has written the episodes before
                os.kill(os.getppid(), self.number)
                time.sleep(1000)
        return super().step(action)


@pytest.fixture(scope="module")
def ray() -> Iterator[str]:
    """The address of a Ray of two processors on this machine, to which this process is connected."""
    ray = pytest.importorskip("ray", reason=WITHOUT)
    for attempt in range(3):  # Ray gives its processes 30 seconds to start, which a busy machine may exceed
        try:
            ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=10**8, log_to_driver=False)
            break
        except Exception:
            ray.shutdown()
            if attempt == 2:
                raise
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def run(folder: Path, steps: int, number: int = 0, **settings: Any) -> tuple[Collected, list[EpisodeStore]]:
    flag = folder.with_name("flag")
    flag.touch()
    make_env = functools.partial(Killing, str(flag), number)
    options = CollectSettings(steps=steps, **{"actors": 2, "workers": 1, **settings})
    collected, places = cluster.collect_on_cluster(folder, SPEC, make_env, UniformExplorer(), options, 0, False)
    stores = [EpisodeStore.open(place.path) for place in places]
    assert [len(store) for store in stores] == [place.episodes for place in places]
    assert sorted(store.path for store in stores) == sorted(folder.iterdir())
    return collected, stores


def check(stores: list[EpisodeStore], steps: int) -> None:
    """That the stores hold so many steps of valid episodes, no two of which have the same seed."""
    assert sum(store.steps for store in stores) == steps and all(store.verify() == [] for store in stores)
    episodes = [store.episode(index) for store in stores for index in range(len(store))]
    seeds = {episode.frames[0, 0, 0].tobytes() for episode in episodes}
    assert len(seeds) == len(episodes)
    for episode in episodes:
        assert episode.frames[:, 0, 1, 0].tolist() == list(range(episode.steps + 1))
        assert episode.terminated == (episode.steps == 10)


def test_each_actor_records_its_share_and_a_further_call_adds_other_episodes(ray: str, tmp_path: Path) -> None:
    result, stores = run(tmp_path / "data", 101)
    assert result.steps == sum(result.actions) == 101 and result.warnings == []
    assert sorted(store.steps for store in stores) == [50, 51] and result.episodes == sum(map(len, stores)) == 11
    check(stores, 101)
    result, stores = run(tmp_path / "data", 30)
    assert result.steps == 30 and sorted(store.steps for store in stores) == [65, 66]
    check(stores, 131)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "Worker exit type"), (signal.SIGSTOP, "silent for 15 s")]
)
def test_an_actor_that_is_killed_or_hangs_is_replaced(ray: str, tmp_path: Path, number: int, reason: str) -> None:
    result, stores = run(tmp_path / "data", 200, number, timeout=15.0)
    pattern = rf"actor \d was replaced, its unfinished episodes are lost: .*{reason}"
    assert any(re.match(pattern, warning) for warning in result.warnings), result.warnings
    assert result.steps == sum(result.actions) == 200 and result.episodes == sum(map(len, stores))
    assert sorted(store.steps for store in stores) == [100, 100]  # the store of the killed actor is continued
    check(stores, 200)


def test_recordings_are_merged_and_wrong_settings_are_one_line(
    ray: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corridor = ["env=gym", "env.id=benchmarks.faults.corridor:FaultCorridor-v0", "env.size=16"]
    engine = ["collect.engine=ray", "collect.actors=2", "collect.workers=1", "collect.steps=60"]
    assert collect_module.main([*corridor, *engine, f"data={tmp_path / 'data'}"]) == 0
    out = capsys.readouterr().out
    assert "recorded  60 steps" in out and out.count("\nnow       ") == 2
    [line] = re.findall(r"merge +python -m worldmodel.collect (.*)", out)
    assert collect_module.main(shlex.split(line)) == 0
    merged = EpisodeStore.open(tmp_path / "data-merged")
    assert merged.steps == 60 and merged.verify() == []
    assert collect_module.main([*corridor, *engine, f"data={tmp_path / 'data-merged'}"]) == 2
    assert "data-merged holds a store; collect.engine=ray makes one for each actor" in capsys.readouterr().err
    assert collect_module.main([*corridor, *engine, f"data={tmp_path / 'data'}", "collect.workers=9"]) == 2
    assert (
        "collect.workers is 9, and no machine of the Ray cluster has more than 2 processors" in capsys.readouterr().err
    )
    assert quickstart.main([*corridor, *engine, f"data={tmp_path / 'new'}"]) == 2
    assert "collect.engine is ray, which makes several stores" in capsys.readouterr().err


def test_a_machine_without_the_package_is_one_line(ray: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Player:
        def __init__(self, *arguments: Any):
            raise ModuleNotFoundError("No module named 'worldmodel'")

        def record(self, share: object) -> Iterator[None]:
            yield

    monkeypatch.setattr(cluster, "Player", Player)
    with pytest.raises(EnvError, match=r"an actor cannot start \(ModuleNotFoundError: No module named 'worldmodel'\)"):
        run(tmp_path / "data", 10)


def test_a_missing_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    corridor = ["env=gym", "env.id=benchmarks.faults.corridor:FaultCorridor-v0", "env.size=16"]
    assert collect_module.main([*corridor, "collect.engine=ray", f"data={tmp_path / 'data'}"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: collect.engine=ray needs Ray: pip install 'worldmodel[ray]'")
    assert errors.count("\n") == 1 and not (tmp_path / "data").exists()


ENDLESS = """
import time
import gymnasium
from benchmarks.faults.corridor import Corridor

class Endless(Corridor):
    def step(self, action):
        time.sleep(0.02)
        frame, reward, _, _, info = super().step(action)
        return frame, reward, False, False, info

gymnasium.register("Endless-v0", Endless)
"""


def test_an_interruption_keeps_unfinished_episodes(ray: str, tmp_path: Path) -> None:
    """Through the command, on a cluster that runs already."""
    (tmp_path / "endless.py").write_text(ENDLESS)
    data, paths = tmp_path / "data", (Path(__file__).parents[1], tmp_path)
    command = [sys.executable, "-m", "worldmodel.collect", "env=gym", "env.id=endless:Endless-v0", "env.size=16",
               "collect.engine=ray", "collect.actors=2", "collect.workers=1", "collect.longest=20",
               "collect.steps=1000000", f"data={data}"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "RAY_ADDRESS": ray}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        if len([index for index in data.glob("*/index.jsonl") if index.stat().st_size]) == 2:
            break
        time.sleep(0.05)
    time.sleep(0.2)  # into the second episodes
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors, errors
    stores = [EpisodeStore.open(path) for path in data.iterdir()]
    assert len(stores) == 2
    for store in stores:
        assert store.verify() == [] and store.entries[-1].truncated
        assert all(entry.length == 20 for entry in store.entries[:-1])
    assert any(store.entries[-1].length < 20 for store in stores)
