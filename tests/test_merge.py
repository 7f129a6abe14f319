"""Stores that several machines recorded in the same environment are merged into one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from moving_square import SPEC, record

from worldmodel.collect import main
from worldmodel.data.sources import Stores
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, DataError
from worldmodel.types import NO_ACTION


def write(folder: Path, seeds: range) -> str:
    with EpisodeStore.writer(folder, SPEC) as store:
        for seed in seeds:
            store.append(record(seed))
    return str(folder)


def test_recordings_of_one_environment_keep_its_specification(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, seeds) for name, seeds in (("a", range(3)), ("b", range(3, 7)))]
    words = ["source=stores", f"source.paths=[{','.join(paths)}]", f"data={tmp_path / 'all'}"]
    assert main(words) == 0
    merged = EpisodeStore.open(tmp_path / "all")
    assert merged.spec == SPEC and len(merged) == 7
    assert {"test:square@a/0", "test:square@b/3"} <= merged.keys
    for index, seed in enumerate(range(7)):
        assert np.array_equal(merged.episode(index).actions, record(seed).actions)
    write(tmp_path / "b", range(7, 9))  # a further recording; only what is new is added
    assert main(words) == 0
    assert len(EpisodeStore.open(tmp_path / "all")) == 9


def test_folders_of_the_same_name_are_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / name / "maze", range(3)) for name in "ab"]
    with pytest.raises(DataError, match=r"same name \(test:square@maze, test:square@maze\).* rename its folder"):
        Stores(paths)


def test_a_store_that_is_repeated_zero_times_gives_its_actions_only(tmp_path: Path) -> None:
    other = dataclasses.replace(SPEC, env_id="test:other", action_names=("jump", *SPEC.action_names))
    with EpisodeStore.writer(tmp_path / "b", other) as store:
        for seed in range(4):
            store.append(record(seed))
    paths = [write(tmp_path / "a", range(3)), str(tmp_path / "b")]
    whole, part = Stores(paths), Stores(paths, repeat=[2, 0])
    assert part.spec == whole.spec and part.spec.action_names == (*SPEC.action_names, "jump")
    assert {key.split("/")[0] for key in whole.keys} == {"test:square", "test:other"}
    assert {key.split("/")[0] for key in part.keys} == {"test:square"}
    with pytest.raises(ConfigError, match=r"source\.repeat has 1 numbers for 2 stores"):
        Stores(paths, repeat=[0])
    with pytest.raises(ConfigError, match=r"source\.repeat=\[0, 0\] leaves no episode"):
        Stores(paths, repeat=[0, 0])


def test_mirror_images_exchange_left_and_right_and_are_for_training_only(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, action_names=("turn_left", "stay", "turn_right", *SPEC.action_names[3:]))
    with EpisodeStore.writer(tmp_path / "a", spec) as store:
        for seed in range(3):
            store.append(record(seed), held_out=seed == 1)
    source = Stores([str(tmp_path / "a")], mirror=True)
    assert source.spec == spec
    assert source.keys == [f"{spec.env_id}/{key}" for key in ("0", "1", "2", "0#mirror", "2#mirror")]
    items = [source.read(index) for index in range(5)]
    assert [item.held_out for item in items] == [False, True, False, False, False]
    for index, seed in ((3, 0), (4, 2)):
        recorded, mirrored = record(seed), items[index].episode
        np.testing.assert_array_equal(mirrored.frames, recorded.frames[..., ::-1])
        opposite = np.array([2, 1, 0, *range(3, len(spec.action_names))])
        np.testing.assert_array_equal(mirrored.actions[1:], opposite[recorded.actions[1:]])
        assert mirrored.actions[0] == recorded.actions[0] == NO_ACTION
        np.testing.assert_array_equal(mirrored.rewards, recorded.rewards)


def test_an_action_without_an_opposite_cannot_be_mirrored(tmp_path: Path) -> None:
    with EpisodeStore.writer(tmp_path / "a", dataclasses.replace(SPEC, action_names=("left", "b", "c"))) as store:
        store.append(record(0))
    with pytest.raises(ConfigError, match=r"source\.mirror: the action left has no opposite among left, b, c"):
        Stores([str(tmp_path / "a")], mirror=True)
