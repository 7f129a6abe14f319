"""Environments: ViZDoom's traps one by one, with the real engine, and the wrapper for all others."""

from __future__ import annotations

import enum
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text
from processes import engines, wait_until_gone
from tiny import SMALL_PRIOR, SMALL_TOKENIZER

from worldmodel.__main__ import main
from worldmodel.data.pictures import resize
from worldmodel.envs import FrameEnv, make_frames
from worldmodel.envs.vizdoom import VizdoomEnv
from worldmodel.errors import ConfigError, EnvError, WorldModelError

ROOT = Path(__file__).parents[1]
NOOP, FORWARD, LEFT, RIGHT = range(4)


@pytest.fixture
def env() -> Iterator[VizdoomEnv]:
    env = VizdoomEnv()
    yield env
    env.close()


def test_it_is_made_by_its_id() -> None:
    env = gymnasium.make(
        "worldmodel.envs:worldmodel/Vizdoom-v0",
        scenario="my_way_home",
        size=48,
        frame_skip=4,
        turn_degrees=15,
        disable_env_checker=True,
    )
    observation, info = env.reset(seed=0)
    assert env.observation_space == Box(0, 255, (48, 48, 3), np.uint8) and env.action_space == Discrete(4)
    assert observation in env.observation_space and info["worldmodel_pose"].shape == (3,)
    assert env.metadata["action_names"] == ("noop", "forward", "left", "right")
    assert env.metadata["render_fps"] == 35 / 4
    env.close()


@pytest.mark.parametrize(("frame_skip", "degrees"), [(4, 15), (3, 10), (1, 30)])
def test_a_turn_is_the_same_angle_every_time(frame_skip: int, degrees: float) -> None:
    env = VizdoomEnv(frame_skip=frame_skip, turn_degrees=degrees)
    _, info = env.reset(seed=1)
    angle = info["worldmodel_pose"][2]
    for action, sign in [(LEFT, 1)] * 5 + [(RIGHT, -1)] * 5 + [(NOOP, 0), (LEFT, 1), (FORWARD, 0)]:
        *_, info = env.step(action)
        turned = (info["worldmodel_pose"][2] - angle + 180) % 360 - 180
        assert turned == pytest.approx(sign * degrees, abs=0.05)
        angle = info["worldmodel_pose"][2]
    env.close()


def test_forward_walks_where_one_looks(env: VizdoomEnv) -> None:
    _, before = env.reset(seed=2)  # a place with room in front
    for _ in range(4):
        *_, info = env.step(FORWARD)
    x, y = info["worldmodel_pose"][:2] - before["worldmodel_pose"][:2]
    assert np.hypot(x, y) > 20
    assert np.degrees(np.arctan2(y, x)) % 360 == pytest.approx(before["worldmodel_pose"][2], abs=2)


def test_the_same_seed_plays_the_same_episodes(env: VizdoomEnv) -> None:
    def play(env: VizdoomEnv, seed: int) -> np.ndarray:
        actions = np.random.default_rng(0).integers(4, size=20)
        seen = []
        for episode in range(2):  # the second episode is fixed by the seed of the first
            seen.append(env.reset(seed=seed if episode == 0 else None)[0])
            seen += [env.step(int(action))[0] for action in actions]
        return np.stack(seen)

    first = play(env, 5)
    assert np.array_equal(first, play(env, 5))
    assert not np.array_equal(first, play(env, 6))
    assert not np.array_equal(first[0], first[21])
    other = VizdoomEnv()
    assert np.array_equal(first, play(other, 5))
    other.close()


def test_death_is_terminal_and_shows_the_last_picture() -> None:
    env = VizdoomEnv("health_gathering")
    observation, _ = env.reset(seed=0)
    for _ in range(500):
        before = observation
        observation, reward, terminated, truncated, _ = env.step(NOOP)
        if terminated or truncated:
            break
    assert terminated and not truncated and reward < -50
    assert np.array_equal(observation, before) and observation.max() > 50
    env.close()


def test_a_timeout_is_a_truncation_with_a_picture() -> None:
    env = VizdoomEnv("basic")
    env.reset(seed=0)
    steps, terminated, truncated = 0, False, False
    while not terminated and not truncated:
        observation, _, terminated, truncated, info = env.step(NOOP)
        steps += 1
    assert truncated and not terminated and "worldmodel_pose" in info
    assert 70 <= steps <= 75  # 300 tics, some of which pass before the first step
    assert observation.max() > 50
    env.close()


def test_nothing_is_left_in_the_working_directory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = VizdoomEnv()
    env.reset(seed=0)
    env.step(FORWARD)
    env.close()
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_dies_is_an_error_and_reset_recovers(env: VizdoomEnv) -> None:
    first, _ = env.reset(seed=7)
    (engine,) = engines(os.getpid())
    os.kill(engine, signal.SIGKILL)
    with pytest.raises(EnvError, match="engine died"):
        for _ in range(3):
            env.step(FORWARD)
    again, _ = env.reset(seed=7)
    assert np.array_equal(first, again)
    assert env.step(FORWARD)[0].shape == (64, 64, 3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_engine_dies_with_its_parent(number: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import worldmodel.envs.vizdoom, time\n"
        "env = worldmodel.envs.vizdoom.VizdoomEnv()\n"
        "env.reset(seed=0)\n"
        "print('ready', flush=True)\n"
        "while True: env.step(1); time.sleep(0.01)\n"
    )
    memory = Path("/dev/shm")
    before = {path.name for path in memory.glob("ViZDoom*")}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    (engine,) = engines(process.pid)
    process.send_signal(number)
    assert process.wait(10) == -number
    assert wait_until_gone(engine)
    assert list(tmp_path.iterdir()) == []
    # Engines of other processes show their names for a moment while they start: what matters is what stays.
    deadline = time.monotonic() + 10
    while (left := {path.name for path in memory.glob("ViZDoom*")} - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_other_scenarios_have_their_own_actions() -> None:
    assert VizdoomEnv("basic").metadata["action_names"] == ("noop", "move_left", "move_right", "attack")
    assert VizdoomEnv("health_gathering").metadata["action_names"] == ("noop", "left", "right", "forward")
    chosen = VizdoomEnv("deathmatch", buttons=["TURN_LEFT_RIGHT_DELTA", "ATTACK", "LOOK_UP_DOWN_DELTA"])
    assert chosen.metadata["action_names"] == ("noop", "left", "right", "attack")
    held = VizdoomEnv("my_way_home", combine=[["MOVE_FORWARD", "TURN_LEFT"], ["forward", "right"]])
    assert held.metadata["action_names"] == ("noop", "forward", "left", "right", "forward+left", "forward+right")
    every = VizdoomEnv("deadly_corridor", combine=True).metadata["action_names"]
    assert len(every) == 2 * 3 * 3 * 3 and "move_left+attack+forward+right" in every and "left+right" not in every
    doom = VizdoomEnv("health_gathering", turn_degrees=0)
    assert doom.metadata["action_names"] == ("noop", "left", "right", "forward")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scenario": "nowhere"}, "unknown ViZDoom scenario 'nowhere'; the bundled ones are basic, .*my_way_home"),
        ({"buttons": ["FLY"]}, "unknown ViZDoom button 'FLY'"),
        ({"buttons": ["LOOK_UP_DOWN_DELTA"]}, "no discrete action"),
        ({"scenario": "cig"}, "unknown ViZDoom scenario 'cig'"),  # for several players: alone it would crash
        ({"map": "E1M1"}, "the scenario my_way_home has no map 'E1M1'; it has MAP01"),
        ({"scenario": "deathmatch", "combine": True}, "combine=true makes .* more than 64; choose fewer buttons"),
        ({"combine": [["MOVE_FORWARD", "ATTACK"]]}, "combine: there is no button 'ATTACK' in use; choose MOVE_FORWARD"),
        ({"combine": [["left", "TURN_RIGHT"]]}, "combine: left and right cannot be pressed together"),
        ({"combine": ["forward"]}, "combine is .*; an entry is 'forward'; it must be a list"),
        (
            {"gauges": {"HELTH": 100}},
            "gauges: unknown game variable 'HELTH'; choose from vizdoom.GameVariable: ",
        ),
        ({"gauges": {"HEALTH": 0}}, "gauges.HEALTH is 0; it must be above 0"),
        ({"gauges": {"HEALTH": True}}, "gauges.HEALTH is True; it must be a finite number"),
        ({"gauges": ["HEALTH"]}, "gauges is .'HEALTH'.; it must be values by name"),
        ({"gauges": dict.fromkeys(("HEALTH", *(f"AMMO{i}" for i in range(1, 5))), 1)}, "gauges: 5 would hide .* 4 fit"),
        ({"frame_skip": 0}, "frame_skip is 0; it must be at least 1"),
        ({"size": 0}, "size is 0; it must be at least 1"),
        ({"turn_degrees": 180}, "turn_degrees is 180; it must be below 180"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WorldModelError, match=message):
        VizdoomEnv(**settings)


def test_combined_actions_do_both(env: VizdoomEnv) -> None:
    both = VizdoomEnv(combine=[["forward", "left"]])
    _, before = both.reset(seed=2)
    for _ in range(4):
        *_, after = both.step(4)
    assert np.hypot(*(after["worldmodel_pose"] - before["worldmodel_pose"])[:2]) > 15
    assert (after["worldmodel_pose"][2] - before["worldmodel_pose"][2]) % 360 == pytest.approx(60, abs=0.2)
    both.close()


def test_the_picture_is_the_view_alone() -> None:
    """A game whose own settings draw a status bar shows none, and its weapon only where it is asked for."""
    shown = {}
    for weapon in (True, False):
        env = VizdoomEnv("freedoom2", size=120, weapon=weapon, map="MAP02")
        env.reset(seed=0)
        for _ in range(8):  # until the weapon is raised
            shown[weapon], *_ = env.step(NOOP)
        env.close()
    differs = (shown[True] != shown[False]).any(2)
    assert differs[80:, 40:80].mean() > 0.2 and not differs[:40].any()
    floor = shown[False][104:]  # gray; digits of Doom's bar would be red
    assert np.ptp(floor, axis=2).max() < 10


def test_gauges_are_as_long_as_what_they_measure() -> None:
    """On acid, health falls from 100 by 8 at a time; nobody has bullets; render shows the same bars, the view none."""
    env = VizdoomEnv("health_gathering", gauges={"HEALTH": 100, "ammo2": 50}, render_mode="rgb_array")
    plain = VizdoomEnv("health_gathering")
    (observation, _), (view, _) = env.reset(seed=1), plain.reset(seed=1)
    lengths = [64]
    for _ in range(40):
        red = (observation[-8:] == (255, 72, 72)).all(2)
        assert (red == red[0]).all() and (observation[-16:-8] == 0).all()
        assert np.array_equal(observation[:-16], view[:-16])
        lengths.append(red[0].sum())
        assert red[0, : lengths[-1]].all()
        (observation, *_), (view, *_) = env.step(NOOP), plain.step(NOOP)
    assert sorted(set(lengths)) == [round(0.64 * health) for health in (60, 68, 76, 84, 92, 100)]
    picture = env.render()
    assert picture is not None and (picture[-15:, :60] == (255, 72, 72)).all() and (picture[-30:-15] == 0).all()
    env.close()
    plain.close()


def test_render_shows_the_engine_s_picture() -> None:
    env = VizdoomEnv(render_mode="rgb_array")
    first, _ = env.reset(seed=0)
    picture = env.render()
    assert picture is not None and picture.shape == (120, 160, 3)
    assert np.array_equal(resize(picture, 64), first)
    env.close()


# ------------------------------------------------------------------------------------------------------- the wrapper


class Painted(gymnasium.Env[Any, Any]):
    """Shows whatever its observation space asks for, all pixels equal to the number of steps taken."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012

    def __init__(self, space: gymnasium.Space[Any], action_space: Any = None, render_mode: str | None = None):
        self.observation_space = space
        self.action_space = action_space or Discrete(3)
        self.render_mode = render_mode

    def observation(self) -> Any:
        parts = self.observation_space
        if isinstance(parts, Dict):
            return {key: np.full(part.shape, self.steps, part.dtype) for key, part in parts.spaces.items()}
        return np.full(parts.shape, self.steps, parts.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return self.observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation(), 1.0, False, self.steps == 5, {}

    def render(self) -> Any:
        return np.full((30, 20, 3), 10 * self.steps, np.uint8)


def image(*shape: int) -> Box:
    return Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize(
    ("space", "channels"),
    [
        (image(40, 30, 3), 3),
        (image(40, 30), 1),
        (image(16, 16, 1), 1),
        (image(4, 84, 84), 4),
        (image(84, 84, 6), 6),
        (Dict(image=image(32, 32, 3), position=Box(0, 1, (2,), np.float32)), 3),
    ],
)
def test_any_picture_becomes_a_frame(space: gymnasium.Space[Any], channels: int) -> None:
    env = FrameEnv(Painted(space), size=24)
    frame, _ = env.reset()
    assert frame.shape == (channels, 24, 24) == env.data_spec.frame_shape and frame.flags.c_contiguous
    for step in range(1, 6):
        frame, reward, terminated, truncated, _ = env.step(0)
        assert frame in env.observation_space and (frame == step).all()
        assert (reward, terminated, truncated) == (1.0, False, step == 5)
    assert env.data_spec.rate == 12


def test_what_it_renders_can_be_the_frame() -> None:
    env = FrameEnv(Painted(Box(0, 1, (2,)), render_mode="rgb_array"), size=16, source="render")
    env.reset()
    assert (env.step(0)[0] == 10).all() and env.data_spec.frame_shape == (3, 16, 16)
    with pytest.raises(EnvError, match="cannot render images"):
        FrameEnv(Painted(Box(0, 1, (2,))), size=16, source="render")
    with pytest.raises(ConfigError, match="source is 'screen'; choose observation, render"):
        FrameEnv(Painted(image(16, 16)), size=16, source="screen")


@pytest.mark.parametrize(
    ("space", "actions", "message"),
    [
        (image(32, 32, 3), Text(3), "wrap it so that they are Discrete, MultiDiscrete, MultiBinary or Box"),
        (image(32, 32, 3), Box(-np.inf, 1, (2,)), "actions without bounds, .* env.actions={left: .* names the actions"),
        (image(32, 32, 3), Box(-1, 1, (400,)), "801 one at a time; env.actions={left: "),
        (image(32, 32, 3), Discrete(10**9), "more than 10,000 actions; env.actions={up: 2, down: 3} chooses"),
        (Box(0, 1, (32, 32, 3)), None, r"no image of 8-bit pixels, 16×16 or more, .*; env\.source=render"),
        (Dict(image=image(7, 7, 3)), None, "no image"),
        (Dict(left=image(32, 32), right=image(32, 32)), None, r"several images \(left, right\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(space: Any, actions: Any, message: str) -> None:
    with pytest.raises(EnvError, match=message) as caught:
        FrameEnv(Painted(space, actions), size=16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, -3, 1.5, "abc"])
def test_a_size_that_no_frame_has_is_refused(size: Any) -> None:
    with pytest.raises(ConfigError, match=f"size is {size!r}; it must be (at least 1|a whole number)"):
        FrameEnv(Painted(image(32, 32)), size)


ACTIONS = [
    (Discrete(3, start=5), None, {"5": 5, "6": 6, "7": 7}),
    (Discrete(6), {"up": 2, "down": 3}, {"up": 2, "down": 3}),
    (MultiDiscrete([3, 2]), None, {"noop": [0, 0], "0_1": [0, 1], "1_0": [1, 0], "2_1": [2, 1]}),
    (MultiDiscrete([5, 5, 5]), None, {"noop": [0, 0, 0], "axis0_1": [1, 0, 0], "axis2_4": [0, 0, 4]}),
    (MultiBinary(3), None, {"noop": [0, 0, 0], "0_1_0": [0, 1, 0], "1_1_1": [1, 1, 1]}),
    (Box(-1, 1, (2,)), None, {"noop": [0, 0], "0_2": [-1, 1], "1_0": [0, -1]}),
    (Box(np.float32([-1, 2]), np.float32([1, 4])), {"bins": 5}, {"noop": [0, 3], "0_1": [-1, 2.5], "4_4": [1, 4]}),
    (Box(-1, 1, (2,)), {"bins": 2}, {"noop": [0, 0], "0_1": [-1, 1], "1_1": [1, 1]}),
    (Box(-1, 1, (8,)), None, {"noop": [0] * 8, "axis0_0": [-1, *[0] * 7], "axis7_2": [*[0] * 7, 1]}),
    (Box(0, 10, (2,), np.int64), None, {"noop": [0, 0], "1_2": [5, 10]}),
    (Box(-1, 1, (2,)), {"left": [-1, 0], "gas": [0, 0.5]}, {"left": [-1, 0], "gas": [0, 0.5]}),
]


@pytest.mark.parametrize(("space", "wanted", "some"), ACTIONS, ids=lambda value: str(value)[:40])
def test_every_action_is_a_number_with_a_name(space: Any, wanted: Any, some: dict[str, Any]) -> None:
    env = FrameEnv(Painted(image(16, 16), space), 16, actions=wanted)
    names = env.data_spec.action_names
    assert env.action_space == Discrete(len(names)) and len(names) == len(set(names))
    env.reset()
    taken = []
    env.env.step = lambda action: taken.append(action) or (np.zeros((16, 16), np.uint8), 0.0, False, False, {})
    for number in range(len(names)):
        env.step(number)
    assert all(space.contains(action) for action in taken)
    assert all(np.allclose(taken[names.index(name)], value) for name, value in some.items())
    assert len({np.asarray(action).tobytes() for action in taken}) == len(names)


def test_the_numbers_of_combinations() -> None:
    counts = [len(FrameEnv(Painted(image(16, 16), space), 16, actions=how).data_spec.action_names)
              for space, how, _ in ACTIONS]  # fmt: skip
    assert counts == [3, 2, 6, 13, 8, 9, 25, 5, 17, 9, 2]  # at rest between its bins a Box has one more


@pytest.mark.parametrize(
    ("space", "wanted", "message"),
    [
        (Box(-1, 1, (2,)), {"left": [-2, 0]}, r"env.actions.left=\[-2, 0\] is none of .* Box\(-1.0, 1.0, \(2,\)"),
        (Box(-1, 1, (2,)), {"left": [0]}, r"env.actions.left=\[0\] is none of"),
        (Box(-1, 1, (2,)), {"left": "west"}, "env.actions.left=west is none of"),
        (Discrete(3), {"jump": 3}, r"env.actions.jump=3 is none of .* Discrete\(3\)"),
        (Discrete(3), {"bins": 2}, "env.actions.bins=2: a Box is cut into 2 or more"),
        (Box(-1, 1, (2,)), {"bins": 1}, "env.actions.bins=1"),
        (Discrete(3), {}, "names no action"),
        (Discrete(3), "left", "actions is 'left'; it must be values by name"),
    ],
)
def test_actions_that_are_not_there_are_named(space: Any, wanted: Any, message: str) -> None:
    with pytest.raises(WorldModelError, match=message):
        FrameEnv(Painted(image(16, 16), space), 16, actions=wanted)


def test_names_of_actions_come_from_the_best_source() -> None:
    env = Painted(image(16, 16))
    assert FrameEnv(env, 16).data_spec.action_names == ("0", "1", "2")
    env.actions = enum.IntEnum("Actions", {"Left": 0, "Right": 1, "Jump": 2})  # type: ignore[attr-defined]
    assert FrameEnv(env, 16).data_spec.action_names == ("left", "right", "jump")
    env.get_action_meanings = lambda: ["NOOP", "UP", "DOWN"]  # type: ignore[attr-defined]
    assert FrameEnv(env, 16).data_spec.action_names == ("noop", "up", "down")
    env.metadata = {**env.metadata, "action_names": ["a", "b", "c"]}
    assert FrameEnv(env, 16).data_spec.action_names == ("a", "b", "c")
    assert FrameEnv(env, 16, action_names=["x", "y", "z"]).data_spec.action_names == ("x", "y", "z")
    for wrong in (["x", "y"], ["x", "y", "y"]):
        with pytest.raises(EnvError, match="3 actions, which need as many different names"):
            FrameEnv(env, 16, action_names=wrong)


@pytest.mark.parametrize(
    ("id", "kwargs", "message"),
    [
        ("Nowhere-v0", {}, "cannot make environment 'Nowhere-v0': .*exist"),
        ("not an id", {}, "cannot make environment"),
        ("nopackage:Nowhere-v0", {}, "needs the Python package 'nopackage'"),
        ("worldmodel.envs:worldmodel/Vizdoom-v0", {"colour": 1}, "unexpected keyword argument 'colour'"),
        ("worldmodel.envs:worldmodel/Vizdoom-v0", {"scenario": "nowhere"}, "unknown ViZDoom scenario"),
        ("CartPole-v1", {}, "no image"),
        ("Pendulum-v1", {}, "no image"),
    ],
)
def test_environments_that_cannot_be_made_are_named(id: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_frames(id, kwargs)


def test_the_spec_can_make_the_environment_again() -> None:
    env = make_frames("worldmodel.envs:worldmodel/Vizdoom-v0", {"scenario": "basic", "size": 32}, size=32)
    spec = env.data_spec
    assert spec.env_kwargs == {"scenario": "basic", "size": 32} and spec.rate == 8.75
    assert make_frames(spec.env_id, spec.env_kwargs, size=32).data_spec == spec


@pytest.mark.parametrize(
    ("module", "id", "source", "name"),
    [("ale_py", "ALE/Pong-v5", "observation", "fire"), ("minigrid", "MiniGrid-Empty-5x5-v0", "render", "forward")],
)
def test_well_known_packages_need_no_prefix(module: str, id: str, source: str, name: str) -> None:
    pytest.importorskip(module)
    env = make_frames(id, size=48, source=source)
    frame, _ = env.reset(seed=0)
    assert frame.shape == (3, 48, 48) and frame.std() > 1 and name in env.data_spec.action_names
    env.close()


def test_rendered_pictures_need_no_screen() -> None:
    pytest.importorskip("pygame")  # what CartPole draws with
    code = (
        "import worldmodel.envs\n"
        "env = worldmodel.envs.make_frames('CartPole-v1', size=48, source='render')\n"
        "frame, _ = env.reset(seed=0)\n"
        "print(frame.shape, frame.min() < 50, frame.max(), env.data_spec.action_names, env.data_spec.rate)\n"
    )
    screens = ("XDG_RUNTIME_DIR", "SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY")
    environment = {k: v for k, v in os.environ.items() if k not in screens} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "(3, 48, 48) True 255 ('0', '1') 50.0\n"
    assert "XDG_RUNTIME_DIR" not in done.stderr


OWN_ENVIRONMENT = '''
import gymnasium
import numpy as np

class Ring(gymnasium.Env):
    """A white column that the actions move around."""
    observation_space = gymnasium.spaces.Box(0, 255, (40, 32, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)
    metadata = {"action_names": ("stay", "left", "right")}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(8))
        return self.picture(), {}

    def step(self, action):
        self.place = (self.place + (0, -1, 1)[action]) % 8
        return self.picture(), float(self.place == 0), False, False, {}

    def picture(self):
        picture = np.zeros((40, 32, 3), np.uint8)
        picture[:, 4 * self.place : 4 * self.place + 4] = 255
        return picture

gymnasium.register(id="Ring-v0", entry_point="own_environment:Ring", max_episode_steps=30)
'''


def test_an_own_environment_goes_through_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_environment.py").write_text(OWN_ENVIRONMENT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)  # for the processes that record
    monkeypatch.chdir(tmp_path)
    gym = ["env=gym", "env.id=own_environment:Ring-v0", "env.size=16"]
    tiny = [*SMALL_TOKENIZER, *SMALL_PRIOR, "tokenizer.num_codes=16", "device=cpu"]
    assert main(["collect", *gym, "--steps", "300", "--workers", "1"]) == 0
    assert main(["train", *gym, *tiny, "--steps", "2"]) == 0
    assert main(["dream", "--actions", "left*3,stay", "--output", "dream.png"]) == 0
    assert main(["evaluate", "--quick", "--windows", "2"]) == 0
    assert (tmp_path / "data/own-environment-ring-v0/index.jsonl").is_file()
    assert (tmp_path / "dream.png").is_file()
    assert (tmp_path / "runs/own-environment-ring-v0-1/evaluation/metrics.json").is_file()
    assert "300 steps, 10 episodes" in capsys.readouterr().out


def test_resizing_takes_the_mean_of_the_area() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (12, 8, 3), np.uint8)
    wanted = picture.reshape(4, 3, 4, 2, 3).mean((1, 3))
    assert np.abs(resize(picture, 4) - wanted).max() <= 1
    assert resize(picture[..., :2], 4).shape == (4, 4, 2)
    assert np.array_equal(resize(picture[:8], 8), picture[:8])


@pytest.mark.parametrize(
    ("setting", "value"),
    [("id", 1), ("id", float("nan")), ("kwargs", "a=1"), ("kwargs", np.array([0, 5])), ("kwargs", object()),
     ("size", np.float32(1.5)), ("size", np.array(16)), ("action_names", 1j), ("actions", np.zeros((2, 2)))],
)  # fmt: skip
def test_settings_of_another_type_are_one_clear_line(setting: str, value: Any) -> None:
    with pytest.raises(WorldModelError) as caught:
        make_frames(**{"id": "CartPole-v1", "source": "render", "size": 16, setting: value})
    assert "\n" not in str(caught.value)
