"""Stores that several machines recorded in the same environment are merged into one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from moving_square import SPEC, record

from worldmodel.collect import main
from worldmodel.data.sources import Stores
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import DataError


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
