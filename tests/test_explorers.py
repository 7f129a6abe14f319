"""Explorers: runs of actions as configured, away from walls, and measurably further than a uniform walk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from worldmodel.agents.base import Agent
from worldmodel.agents.explorers import ScriptExplorer, StickyExplorer, UniformExplorer
from worldmodel.envs import make_frames
from worldmodel.errors import ConfigError

NAMES = ("noop", "forward", "left", "right")
CONFIGS = Path(__file__).parents[1] / "configs" / "explorer"


def play(explorer: Agent, steps: int, names: Sequence[str] = NAMES, moving: bool = True, seed: int = 0) -> list[int]:
    """Actions at frames that all differ, or that never change."""
    explorer.begin(names, np.random.default_rng(seed))
    frame = np.zeros((3, 8, 8), np.uint8)
    return [explorer.act(np.full_like(frame, 60 * (step % 2)) if moving else frame) for step in range(steps)]


def runs(actions: list[int]) -> list[tuple[int, int]]:
    """(action, length) of every run."""
    ends = [i for i in range(len(actions)) if i + 1 == len(actions) or actions[i] != actions[i + 1]]
    return [(actions[end], end - start) for start, end in zip([-1, *ends], ends, strict=False)]


def test_weights_and_runs_are_kept() -> None:
    explorer = StickyExplorer({"forward": 3, "left": 1, "noop": 0, "fly": 9}, {"forward": (5, 5)}, default_run=(2, 2))
    found = runs(play(explorer, 6000))
    assert {action for action, _ in found} == {1, 2, 3}  # noop has no weight, right has the default
    assert all(length % (5 if action == 1 else 2) == 0 for action, length in found[:-1])
    share = sum(length for action, length in found if action == 1) / 6000
    assert share == pytest.approx(3 * 5 / (3 * 5 + 2 * 2), abs=0.04)


def test_spells_of_single_actions_mix_them_all() -> None:
    weights, held = {"forward": 3, "left": 1, "right": 1, "noop": 0}, {"forward": (6, 6)}
    explorer = StickyExplorer(
        weights, held, default_run=(6, 6), random_action_probability=1.0, random_action_run=(4, 12)
    )
    actions = play(explorer, 6000)
    counts = np.bincount(actions, minlength=4)
    assert counts[0] == 0  # never wanted, so not in a random sequence either
    assert counts[1:] == pytest.approx(2000, abs=150)
    assert np.mean(np.diff(actions) == 0) == pytest.approx(1 / 3, abs=0.03)  # drawn one by one
    some = runs(play(StickyExplorer(weights, held, default_run=(6, 6), random_action_probability=0.3), 6000))
    share = sum(length for _, length in some if length < 6) / 6000
    assert 0.2 < share < 0.6
    with pytest.raises(ConfigError, match=r"random_action_probability is 1\.5; it must be at most 1"):
        StickyExplorer(random_action_probability=1.5)


def test_a_walk_that_is_stopped_turns_away_to_one_side() -> None:
    explorer = StickyExplorer({"forward": 1, "left": 0, "right": 0, "noop": 0}, {"forward": (9, 9)}, turn_away=(3, 4))
    found = runs(play(explorer, 300, moving=False))
    turns = [(action, length) for action, length in found[:-1] if action != 1]
    assert all(length == 1 for action, length in found[:-1] if action == 1)  # one step is enough to notice
    assert len({action for action, _ in turns}) == 1 and {length for _, length in turns} == {3, 4}
    assert set(play(explorer, 300, moving=True)) == {1}
    sides = {action for seed in range(8) for action in play(explorer, 5, moving=False, seed=seed)}
    assert sides == {1, 2, 3}


def test_it_does_not_walk_into_a_plain_view_unless_all_are_plain() -> None:
    forward = {"forward": 1, "left": 0, "right": 0, "noop": 0}
    explorer = StickyExplorer(forward, {"forward": (9, 9)}, turn_away=(3, 4), low_contrast=9.0)
    wall, room = np.full((3, 16, 16), 50, np.uint8), np.full((3, 16, 16), 50, np.uint8)
    room[1, :, 8:] += 20  # a deviation of 10 in one channel
    dither = np.random.default_rng(0).integers(-3, 4, (64, 3, 16, 16))  # every frame differs
    explorer.begin(NAMES, np.random.default_rng(0))
    assert [explorer.act(room + dither[i].astype(np.uint8)) for i in range(5)] == [1] * 5
    ((side, length),) = runs([explorer.act(wall) for _ in range(6)])
    assert side in (2, 3) and length == 6  # one run behind the other, to the same side
    explorer.begin(NAMES, np.random.default_rng(0))
    everywhere = runs([explorer.act(wall + dither[i].astype(np.uint8)) for i in range(40)])
    assert everywhere[0][0] in (2, 3) and 9 <= everywhere[0][1] <= 12  # three runs, then it walks for good
    assert everywhere[1:] == [(1, 40 - everywhere[0][1])]


def test_environments_without_a_walk_are_explored_too() -> None:
    names = ("NOOP", "UP", "DOWN")
    assert set(play(StickyExplorer({"up": 2}), 200, names, moving=False)) == {0, 1, 2}


def test_the_generator_decides() -> None:
    for explorer in (StickyExplorer(), UniformExplorer()):
        assert play(explorer, 100, seed=1) == play(explorer, 100, seed=1) != play(explorer, 100, seed=2)


def test_uniform_is_uniform() -> None:
    counts = np.bincount(play(UniformExplorer(), 8000), minlength=4)
    assert counts / 8000 == pytest.approx(np.full(4, 0.25), abs=0.03)


def test_a_loop_takes_the_place_of_a_run() -> None:
    script = "left*12,right*12"
    explorer = StickyExplorer({"forward": 1}, default_weight=0, loops=[script, "jump*9"], loop_probability=1.0)
    assert play(explorer, 60, moving=False) == ([2] * 12 + [3] * 12) * 2 + [2] * 12  # a wall does not end it
    some = StickyExplorer(
        {"forward": 1},
        {"forward": (2, 2)},
        default_weight=0,
        loops=["left*12,right*12", "right*7"],
        loop_probability=0.3,
    )
    found = runs(play(some, 9000))
    assert {length for action, length in found[:-1] if action == 2} == {12}
    assert {length % 7 for action, length in found[:-1] if action == 3} <= {0, 5}  # alone, one after another, or back
    began = sum(length // 2 for action, length in found if action == 1), sum(action == 2 for action, _ in found)
    assert began[1] / began[0] == pytest.approx(0.5 * 0.3 / 0.7, rel=0.2)  # half of the loops


def test_without_a_probability_loops_change_nothing() -> None:
    plain, same = (
        StickyExplorer(random_action_probability=0.2),
        StickyExplorer(random_action_probability=0.2, loops=["left*24"]),
    )
    assert play(plain, 500) == play(same, 500)


def test_a_script_follows_a_free_walk_and_a_rest() -> None:
    explorer = ScriptExplorer("left*3,forward", StickyExplorer(), walk=5, still=2)
    free = play(StickyExplorer(), 5)
    assert play(explorer, 11) == [*free, 0, 0, 2, 2, 2, 1]
    assert explorer.finished
    assert play(explorer, 10) == [*free, 0, 0, 2, 2, 2] and not explorer.finished
    assert play(explorer, 22)[16:] == [0, 0, 2, 2, 2, 1]  # again, where nobody ends the episode
    assert play(explorer, 9, names=("forward", "left"))[5:] == [1, 1, 1, 0]  # no action to stand still
    assert play(ScriptExplorer("right", StickyExplorer(), walk=0, still=0), 8) == [3] * 8


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("jump*2", r"explorer.script is 'jump\*2': unknown action 'jump'; choose noop, forward, left, right"),
        ("left*0", r"explorer.script is 'left\*0': count '0' in 'left\*0'; write left\*n with a whole n of at least 1"),
        ("left,,right", "explorer.script is 'left,,right': an action is missing"),
    ],
)
def test_a_bad_script_is_named(script: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScriptExplorer(script, StickyExplorer()).check(NAMES)
    if script != "jump*2":
        with pytest.raises(ConfigError, match=message.partition(": ")[2]):
            play(StickyExplorer(loops=[script]), 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loop_probability": 2}, "loop_probability is 2; it must be at most 1"),
        ({"loops": "left*24"}, "loops is 'left.24'; it must be a list"),
        ({"weights": {"left": -1}}, "weights.left is -1; it must be at least 0"),
        ({"runs": {"left": [3, 2]}}, r"the run of left must be \[shortest, longest\]; got \[3, 2\]"),
        ({"default_run": [0, 2]}, r"default_run is \[0, 2\]; an entry is 0; it must be at least 1"),
        ({"turn_away": [1]}, r"turn_away is \[1\]; it must be a list of at least 2"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StickyExplorer(**settings)


def test_no_weight_at_all_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no action of a, b has a weight above 0"):
        StickyExplorer(default_weight=0).begin(("a", "b"), np.random.default_rng(0))


def walk(explorer: Agent, steps: int) -> tuple[int, float]:
    """Poses visited in ViZDoom (cells of 64 units and 30°), and the share of forward steps that led nowhere."""
    env = make_frames("worldmodel.envs:worldmodel/Vizdoom-v0", {"scenario": "my_way_home", "size": 64})
    rng = np.random.default_rng(0)
    poses, walked, blocked = set(), 0, 0
    done = True
    for _ in range(steps):
        if done:
            frame, info = env.reset(seed=int(rng.integers(2**31)))
            explorer.begin(env.data_spec.action_names, rng)
        action, before = explorer.act(frame), info["worldmodel_pose"]
        frame, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        if "worldmodel_pose" in info:
            poses.add(tuple(np.floor_divide(info["worldmodel_pose"], (64, 64, 30))))
            walked += action == 1
            blocked += action == 1 and np.hypot(*(info["worldmodel_pose"] - before)[:2]) < 1
    env.close()
    return len(poses), blocked / walked


def test_the_configured_explorer_sees_more_of_the_rooms_than_a_uniform_one() -> None:
    sticky, uniform = (instantiate(OmegaConf.load(CONFIGS / f"{name}.yaml")) for name in ("sticky", "uniform"))
    poses, blocked = walk(sticky, 3000)
    base_poses, base_blocked = walk(uniform, 3000)
    assert poses > 1.4 * base_poses and blocked < 0.5 * base_blocked
