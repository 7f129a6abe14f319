"""DeepMind Lab: every trap of its module, with a double that has them all, and the same contract on the real one."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import dmlab_double as double
import gymnasium
import numpy as np
import pytest
import test_env_contract
from gymnasium.utils.env_checker import check_env

from worldmodel import collect
from worldmodel.config.checks import build
from worldmodel.config.cli import compose_config
from worldmodel.data.store import EpisodeStore
from worldmodel.envs import dmlab_engine, dmlab_process, make_frames
from worldmodel.envs.dmlab import DeepMindLabEnv
from worldmodel.envs.dmlab_engine import Engine, EngineSettings
from worldmodel.envs.level_cache import LevelCache, default_folder
from worldmodel.errors import EnvError, WorldModelError
from worldmodel.runs.data import env_maker

ROOT = Path(__file__).parents[1]
RECORDED = {  # action_names and action_vectors of the recordings' meta.json
    "noop": [0, 0, 0, 0, 0, 0, 0],
    "forward": [0, 0, 0, 1, 0, 0, 0],
    "backward": [0, 0, 0, -1, 0, 0, 0],
    "strafe_left": [0, 0, -1, 0, 0, 0, 0],
    "strafe_right": [0, 0, 1, 0, 0, 0, 0],
    "turn_left": [-20, 0, 0, 0, 0, 0, 0],
    "turn_right": [20, 0, 0, 0, 0, 0, 0],
    "forward_left": [-20, 0, 0, 1, 0, 0, 0],
    "forward_right": [20, 0, 0, 1, 0, 0, 0],
}
NOOP, FORWARD, LEFT = 0, 1, 5
SMALL = {"width": 16, "height": 12}
SECOND = {**SMALL, "config": {"episodeLengthSeconds": 1}}  # 60 frames: one no-op and 14 steps
Make = Callable[..., DeepMindLabEnv]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The double in the place of the module, unused so far; the level cache in a folder of the test."""
    monkeypatch.setitem(sys.modules, "deepmind_lab", double)
    monkeypatch.setattr(double, "_used_in", None)
    monkeypatch.setattr(dmlab_engine, "_used_in", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "modules").mkdir()  # for the processes of strict environments
    shutil.copy(double.__file__, tmp_path / "modules/deepmind_lab.py")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    double.made.clear()
    double.compiled.clear()
    return double


@pytest.fixture
def make(lab: ModuleType) -> Iterator[Make]:
    """Makes small environments, and closes them all."""
    made: list[DeepMindLabEnv] = []

    def build(**settings: Any) -> DeepMindLabEnv:
        made.append(DeepMindLabEnv(**{**SMALL, **settings}))
        return made[-1]

    yield build
    for env in made:
        env.close()
    assert all(one.closed for one in lab.made)


def play(env: gymnasium.Env[Any, Any], seed: int | None, actions: list[int]) -> np.ndarray:
    return np.stack([env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)])


def until_the_end(env: DeepMindLabEnv, action: int) -> list[tuple[np.ndarray, float, bool, bool, dict[str, Any]]]:
    steps = [env.step(action)]
    while not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(action))
    return steps


# ------------------------------------------------------------------------------------- spaces, names, settings


def test_a_plain_environment_fits_the_recordings(lab: ModuleType) -> None:
    config = compose_config(["env=dmlab/seekavoid_arena_01"])
    env = env_maker(config)()
    spec = env.data_spec
    assert (spec.frame_shape, spec.rate, spec.action_names) == ((3, 84, 84), 15.0, tuple(RECORDED))
    assert (spec.env_id, config.data) == ("worldmodel.envs:worldmodel/DeepMindLab-v0", "data/seekavoid_arena_01")
    frame, _ = env.reset(seed=0)
    assert frame.shape == (3, 84, 84) and frame.dtype == np.uint8
    for number, vector in enumerate(RECORDED.values()):
        env.step(number)
        assert lab.made[0].steps[-1] == (vector, 4)
    env.close()


@pytest.mark.parametrize(
    ("overrides", "level", "name"),
    [
        (["env=dmlab/nav_maze_random_goal_01"], "nav_maze_random_goal_01", "nav_maze_random_goal_01"),
        (["env=dmlab/level", "env.kwargs.level=lt_endless"], "lt_endless", "lt-endless"),
        (
            ["env=dmlab/level", "env.kwargs.level=contributed/dmlab30/explore_goal_locations_small"],
            "contributed/dmlab30/explore_goal_locations_small",
            "contributed-dmlab30-explore-goal-locations-small",
        ),
    ],
)
def test_any_level_has_settings_and_a_folder(lab: ModuleType, overrides: list[str], level: str, name: str) -> None:
    extra = ["env.size=16", "env.kwargs.config={episodeLengthSeconds: 30}", "env.kwargs.actions={go: [0,0,0,1,0,0,0]}"]
    extra.append("env.kwargs.observation=BGR_INTERLEAVED")
    config = compose_config([*overrides, *extra])
    env = env_maker(config)()
    env.reset(seed=0)
    assert config.env.name == name and env.data_spec.action_names == ("go",)
    assert (
        lab.made[0]._names[0] == "BGR_INTERLEAVED"
        and lab.made[0].level == level
        and lab.made[0].config["episodeLengthSeconds"] == "30"
    )
    env.close()


def test_settings_reach_lab_as_texts(lab: ModuleType, make: Make) -> None:
    env = make(minimal_ui=True, renderer="hardware", config={"episodeLengthSeconds": 2.5, "gadgetSelect": False})
    env.reset(seed=0)
    assert lab.made[0].config == {
        **{"width": "16", "height": "12", "fps": "60", "minimalUI": "true"},
        **{"episodeLengthSeconds": "2.5", "gadgetSelect": "false"},
    }
    assert lab.made[0].renderer == "hardware"
    assert make(frame_skip=6).metadata["render_fps"] == 10
    with pytest.raises(TypeError):  # what the conversion is for
        double.Lab("seekavoid_arena_01", [], {"width": 16})  # type: ignore[dict-item]


def test_the_score_is_in_the_picture_unless_it_is_not_wanted(make: Make) -> None:
    assert (make().reset(seed=0)[0][-4:] == 255).all()
    assert not (make(minimal_ui=True).reset(seed=0)[0] == 255).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 50}, "width is 50; it must be a multiple of 4"),
        ({"height": 0}, "height is 0; it must be at least 4"),
        ({"width": 16.5}, "width is 16.5; it must be a whole number"),
        ({"frame_skip": 0}, "frame_skip is 0; it must be at least 1"),
        ({"frame_skip": -4}, "frame_skip is -4"),
        ({"level": ""}, "level is ''; it must be a text"),
        ({"observation": ""}, "observation is ''"),
        ({"renderer": "vulkan"}, "renderer is 'vulkan'; choose software, hardware"),
        ({"config": {"fps": 30}}, "config.fps is set by frame_skip"),
        ({"config": {"episodeLengthSeconds": None}}, "config.episodeLengthSeconds is null; "),
        (
            {"config": {"episodeLengthSeconds": "abc"}},
            "config.episodeLengthSeconds is 'abc'; it must be a number, 0 or more",
        ),
        ({"config": {"episodeLengthSeconds": -5}}, "config.episodeLengthSeconds is -5; it must be a number, 0 or more"),
        ({"config": ["fps"]}, r"config is \['fps'\]; it must be values by name"),
        ({"level_cache": 3}, "level_cache is 3; choose true, false"),
        ({"actions": "all"}, "no set of actions 'all'; choose recorded, impala"),
        ({"actions": {}}, "actions is {}; it must be"),
        ({"actions": {"go": [0, 0, 0, 0.5, 0, 0, 0]}}, r"actions.go is .*; an entry is 0.5; it must be a whole number"),
        ({"actions": {"go": [True] * 7}}, "actions.go is"),
        ({"actions": {"go": "forward"}}, "actions.go is 'forward'"),
    ],
)
def test_settings_that_cannot_be_are_named(make: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WorldModelError, match=message) as caught:
        make(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "nowhere"}, "cannot start level 'nowhere': .*Level not found.*paths such as seekavoid_arena_01"),
        ({"config": {"applesAreGood": True}}, 'Invalid setting: "applesAreGood" = "true"'),
        (
            {"observation": "NOTHING"},
            r"no observation 'NOTHING' of \(12, 16, 3\) uint8; choose RGB_INTERLEAVED, BGR_INT",
        ),
        ({"observation": "RGBD_INTERLEAVED"}, "no observation 'RGBD_INTERLEAVED'"),
        ({"actions": {"go": [0, 0, 0, 1]}}, "actions.go has 4 numbers; the level takes 7: LOOK_LEFT_RIGHT_PIXELS_PER"),
        ({"config": {"gadgetSelect": True}}, "actions.noop has 7 numbers; the level takes 8: .*SELECT_GADGET"),
    ],
)
def test_what_lab_refuses_is_one_line(lab: ModuleType, make: Make, settings: dict[str, Any], message: str) -> None:
    env = make(**settings)
    for _ in range(2):  # and again: nothing half made is kept
        with pytest.raises(EnvError, match=message) as caught:
            env.reset(seed=0)
        assert "\n" not in str(caught.value)
    assert all(one.closed for one in lab.made)


def test_other_pictures_of_a_level_can_be_observed(make: Make) -> None:
    plain, swapped = (make(observation=name).reset(seed=0)[0] for name in ("RGB_INTERLEAVED", "BGR_INTERLEAVED"))
    assert np.array_equal(plain, swapped[..., ::-1])


# ----------------------------------------------------------------------------------------------------- actions


def test_own_vectors_are_clipped_to_the_action_spec(lab: ModuleType, make: Make) -> None:
    env = make(actions={"spin": [-9999, 600, 0, 0, 0, 0, 0], "all": [1, 1, -5, 5, 2, -1, 1]})
    assert env.metadata["action_names"] == ("spin", "all") and env.action_space.n == 2
    env.reset(seed=0)
    env.step(0)
    assert lab.made[0].steps[-1][0] == [-512, 512, 0, 0, 0, 0, 0]
    env.step(1)
    assert lab.made[0].steps[-1][0] == [1, 1, -1, 1, 1, 0, 1]


def test_the_double_misreads_a_slice_and_the_environment_sends_none(lab: ModuleType, make: Make) -> None:
    env = make(actions="impala")
    assert env.metadata["action_names"] == (*list(RECORDED)[1:], "fire")
    env.reset(seed=0)
    for number in range(9):
        env.step(number)
    assert [vector for vector, _ in lab.made[0].steps[-9:]] == [*list(RECORDED.values())[1:], [0, 0, 0, 0, 1, 0, 0]]
    slices = np.arange(14, dtype=np.intc)[::2]
    lab.made[0].step(slices, 1)
    assert lab.made[0].steps[-1][0] == list(range(7)) != slices.tolist()
    with pytest.raises(ValueError, match="intc"):
        lab.made[0].step(np.zeros(7, np.int64))


@pytest.mark.parametrize("action", [9, -1])
def test_an_action_that_is_none_is_named(make: Make, action: int) -> None:
    env = make()
    env.reset(seed=0)
    with pytest.raises(EnvError, match=f"no action {action}; choose 0 to 8: noop, forward"):
        env.step(action)
    assert env.step(np.int64(FORWARD))[1] > 0  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- ends of an episode


def test_the_goal_is_terminal_with_the_last_picture_and_the_last_reward(make: Make) -> None:
    env = make()
    env.reset(seed=0)
    steps = until_the_end(env, FORWARD)
    assert steps[-1][1:4] == (1.0 + 10.0 + 0.5, True, False) and len(steps) == 50
    assert np.array_equal(steps[-1][0], steps[-2][0]) and not np.array_equal(steps[-1][0], steps[-3][0])
    with pytest.raises(EnvError, match="no episode is under way: call reset"):
        env.step(FORWARD)


def test_the_time_limit_is_a_truncation(make: Make) -> None:
    env = make(**SECOND)
    env.reset(seed=0)
    steps = until_the_end(env, LEFT)
    assert steps[-1][1:4] == (0.5, False, True) and len(steps) == 14
    assert all(step[2:4] == (False, False) for step in steps[:-1])
    env = make(**SECOND, frame_skip=25)  # 60 frames are no multiple: the last step is a short one
    env.reset(seed=0)
    assert [step[2:4] for step in until_the_end(env, LEFT)] == [(False, False), (False, True)]


def test_a_goal_long_before_the_limit_is_none(make: Make) -> None:
    env = make(config={"episodeLengthSeconds": 4})  # 240 frames; the goal is reached after 204
    env.reset(seed=0)
    assert until_the_end(env, FORWARD)[-1][2:4] == (True, False)


def test_a_clock_that_stands_still_is_no_time_limit(make: Make) -> None:
    env = make(level="lt_endless")
    env.reset(seed=0)
    assert until_the_end(env, FORWARD)[-1][2:4] == (True, False)


def test_a_level_that_does_not_tell_its_time_ends_in_terminal_states(lab: ModuleType, make: Make) -> None:
    env = make(level="tests/empty_room_test")
    env.reset(seed=0)
    assert until_the_end(env, NOOP)[-1][2:4] == (True, False)
    assert [one.closed for one in lab.made] == [True, False]  # one was asked what it can show


# --------------------------------------------------------------------------------------------------- resetting


def test_no_episode_begins_with_the_picture_of_the_last(lab: ModuleType, make: Make) -> None:
    env = make(**SECOND)
    first, _ = env.reset(seed=0)
    last = until_the_end(env, NOOP)[-1][0]
    again, _ = env.reset()
    assert not np.array_equal(again, last) and not np.array_equal(again, first)
    assert lab.made[0].resets == 2


def test_the_reward_of_the_first_no_op_is_that_of_the_first_step(make: Make) -> None:
    env = make(level="tests/first_frame_counts")
    for _ in range(2):
        assert env.reset(seed=0)[1]["noop_reward"] == 3
        assert [env.step(action)[1] for action in (NOOP, FORWARD, NOOP)] == [3, 1, 0]


@pytest.mark.parametrize("steps", [1, 14], ids=["in the middle", "at the end"])
def test_no_turn_goes_on_through_a_reset(lab: ModuleType, make: Make, steps: int) -> None:
    env = make(**SECOND)
    env.reset(seed=0)
    for _ in range(steps):
        env.step(LEFT)
    assert lab.made[0].is_running() == (steps == 1)
    env.reset()
    assert lab.made[0]._look == 0
    assert lab.made[0].steps[-1] == ([0] * 7, 4) == lab.made[0].steps[-2]  # before the reset, and after it


def test_an_episode_that_is_over_before_it_begins_is_left_out(lab: ModuleType, make: Make) -> None:
    env = make(level="tests/often_over")
    for seed in range(4):
        env.reset(seed=seed)
        env.step(FORWARD)
    assert len(lab.made[0].seeds) > 8 and any(seed % 4 for seed in lab.made[0].seeds)  # others were tried
    with pytest.raises(EnvError, match="'tests/always_over' is over within 4 frames, 10 times in a row"):
        make(level="tests/always_over").reset(seed=0)


def test_seeds_are_what_lab_takes_and_follow_from_the_seed(lab: ModuleType, make: Make) -> None:
    for _ in range(2):
        env = make()
        env.reset(seed=2**40 + 1)
        for _ in range(20):
            env.reset()
    first, second = (one.seeds for one in lab.made)
    assert first == second and len(set(first)) == 21 and max(first) > 2**30
    with pytest.raises(ValueError, match="must be int or None"):
        lab.made[0].reset(seed=np.int64(3))


def test_only_strict_environments_repeat_every_frame(lab: ModuleType, make: Make) -> None:
    actions = [FORWARD, LEFT, LEFT, FORWARD]
    reused = make()
    assert not np.array_equal(play(reused, 3, actions), play(reused, 3, actions))  # what strict is for
    strict = make(strict=True)
    first = play(strict, 3, actions)
    then = play(strict, None, actions)  # an episode that follows from the seed, too
    assert np.array_equal(first, play(strict, 3, actions)) and np.array_equal(then, play(strict, None, actions))
    assert np.array_equal(first, play(make(strict=True), 3, actions))
    assert not np.array_equal(first, play(strict, 4, actions))
    assert [one.resets for one in lab.made] == [2]  # strict ones live in processes of their own


def test_a_strict_engine_is_renewed_before_descriptors_run_out(
    lab: ModuleType, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(double, "DESCRIPTORS", 2 * double.LEAKED)
    with pytest.raises(RuntimeError, match="Too many open files"):
        for _ in range(4):
            double.Lab("lt_endless", []).close()
    monkeypatch.setattr(dmlab_process, "RENEWED_AFTER", 3)
    env, processes, frames = make(strict=True), set(), []
    for _ in range(4):
        frames.append(play(env, 3, [FORWARD, LEFT]))
        processes.add(env._engine._child.process.pid)  # type: ignore[union-attr]
    assert len(processes) == 2 and all(np.array_equal(one, frames[0]) for one in frames)


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("tests/missing_map", "ended its process with exit code 1 in level 'tests/missing_map'"),
        ("tests/always_over", "is over within 4 frames"),
    ],
)
def test_an_end_of_the_process_or_of_every_episode_is_an_error_of_a_strict_environment(
    make: Make, level: str, message: str
) -> None:
    env = make(strict=True, level=level)
    with pytest.raises(EnvError, match=message):
        env.reset(seed=0)
    env.close()


def test_an_engine_that_is_killed_is_started_again(make: Make) -> None:
    env = make(strict=True)
    frames = play(env, 3, [FORWARD])
    env._engine._child.process.kill()  # type: ignore[union-attr]
    with pytest.raises(EnvError, match=r"exit code -9 .*reset starts it again"):
        env.step(FORWARD)
    assert np.array_equal(play(env, 3, [FORWARD]), frames)


@pytest.mark.parametrize("name", ["level", "nav_maze_random_goal_01", "seekavoid_arena_01"])
def test_the_contract_of_all_environments_holds_on_the_double(lab: ModuleType, name: str) -> None:
    test_env_contract.test_it_keeps_the_contract(f"dmlab/{name}")


def test_a_renderer_without_its_library_is_not_the_level_s_fault(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_HARDWARE", "1")
    with pytest.raises(EnvError, match="renderer=hardware needs a Lab that was built with it; choose renderer=soft"):
        make(renderer="hardware").reset()


def test_programs_that_compile_maps_are_named_where_they_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dmlab_engine.missing_programs() in ("", "; zip, with which it compiles maps, cannot be found")
    monkeypatch.setenv("PATH", "")
    assert dmlab_engine.missing_programs() == "; bash and zip, with which it compiles maps, cannot be found"


def test_gymnasium_s_checker_is_content(make: Make) -> None:
    check_env(make(strict=True, render_mode="rgb_array"), skip_render_check=False)


def test_it_renders_the_last_picture(make: Make) -> None:
    env = make(render_mode="rgb_array")
    picture, _ = env.reset(seed=0)
    shown = env.render()
    assert shown is not None and np.array_equal(shown, picture)
    shown[:] = 0
    assert env.render() is not None and np.array_equal(env.render(), picture)  # type: ignore[arg-type]
    assert make().render() is None


# ------------------------------------------------------------------------- closing, processes, copies, failures


def test_nothing_is_called_after_close(lab: ModuleType, make: Make) -> None:
    env = make(render_mode="rgb_array")
    env.reset(seed=0)
    env.close()
    env.close()
    assert env.render() is not None
    for call in (env.reset, functools.partial(env.step, NOOP)):
        with pytest.raises(EnvError, match="closed"):
            call()
    for crash in (lab.made[0].action_spec, functools.partial(lab.made[0].reset, seed=0)):
        with pytest.raises(double.Fatal):
            crash()
    never = make()
    never.close()
    assert len(lab.made) == 1


def test_specifications_are_read_once(lab: ModuleType, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make()
    env.reset(seed=0)
    with monkeypatch.context() as patched:
        patched.setattr(double.Lab, "observation_spec", None)
        patched.setattr(lab.made[0], "action_spec", [*double.ACTIONS].copy)  # the double itself asks at every step
        env.step(FORWARD)
        env.reset(seed=1)


def test_two_live_in_one_process(make: Make) -> None:
    alone = play(make(strict=True), 1, [FORWARD] * 3)
    one, two = make(), make()
    seen = [(one.reset(seed=1)[0], two.reset(seed=2)[0])]
    seen += [(one.step(FORWARD)[0], two.step(LEFT)[0]) for _ in range(3)]
    assert np.array_equal(np.stack([a for a, _ in seen]), alone)
    one.close()
    two.step(LEFT)


def test_a_copy_is_another_environment_of_the_same_settings(lab: ModuleType, make: Make) -> None:
    env = make(strict=True, actions={"go": [0, 0, 0, 1, 0, 0, 0]})
    frames = play(env, 5, [0, 0])
    for copied in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        assert np.array_equal(play(copied, 5, [0, 0]), frames) and copied is not env
        copied.close()
    plain = double.Lab("lt_endless", [])
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(plain)
    plain.close()
    factory = functools.partial(
        make_frames, "worldmodel.envs:worldmodel/DeepMindLab-v0", {"width": 16, "height": 16}, size=16
    )
    made = pickle.loads(pickle.dumps(factory))()
    assert made.reset(seed=0)[0].shape == (3, 16, 16)
    made.close()


def in_a_fork(body: Callable[[], str]) -> str:
    """What ``body`` says in a forked child."""
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            said = body()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return pipe.read()


def test_a_process_forked_after_the_first_use_is_told_instead_of_hanging(make: Make) -> None:
    env = make()
    assert in_a_fork(lambda: str(env.reset(seed=0)[0].shape)) == "(12, 16, 3)"  # made here, first used there
    env.reset(seed=0)
    for body in (lambda: env.reset(), lambda: env.step(0), lambda: make().reset(), lambda: env.close() or env.reset()):
        said = in_a_fork(body)  # type: ignore[arg-type]
        assert said.startswith("EnvError: ") and ("spawn" in said or "closed" in said)
    env.step(FORWARD)


def test_an_engine_that_fails_is_an_error_and_reset_recovers(
    lab: ModuleType, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> float:
        raise ValueError('Failed to advance environment "out of memory"\n')

    env = make()
    first, _ = env.reset(seed=0)
    monkeypatch.setattr(lab.made[0], "step", fail)
    with pytest.raises(
        EnvError, match=r"failed in level 'seekavoid_arena_01': .*\"out of memory\"; reset starts it again"
    ):
        env.step(FORWARD)
    assert lab.made[0].closed
    assert np.array_equal(env.reset(seed=0)[0], first)


# ------------------------------------------------------------------------------------------------- level cache

MAZE = {"level": double.COMPILES}


def test_a_map_is_compiled_once_for_all(lab: ModuleType, make: Make, tmp_path: Path) -> None:
    for _ in range(2):
        env = make(**MAZE)
        for seed in range(12):
            env.reset(seed=seed)
    assert sorted(lab.compiled) == [f"maze{number}_noaas_0123456789abcdef" for number in range(3)]
    folder = tmp_path / "cache/worldmodel/dmlab"
    assert sorted(path.name for path in folder.iterdir()) == sorted(lab.compiled)


def test_the_cache_can_lie_elsewhere_or_be_off(lab: ModuleType, make: Make, tmp_path: Path) -> None:
    make(**MAZE, level_cache=str(tmp_path / "maps")).reset(seed=0)
    assert len(list((tmp_path / "maps").iterdir())) == 1
    env = make(**MAZE, level_cache=False)
    env.reset(seed=0)
    env.reset(seed=0)
    assert lab.made[-1].cache is None and len(lab.compiled) == 3 and not (tmp_path / "cache").exists()


def test_a_damaged_map_is_compiled_again_and_replaced(lab: ModuleType, make: Make, tmp_path: Path) -> None:
    make(**MAZE).reset(seed=0)
    (kept,) = (tmp_path / "cache/worldmodel/dmlab").iterdir()
    whole = kept.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(kept.name.encode())] ^= 1  # its form remains that of a zip file
    for count, damaged in enumerate((whole[: len(whole) // 2], bytes(flipped), b""), start=2):
        kept.write_bytes(damaged)
        make(**MAZE).reset(seed=0)
        assert zipfile.ZipFile(kept).read("maps/maze.bsp") == kept.name.encode() and len(lab.compiled) == count


def test_a_cache_that_cannot_be_used_costs_no_episode(
    lab: ModuleType, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    env = make(**MAZE, level_cache=str(tmp_path / "file"))
    env.reset(seed=0)
    env.reset(seed=0)
    assert caplog.text.count("level cache") == 1 and len(lab.compiled) == 2
    full = make(**MAZE)

    def no_space(source: Any, target: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", no_space)
    full.reset(seed=0)
    assert list((tmp_path / "cache/worldmodel/dmlab").iterdir()) == []


def test_readers_never_see_half_a_map(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "map.pk3", "w") as pack:
        pack.writestr("maps/maze.bsp", os.urandom(100_000))
    cache, whole = LevelCache(tmp_path / "cache"), (tmp_path / "map.pk3").read_bytes()
    seen: list[bool] = []

    def write(number: int) -> None:
        for _ in range(20):
            LevelCache(tmp_path / "cache").write("key", str(tmp_path / "map.pk3"))
            if cache.fetch("key", str(tmp_path / f"got{number}")):
                seen.append((tmp_path / f"got{number}").read_bytes() == whole)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 80 and all(seen)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]


def test_no_key_leads_out_of_the_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "map.pk3", "w") as pack:
        pack.writestr("maps/maze.bsp", "maze")
    cache = LevelCache(tmp_path / "deep/cache")
    for key in ("../../escaped", "/escaped", "", ".hidden", "ä" * 300):
        cache.write(key, str(tmp_path / "map.pk3"))
        assert cache.fetch(key, str(tmp_path / "got")) and not cache.fetch(key + "x", str(tmp_path / "got"))
    assert len(list((tmp_path / "deep/cache").iterdir())) == 5


def test_the_default_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for given, folder in (
        ("/var/caches", "/var/caches"),
        ("relative", "/home/someone/.cache"),
        ("", "/home/someone/.cache"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert default_folder() == Path(folder, "worldmodel/dmlab")


# ------------------------------------------------------------------------------------------- the command line

needs_absence = pytest.mark.skipif(
    bool(dmlab_engine.find_spec("deepmind_lab")), reason="what is said where deepmind_lab is missing"
)


@needs_absence
@pytest.mark.parametrize("env", ["dmlab/seekavoid_arena_01", "dmlab/nav_maze_random_goal_01"])
def test_a_missing_module_is_one_line_and_exit_2(say: Callable[..., str], env: str, tmp_path: Path) -> None:
    said = say(collect, f"env={env}", code=2)
    assert said.startswith("error: DeepMind Lab needs the Python module 'deepmind_lab'") and said.count("\n") == 1
    assert "build it from its source (docs/environments.md, section DeepMind Lab)" in said
    assert list(tmp_path.iterdir()) == []


def test_the_explorer_of_the_recordings_knows_every_action() -> None:
    explorer = build(compose_config(["explorer=dmlab"]).explorer, "explorer")
    explorer.begin(tuple(RECORDED), np.random.default_rng(0))
    noise = np.random.default_rng(1).integers(0, 256, (8, 3, 16, 16), np.uint8)  # nothing stands still
    taken = np.bincount([explorer.act(noise[step % 8]) for step in range(20_000)], minlength=9) / 20_000
    assert set(explorer.weights) == set(RECORDED) and taken == pytest.approx(list(explorer.weights.values()), abs=0.03)


def test_a_level_has_to_be_given(say: Callable[..., str]) -> None:
    assert "the environment needs env.kwargs.level=…" in say(collect, "env=dmlab/level", code=2)


@needs_absence
@pytest.mark.parametrize("text", ["import imp_that_is_no_more", "raise SystemError('built for another numpy')", "1 +"])
def test_a_module_that_does_not_load_says_why(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deepmind_lab.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        EnvError, match=r"'deepmind_lab' is installed and does not load: .*Error: .*; see docs"
    ) as caught:
        make_frames("worldmodel.envs:worldmodel/DeepMindLab-v0")
    assert "\n" not in str(caught.value)


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """The environment variables under which any process finds the double as ``deepmind_lab``."""
    (tmp_path / "modules").mkdir()
    shutil.copy(double.__file__, tmp_path / "modules/deepmind_lab.py")
    paths = os.pathsep.join([str(tmp_path / "modules"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def test_episodes_are_recorded_in_processes_of_their_own(tmp_path: Path, elsewhere: dict[str, str]) -> None:
    argv = ["env=dmlab/level", f"env.kwargs.level={double.COMPILES}", "env.size=16", "--workers", "2", "--steps", "120"]
    argv += ["env.kwargs.config={episodeLengthSeconds: 2}", "env.kwargs.strict=true"]
    command = [sys.executable, "-m", "worldmodel.collect", *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=elsewhere)
    assert done.returncode == 0, done.stderr
    store = EpisodeStore.open(tmp_path / "data/contributed-dmlab30-explore-goal-locations-small")
    episodes = [store.episode(number) for number in range(len(store))]
    assert sorted(episode.steps for episode in episodes) == [2, 2, 29, 29, 29, 29]
    assert all(episode.truncated and not episode.terminated for episode in episodes)
    assert store.spec.action_names == tuple(RECORDED) and store.spec.frame_shape == (3, 16, 16)
    assert all(np.array_equal(e.frames[-1], e.frames[-2]) for e in episodes if e.steps == 29)
    assert 1 <= len(list((tmp_path / "cache/worldmodel/dmlab").iterdir())) <= 3
    again = [sys.executable, "-m", "worldmodel.collect", *argv[:2], "env.kwargs.level=nowhere", "--steps", "9"]
    done = subprocess.run(again, capture_output=True, text=True, cwd=tmp_path, env=elsewhere)
    assert done.returncode == 2 and done.stderr.count("error:") == 1
    assert "recording fails at its first step: DeepMind Lab cannot start level 'nowhere'" in done.stderr


VECTOR = """
import functools, sys
import gymnasium
from worldmodel.envs.dmlab import DeepMindLabEnv

if __name__ == "__main__":
    make = functools.partial(DeepMindLabEnv, width=16, height=12, strict=True)
    for context in ("spawn", "fork"):
        env = gymnasium.vector.AsyncVectorEnv([make] * 2, context=context)
        frames, _ = env.reset(seed=[1, 2])
        frames, *_ = env.step([1, 5])
        print(context, frames.shape, frames.sum())
        env.close()
"""


def test_vector_environments_spawn_and_fork(tmp_path: Path, elsewhere: dict[str, str]) -> None:
    (tmp_path / "vector.py").write_text(VECTOR)
    command = [sys.executable, "-W", "ignore", "vector.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=elsewhere)
    assert done.returncode == 0, done.stderr
    spawned, forked = (line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert spawned[0] == "spawn" and spawned[1].startswith("(2, 12, 16, 3)") and forked[1] == spawned[1]


# ------------------------------------------------------------------------ the same contract, double and real


def check_contract(settings: dict[str, Any]) -> None:
    """What the environment promises, without knowing what the pictures show."""
    actions = [FORWARD, LEFT, FORWARD, NOOP]
    strict = DeepMindLabEnv(**settings, strict=True)
    first = play(strict, 7, actions)
    assert first.dtype == np.uint8 and first.std() > 1 and not np.array_equal(first[0], first[2])
    assert np.array_equal(first, play(strict, 7, actions))
    strict.close()
    strict.close()
    env = DeepMindLabEnv(**settings)
    assert np.array_equal(first, play(env, 7, actions))  # a first episode is of a fresh engine
    env.reset(seed=8)
    steps = until_the_end(env, LEFT)
    assert len(steps) in (14, 15) and steps[-1][2:4] == (False, True) and np.array_equal(steps[-1][0], steps[-2][0])
    assert not np.array_equal(env.reset()[0], steps[-1][0])
    with pytest.raises(EnvError):
        DeepMindLabEnv(**{**settings, "level": "no/such_level"}).reset()
    env.close()
    with pytest.raises(EnvError, match="closed"):
        env.reset()
    launch = EngineSettings("seekavoid_arena_01", "NOTHING", {"width": "16", "height": "12"}, "software", None)
    with pytest.raises(EnvError, match="RGB_INTERLEAVED"):
        Engine(launch)


def test_the_contract_holds_on_the_double(lab: ModuleType) -> None:
    check_contract(SECOND)
    assert all(one.closed for one in lab.made)


def test_the_contract_holds_on_the_real_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepmind_lab", reason="DeepMind Lab is built from its source; see docs/environments.md")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for level in ("seekavoid_arena_01", "nav_maze_random_goal_01"):
        check_contract({**SECOND, "width": 84, "height": 84, "level": level})
