"""Collecting: exact numbers of steps, honest flags, and nothing lost that need not be."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting import SPEC, Counting
from processes import wait_until_gone

from worldmodel import collect as collect_module
from worldmodel.agents.explorers import StickyExplorer, UniformExplorer
from worldmodel.data.store import EpisodeStore
from worldmodel.envs import make_frames
from worldmodel.errors import ConfigError, EnvError
from worldmodel.recording.collect import Collected, collect
from worldmodel.recording.recorder import Recording, place_of, receive, record_episode
from worldmodel.types import NO_ACTION, Spec

ROOT = Path(__file__).parents[1]


class Misbehaving(Counting):
    """Misbehaves once, on demand, at its fifth step.

    ``flag``: a file; the process that can remove it misbehaves (each file for one process once).
    """

    def __init__(self, length: int = 10, behaviour: str = "", flag: str = "", pause: float = 0.0):
        super().__init__(length)
        self.behaviour, self.flag, self.pause = behaviour, flag, pause

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(self.pause)
        if self.behaviour and self.steps == 4:
            self.misbehave()
        return super().step(action)

    def misbehave(self) -> None:
        if not self.behaviour.startswith("always"):
            try:
                os.unlink(self.flag)
            except FileNotFoundError:
                self.freeze()
                return
        if self.behaviour == "dies":
            with open(f"{self.flag}.compiler", "w") as file:
                print(subprocess.Popen(["sleep", "1000"]).pid, file=file)  # as simulators start compilers of maps
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.behaviour == "hangs":
            time.sleep(1000)
        elif self.behaviour in ("recovers", "always dies"):
            raise EnvError("the engine died")
        else:
            raise ValueError("broken\nenvironment")

    def freeze(self) -> None:
        """All of the process, where a second flag is up."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.flag}.frozen")
            os.kill(os.getpid(), signal.SIGSTOP)


def run(path: Path, steps: int, **settings: Any) -> Collected:
    make_env = functools.partial(Misbehaving, **{key: settings.pop(key) for key in list(settings) if key in KNOBS})
    with EpisodeStore.writer(path, SPEC) as store:
        return collect(store, make_env, UniformExplorer(), steps, progress=False, **settings)


KNOBS = ("length", "behaviour", "flag", "pause")


def seeds(store: EpisodeStore) -> list[bytes]:
    return [store.episode(index).frames[0, 0, 0].tobytes() for index in range(len(store))]


def test_exactly_the_steps_asked_for_are_recorded_and_seeds_never_repeat(tmp_path: Path) -> None:
    result = run(tmp_path, 101, workers=2)
    store = EpisodeStore.open(tmp_path)
    assert result.steps == store.steps == sum(result.actions) == 101 and result.episodes == len(store) == 11
    assert result.terminated == 10 and result.warnings == []
    for index, frames in enumerate(store.frame_counts):
        steps = frames - 1
        episode = store.episode(index)
        assert episode.frames[:, 0, 1, 0].tolist() == list(range(frames))
        assert (episode.actions[0], episode.rewards[0]) == (NO_ACTION, 0)
        assert np.array_equal(episode.rewards[1:], episode.actions[1:])
        assert (episode.terminated, episode.truncated) == (steps == 10, steps < 10)
    assert sorted(store.frame_counts - 1) == [1, *[10] * 10]  # the shares are 51 and 50
    run(tmp_path, 40, workers=1)
    store = EpisodeStore.open(tmp_path)
    assert store.steps == 141 and len(set(seeds(store))) == len(store) == 15


def test_one_worker_repeats_exactly(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / name, 50, workers=1, seed=seed)
    a, b, c = ((tmp_path / name / "shard-00000.frames").read_bytes() for name in "abc")
    assert a == b != c


def test_an_episode_of_a_script_ends_with_it(tmp_path: Path) -> None:
    corridor = ["env=gym", "env.id=benchmarks.faults.corridor:FaultCorridor-v0", "env.size=16", "collect.workers=1"]
    script = ["explorer=script", "explorer.script=left*3,right,left", "explorer.walk=2"]  # as typed
    assert collect_module.main([*corridor, *script, f"data={tmp_path}", "collect.steps=30"]) == 0
    store = EpisodeStore.open(tmp_path)
    episodes = [store.episode(index) for index in range(len(store))]
    whole = [episode for episode in episodes[:-1] if not episode.terminated]
    assert len(whole) > 1
    for episode in whole:  # there is no noop to stand still
        assert episode.truncated and episode.actions[3:].tolist() == [0, 0, 0, 1, 0] and episode.steps == 7


def test_long_episodes_are_cut_and_flagged(tmp_path: Path) -> None:
    run(tmp_path, 20, workers=1, length=10**6, longest=8)
    store = EpisodeStore.open(tmp_path)
    assert store.frame_counts.tolist() == [9, 9, 5]
    assert all(entry.truncated and not entry.terminated for entry in store.entries)


@pytest.mark.parametrize(
    ("behaviour", "warning"),
    [
        ("dies", "replaced, its episode is lost: ended with exit code -9"),
        ("raises", "replaced, its episode is lost: ValueError: broken"),
        ("recovers", "an episode was cut after 4 steps and marked truncated: the engine died"),
    ],
)
def test_a_worker_that_fails_costs_one_episode(tmp_path: Path, behaviour: str, warning: str) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    result = run(tmp_path / "data", 60, workers=2, behaviour=behaviour, flag=str(flag))
    assert [warning in line for line in result.warnings] == [True]
    store = EpisodeStore.open(tmp_path / "data")
    assert store.steps == 60 and store.verify() == [] and len(set(seeds(store))) == len(store)
    if behaviour == "dies":
        assert wait_until_gone(int((tmp_path / "flag.compiler").read_text()))
    cut = [index for index, entry in enumerate(store.entries) if entry.truncated and entry.length == 4]
    assert len(cut) == (behaviour == "recovers")
    assert all(store.episode(index).frames[:, 0, 1, 0].tolist() == [0, 1, 2, 3, 4] for index in cut)


def test_of_a_recorder_that_hangs_its_half_episode_is_kept(tmp_path: Path) -> None:
    """One waits for its simulator for ever, of the other the whole process stands still."""
    flag = tmp_path / "flag"
    flag.touch()
    (tmp_path / "flag.frozen").touch()
    result = run(tmp_path / "data", 60, workers=2, behaviour="hangs", flag=str(flag), timeout=3.0)
    told = sorted(re.sub(r"recorder \d", "recorder", line).split(";")[0] for line in result.warnings)
    assert told == [
        "an episode was cut after 4 steps and marked truncated: the environment did not answer any more",
        "recorder was replaced, its episode is lost: silent for 3 s",
        "recorder was replaced: silent for 3 s",
    ]
    store = EpisodeStore.open(tmp_path / "data")
    assert store.steps == 60 and store.verify() == [] and len(set(seeds(store))) == len(store)
    assert [entry.truncated for entry in store.entries if entry.length == 4] == [True]


def test_an_engine_that_always_dies_is_given_up_on_although_steps_are_recorded(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="failed 5 times in a row, the last time because: the engine died"):
        run(tmp_path, 10_000, workers=1, behaviour="always dies")


def test_an_environment_that_always_fails_is_given_up_on(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="failed 5 times in a row, the last time because: ValueError: broken"):
        run(tmp_path, 60, workers=2, behaviour="always fails")


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"workers": 0}, {"longest": 0}, {"seed": -1}])
def test_numbers_below_their_minimum_are_named(tmp_path: Path, wrong: dict[str, int]) -> None:
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(ConfigError, match=f"{name} is {value}; it must be at least"):
        run(tmp_path, **{"steps": 10, **wrong})


def test_a_cut_before_the_first_step_is_no_episode() -> None:
    env = Misbehaving()
    recording = record_episode(env, UniformExplorer(), np.random.default_rng(0), 100, lambda: False)
    assert recording is not None and recording.episode.steps == 1 and recording.episode.truncated
    assert record_episode(env, UniformExplorer(), np.random.default_rng(0), 0, lambda: True) is None


def test_places_are_poses_or_coarse_pictures() -> None:
    frame = np.zeros((3, 16, 16), np.uint8)
    pose = {"worldmodel_pose": np.array([10.0, -5.0, 31.0])}
    assert place_of(frame, pose) == place_of(frame + 200, {"worldmodel_pose": np.array([60.0, -60.0, 59.0])})
    assert place_of(frame, pose) != place_of(frame, {"worldmodel_pose": np.array([10.0, -5.0, 29.0])})
    brighter = frame.copy()
    brighter[:, :4, :4] = 100
    assert place_of(frame, {}) == place_of(frame + 3, {}) != place_of(brighter, {})


DYING = """
import os, signal
import gymnasium
from worldmodel.envs.vizdoom import VizdoomEnv
from processes import engines

class Dying(VizdoomEnv):
    steps = 0

    def step(self, action):
        Dying.steps += 1
        if Dying.steps == 250:  # between two steps: in the middle of one it may keep a lock, for which its client waits
            (engine,) = engines(os.getpid())
            os.kill(engine, signal.SIGKILL)
        return super().step(action)

gymnasium.register("Dying-v0", Dying)
"""


def test_a_simulator_that_is_killed_costs_the_rest_of_one_episode(tmp_path: Path) -> None:
    """Through the command: ViZDoom's process dies in the middle of an episode, and recording goes on."""
    (tmp_path / "dying.py").write_text(DYING)
    data, tests = tmp_path / "data", Path(__file__).parent
    gym = ("env=gym", "env.id=dying:Dying-v0", "+env.kwargs.size=32")
    more = ("collect.steps=600", "collect.workers=1", "collect.longest=200")
    process = start_command(data, *gym, *more, path_to=(tmp_path, tests))
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    told = re.findall(r"was cut after (\d+) steps and marked truncated: ViZDoom's engine died", errors)
    assert told and "recorded  600 steps" in out, errors
    store = EpisodeStore.open(data)
    assert store.steps == 600 and store.verify() == []
    assert (store.frame_counts - 1).tolist() == [200, int(told[0]), 200, 200 - int(told[0])] and int(told[0]) in (
        49,
        50,
    )
    assert all(entry.truncated and not entry.terminated for entry in store.entries)


def test_vizdoom_is_recorded_as_it_is_played(tmp_path: Path) -> None:
    make_env = functools.partial(
        make_frames, "worldmodel.envs:worldmodel/Vizdoom-v0", {"scenario": "my_way_home", "size": 32}, size=32
    )
    env = make_env()
    with EpisodeStore.writer(tmp_path, env.data_spec) as store:
        result = collect(store, make_env, StickyExplorer(), 120, workers=2, progress=False)
    assert result.steps == 120 and len(result.places) > 5 and "noop" in result.describe()
    # Played again from the seed that the first recorder began with, its actions lead to the very same frames.
    store = EpisodeStore.open(tmp_path)
    start = int(np.random.default_rng((0, 0, 0, 0)).integers(2**31))
    frame, _ = env.reset(seed=start)
    episode = next(one for one in map(store.episode, range(len(store))) if np.array_equal(one.frames[0], frame))
    for t in range(1, len(episode.frames)):
        frame, reward, *_ = env.step(int(episode.actions[t]))
        assert np.array_equal(frame, episode.frames[t]) and reward == pytest.approx(episode.rewards[t])
    env.close()


def start_command(path: Path, *more: str, path_to: tuple[Path, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "worldmodel.collect", f"data={path}", "env.size=32", *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path_to)))}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=path.parent, env=environment
    )


def wait_for_episodes(path: Path, count: int) -> None:
    index = path / "index.jsonl"
    for _ in range(1200):
        if index.exists() and len(index.read_bytes().splitlines()) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("nothing was recorded within a minute")


def processes_in(path: Path) -> list[str]:
    """Processes whose working directory is a folder: the command and its recorders."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.resolve() == path:
                found.append(link.parent.name)
        except OSError:
            continue
    return found


def test_an_interruption_in_the_middle_of_a_message_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> Recording:
        if not (tmp_path / "sent").exists():
            (tmp_path / "sent").touch()
            os.kill(os.getpid(), signal.SIGINT)
        return receive(*args)

    monkeypatch.setattr("worldmodel.recording.pool.receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "data", 1000)
    store = EpisodeStore.open(tmp_path / "data")
    assert 10 <= store.steps < 1000 and store.verify() == []


SLOW = """
import os, pathlib, time
import gymnasium
from worldmodel.recording import pool
from worldmodel.envs.vizdoom import VizdoomEnv

pool.STOP_SECONDS = 60  # also in the command, which makes the environment to read its properties

class Slow(VizdoomEnv):
    # Two short episodes, and a third that waits in its middle, so that a signal always meets an unfinished one.
    episodes = steps = 0

    def reset(self, **settings):
        self.episodes, self.steps = self.episodes + 1, 0
        return super().reset(**settings)

    def step(self, action):
        frame, reward, _, _, info = super().step(action)
        self.steps += 1
        if self.episodes == 3 and self.steps > 5:
            pathlib.Path(__file__).with_name(f"waiting-{os.getpid()}").touch()
            time.sleep(0.2)
        return frame, reward, False, self.episodes < 3 and self.steps == 20, info

gymnasium.register("Slow-v0", Slow)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interruption_keeps_what_was_recorded(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    folder = tmp_path / "here"
    folder.mkdir()
    data, gym = folder / "data", ("env=gym", "env.id=slow:Slow-v0", "+env.kwargs.size=32")
    process = start_command(data, *gym, "collect.steps=1000000", path_to=(tmp_path,))
    while process.poll() is None and len(list(tmp_path.glob("waiting-*"))) < 2:
        time.sleep(0.05)
    wait_for_episodes(data, 4)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), errors
    if number != signal.SIGKILL:
        assert "interrupted" in errors and "Traceback" not in errors
    with EpisodeStore.writer(data, EpisodeStore.open(data).spec) as store:  # the lock is free
        assert store.verify() == [] and store.damaged == [] and all(entry.truncated for entry in store.entries)
        lengths = sorted(entry.length for entry in store.entries)
        assert lengths.count(20) == 4 and min(lengths) > 5
        assert len(lengths) == (4 if number == signal.SIGKILL else 6)  # with the unfinished ones
    for _ in range(100):
        if not processes_in(folder):
            break
        time.sleep(0.05)
    assert processes_in(folder) == []
    assert [path.name for path in folder.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["env=gym", "env.id=Nowhere-v0"], "cannot make environment 'Nowhere-v0'"),
        (["env=gym", "env.id=Pendulum-v1"], "no image"),
        (["env=gym", "env.id=Pendulum-v1", "env.actions={bins: 1}"], "cut into 2 or more"),
        (["env=vizdoom/any"], "the environment needs env.kwargs.scenario=…\n"),
        (["env=gym", "env.id=CartPole-v1"], "no image"),
        (["env=gym"], "the environment needs env.id=…\n"),
        (["env=doom"], "doom"),
        (["env.kwargs.scenario=nowhere"], "unknown ViZDoom scenario 'nowhere'"),
        (["explorer.turn_away=[0,1]"], "explorer.turn_away is [0, 1]; an entry is 0; it must be at least 1"),
        (["--steps", "0"], "--steps is 0; it must be at least 1"),
        (["--workers", "0"], "--workers is 0; it must be at least 1"),
        (["collect.timeout=0"], "collect.timeout is 0; it must be above 0"),
        (["env.size=0"], "env.size is 0; it must be at least 1"),
        (["env.action_names=left"], "env.action_names is 'left'; it must be a list"),
        (["env.size=7"], "no image of 8-bit pixels, 16×16 or more"),
        (["env.kwargs.frame_skip=0"], "env.kwargs.frame_skip is 0; it must be at least 1"),
        (["env.source=nowhere"], "env.source is 'nowhere'; choose observation, render"),
        (["explorer.turns=3"], "explorer.turns is 3; it must be a list"),
        (["explorer=script"], "this explorer needs explorer.script=…\n"),
        (
            ["explorer=script", "explorer.script=left*2,jump"],
            "unknown action 'jump'; choose noop, forward, left, right",
        ),
        (["explorer.loops=['left*x']"], "explorer.loops has 'left*x': count 'x' in 'left*x'"),
        (["explorer=script", "explorer.script=left", "explorer.walk=-1"], "explorer.walk is -1; it must be at least 0"),
        (["env.loops=left*24"], "env.loops is 'left*24'; it must be a list"),
        (["explorer._target_=nowhere.X"], "explorer._target_ is 'nowhere.X', which cannot be imported: "),
        (["data=/dev/null"], "/dev/null is no folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    argv = [f"data={tmp_path / 'data'}", *arguments]
    code = collect_module.main(argv)
    errors = capsys.readouterr().err
    assert code == 2 and message in errors and errors.count("\n") == 1 and errors.startswith("error: ")


def test_appending_sets_a_damaged_episode_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tiny_envs.py").write_text(TINY)
    argv = [f"data={tmp_path / 'data'}", "env=gym", "env.id=tiny_envs:Tiny-v0", "env.size=16", "collect.workers=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        sys.modules.pop("tiny_envs", None)
        assert collect_module.main([*argv, "--steps", "30"]) == 0
        with open(tmp_path / "data" / "shard-00000.frames", "r+b") as file:
            file.seek(11 * 3 * 16 * 16)
            file.write(b"garbage")
        assert collect_module.main([*argv, "--steps", "10"]) == 0
    assert "now       30 steps in 3 episodes" in capsys.readouterr().out
    assert caplog.text.count("left out") == 1 and "episode 1 in" in caplog.text
    assert [entry.episode for entry in EpisodeStore.open(tmp_path / "data").entries] == [0, 2, 3]


TINY = """
import gymnasium, numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Text

class Tiny(gymnasium.Env):
    observation_space = Box(0, 255, (16, 16, 3), np.uint8)
    action_space = Discrete(2)
    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self.picture(), {}
    def step(self, action):
        self.steps += 1
        return self.picture(), 0.0, self.steps == 10, False, {}
    def picture(self):
        return self.observation_space.sample()

class Raises(Tiny):
    def __init__(self):
        raise ZeroDivisionError("no\\nluck")

class Hollow(gymnasium.Env):
    pass

class NoReset(Tiny):
    def reset(self, **settings):
        raise OSError("the simulator is not there")

class FourParts(Tiny):
    def step(self, action):
        return self.picture(), 0.0, False, {}

class OtherShape(Tiny):
    def picture(self):
        return np.zeros((16, 16, 5), np.uint8)

class Flat(Tiny):
    def picture(self):
        return np.zeros(16, np.uint8)

class Nothing(Tiny):
    def picture(self):
        return None

class Spoken(Tiny):
    action_space = Text(3)

class Boundless(Tiny):
    action_space = Box(-np.inf, np.inf, (2,))

class Numbers(Tiny):
    observation_space = Dict(a=Box(0, 1, (3,)), b=Discrete(3))

class Two(Tiny):
    observation_space = Dict(left=Box(0, 255, (16, 16, 3), np.uint8), right=Box(0, 255, (16, 16), np.uint8))

for name, kind in list(globals().items()):
    if isinstance(kind, type) and issubclass(kind, gymnasium.Env):
        gymnasium.register(f"{name}-v0", kind)
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_envs:Raises", "cannot make environment 'tiny_envs:Raises-v0': ZeroDivisionError: no luck"),
        ("tiny_envs:Hollow", "AttributeError: 'Hollow' object has no attribute 'action_space'"),
        ("tiny_envs:Absent", "cannot make environment 'tiny_envs:Absent-v0': Environment `Absent` doesn't exist"),
        ("absent:Tiny", "needs the Python package 'absent', which is not installed"),
        ("broken:Tiny", "cannot make environment 'broken:Tiny-v0': SyntaxError"),
        ("tiny_envs:NoReset", "recording fails at its first step: OSError: the simulator is not there"),
        ("tiny_envs:FourParts", "FourParts-v0, step 1 of the episode with seed"),
        ("tiny_envs:FourParts", "step() returned a tuple of 4 values; gymnasium expects step(action) → (observation, "),
        ("Mine", "if your own module registers it, name the module, which is then imported: env.id=my_module:Mine-v0"),
        ("tiny_envs:OtherShape", "the observation is an image of shape (16, 16, 5), but its space has 3 channels"),
        ("tiny_envs:Flat", "the observation is an image of shape (16,), but its space has 3 channels"),
        ("tiny_envs:Nothing", "the observation is None; an image needs integers from 0 to 255 (uint8)"),
        ("tiny_envs:Spoken", "has actions Text(1, 3"),
        ("tiny_envs:Boundless", "without bounds, Box(-inf, inf, (2,), float32), which cannot be cut into bins; env"),
        ("tiny_envs:Numbers", "(H, W, C) or (C, H, W); env.source=render"),
        ("tiny_envs:Two", "observes several images (left, right); wrap it"),
    ],
)
def test_an_environment_that_does_not_fit_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "tiny_envs.py").write_text(TINY)
    (tmp_path / "broken.py").write_text("x = = 1")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("tiny_envs", None)
    argv = [f"data={tmp_path / 'new' / 'data'}", "env=gym", f"env.id={name}-v0", "env.size=16", "collect.steps=20"]
    assert collect_module.main([*argv, "collect.workers=1"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("recording  ")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not (tmp_path / "new").exists()


def test_a_store_that_holds_nothing_yet_takes_another_spec(tmp_path: Path) -> None:
    other = Spec("other", (1, 9, 9), ("a",), 1.0)
    EpisodeStore.writer(tmp_path, other).close()  # as a recording that was killed leaves it
    run(tmp_path, 5, workers=1)
    assert EpisodeStore.open(tmp_path).spec == SPEC


def test_data_of_another_environment_is_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, 5, workers=1)
    argv = [f"data={tmp_path}", "--steps", "5"]
    assert collect_module.main(argv) == 2
    assert "choose another folder with data=" in capsys.readouterr().err
