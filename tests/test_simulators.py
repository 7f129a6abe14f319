"""Atari's protocol, Crafter, MiniGrid, MiniWorld: what each does of its own; test_env_contract.py has the rest."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from worldmodel.envs import make_frames
from worldmodel.errors import ConfigError, EnvError

ATARI = "worldmodel.envs:worldmodel/Atari-v0"


@pytest.fixture
def atari() -> Any:
    pytest.importorskip("ale_py", reason="pip install ale-py")
    from worldmodel.envs.atari import AtariEnv

    return AtariEnv


def frames(env: Any, seed: int, actions: list[int]) -> np.ndarray:
    return np.stack([env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)])


def test_a_picture_is_the_maximum_of_the_last_two_frames(atari: Any) -> None:
    """Two steps of one frame each show what a step of two merges."""
    single, pair = atari("space_invaders", frame_skip=1, noops=0), atari("space_invaders", frame_skip=2, noops=0)
    ones, twos = frames(single, 0, [1] * 40), frames(pair, 0, [1] * 20)
    assert np.array_equal(twos[1:], np.maximum(ones[1::2], ones[2::2]))
    assert any(not np.array_equal(two, one) for two, one in zip(twos[1:], ones[2::2], strict=True))


def test_sticky_actions_and_noops_are_what_is_random(atari: Any) -> None:
    actions = [0, 2, 3, 1] * 10
    still = atari("breakout", noops=0)
    assert np.array_equal(frames(still, 0, actions), frames(still, 1, actions))
    for settings in ({"sticky": 0.25, "noops": 0}, {"noops": 30}):
        env = atari("breakout", **settings)
        assert np.array_equal(frames(env, 0, actions), frames(env, 0, actions))
        assert any(not np.array_equal(frames(env, 0, actions), frames(env, seed, actions)) for seed in (1, 2, 3))


def test_a_lost_life_is_told_and_may_end_the_episode_but_not_the_game(atari: Any) -> None:
    def lose(env: Any) -> tuple[Any, ...]:
        for _ in range(400):
            *_, terminated, truncated, info = env.step(1)  # serve, and stand still
            if info["life_lost"]:
                break
        return terminated, truncated, info["lives"]

    env = atari("breakout")
    env.reset(seed=0)
    assert lose(env) == (False, False, 4) and lose(env) == (False, False, 3)
    env = atari("breakout", life_loss="end")
    _, info = env.reset(seed=0)
    assert info["lives"] == 5 and lose(env) == (True, False, 4)
    _, info = env.reset(seed=1)
    assert info["lives"] == 4 and info["frame"] > 50  # the same game
    assert env.reset(options={"new_game": True})[1]["lives"] == 5
    for left in (4, 3, 2, 1, 0):
        assert lose(env) == (True, False, left)
        env.reset()
    assert env.reset()[1]["lives"] == 5  # after the last, a new one


def test_the_settings_of_a_game(atari: Any) -> None:
    assert atari("freeway").metadata["action_names"] == ("noop", "up", "down")
    assert len(atari("freeway", full_action_space=True).metadata["action_names"]) == 18
    env = make_frames(ATARI, {"game": "pong", "gray": True, "max_frames": 100, "noops": 0})
    assert env.reset(seed=0)[0].shape == (1, 64, 64) and env.data_spec.rate == 15
    ends = [env.step(0)[2:4] for _ in range(25)]
    assert ends == [(False, False)] * 24 + [(False, True)]
    for settings, message in (
        ({"game": "doom"}, "unknown Atari game 'doom'; ALE has .*pong"),
        ({"game": "pong", "sticky": 1.0}, "sticky is 1.0; it must be below 1"),
        ({"game": "pong", "life_loss": "reset"}, "life_loss is 'reset'; choose info, end"),
        ({"game": "pong", "frame_skip": 0}, "frame_skip is 0; it must be at least 1"),
    ):
        with pytest.raises((EnvError, ConfigError), match=message):
            make_frames(ATARI, settings)


def test_crafter_tells_death_from_the_end_of_time() -> None:
    pytest.importorskip("crafter", reason="pip install crafter")
    env = make_frames("worldmodel.envs:worldmodel/Crafter-v0", {"length": 5})
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(5)] == [(False, False)] * 4 + [(False, True)]
    env.reset(seed=0)
    env.unwrapped._game._player.health = 0
    assert env.step(0)[2:4] == (True, False)
    with pytest.raises(ConfigError, match="size is 9; it must be at least 18"):
        make_frames("worldmodel.envs:worldmodel/Crafter-v0", {"size": 9, "length": 5})


def test_crafter_follows_its_seed_for_long() -> None:
    """In Crafter itself the order of creatures in a set, their addresses, decides who is taken away."""
    pytest.importorskip("crafter", reason="pip install crafter")
    from worldmodel.envs.crafter import CrafterEnv

    def play(junk: int) -> list[Any]:
        env = CrafterEnv(size=18, length=300)
        env.reset(seed=4)
        kept = [object() for _ in range(junk)]  # so that addresses differ
        game = env._game
        for _ in range(300):
            game._player.health = 9
            env.step(0)
        assert len(kept) == junk
        return [tuple(thing.pos) for thing in game._world.objects]

    assert play(0) == play(1000)


@pytest.mark.parametrize(("view", "tiles"), [("agent", 7), ("full", 8)])
def test_tiles_of_minigrid_are_sharp(view: str, tiles: int) -> None:
    pytest.importorskip("minigrid", reason="pip install minigrid")
    settings = {"task": "MiniGrid-DoorKey-8x8-v0", "view": view, "size": 8 * tiles}
    env = make_frames("worldmodel.envs:worldmodel/MiniGrid-v0", settings, size=8 * tiles)
    frame, _ = env.reset(seed=0)
    corners = frame.reshape(3, tiles, 8, tiles, 8)[:, :, 7, :, 7]  # no grid line is there, whatever is in the tile
    assert len({corner.tobytes() for corner in corners.reshape(3, -1).T}) < 8
    assert np.array_equal(env.unwrapped.get_frame(tile_size=8, agent_pov=view == "agent").transpose(2, 0, 1), frame)
    for wrong, message in (
        ({"view": "map"}, "view is 'map'; choose full, agent"),
        ({"task": "CartPole-v1"}, "env=gym"),
    ):
        with pytest.raises((EnvError, ConfigError), match=message):
            make_frames("worldmodel.envs:worldmodel/MiniGrid-v0", {**settings, **wrong})


@pytest.mark.parametrize(
    ("id", "package", "file"),
    [
        (ATARI, "ale_py", "atari"),
        ("worldmodel.envs:worldmodel/Crafter-v0", "crafter", "crafter"),
        ("worldmodel.envs:worldmodel/MiniGrid-v0", "minigrid", "minigrid"),
        ("MiniWorld-Maze-v0", "miniworld", "miniworld"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(
    id: str, package: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package or name == f"worldmodel.envs.{file}"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    remedy = f"pip install {package.replace('_', '-')}$"  # what it is published as
    with pytest.raises(EnvError, match=f"needs the Python package '{package}', .*: {remedy}"):
        make_frames(id)


def test_missing_opengl_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("miniworld", reason="pip install miniworld")
    from worldmodel.envs import miniworld

    def make(*args: Any, **settings: Any) -> None:
        raise ImportError('Library "EGL" not found.')

    monkeypatch.setattr(miniworld.gymnasium, "make", make)
    with pytest.raises(EnvError, match=r'OpenGL, which is missing \(Library "EGL" not found.\); .*apt install libegl1'):
        miniworld.MiniWorldEnv("MiniWorld-Maze-v0")
