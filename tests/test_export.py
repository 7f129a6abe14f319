"""Export: what goes out comes in again the same, and a folder is replaced as a whole or not at all."""

from __future__ import annotations

import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import SPEC, episode, small_store
from test_sources import shared

from worldmodel import collect, export
from worldmodel.data.export import to_npz
from worldmodel.data.records import Item
from worldmodel.data.sources import Recordings
from worldmodel.data.store import EpisodeStore
from worldmodel.types import Episode, Spec

KINDS = ("npz", "minari", "arrow")
Say = Callable[..., str]


def flags(kind: str) -> tuple[str, ...]:
    """What is asked for, where that is possible here."""
    if kind == "npz":
        return ("--to", "npz")
    pytest.importorskip("minari", reason="the extra minari is not installed")
    if kind == "arrow":
        pytest.importorskip("pyarrow", reason="minari[arrow] is not installed")
        return ("--to", "minari", "--storage", "arrow")
    return ("--to", "minari")


def assert_same(one: EpisodeStore, two: EpisodeStore) -> None:
    """Every frame, action, reward and flag, and which are held out."""
    assert one.spec == two.spec and len(one) == len(two) > 0
    for index in range(len(one)):
        first, second = one.episode(index), two.episode(index)
        for name in ("frames", "actions", "rewards"):
            left, right = getattr(first, name), getattr(second, name)
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        assert (first.terminated, first.truncated) == (second.terminated, second.truncated)
        assert one.entries[index].held_out == two.entries[index].held_out


@pytest.mark.parametrize("kind", KINDS)
def test_what_went_out_comes_in_the_same(kind: str, say: Say, tmp_path: Path) -> None:
    argv = flags(kind)
    store = small_store(tmp_path / "data/maze")
    said = say(export, *argv, "data=data/maze", "--out", "there")
    assert (
        said.startswith("exported  21 frames in 4 episodes, ")
        and f"source={argv[1]} source.path={tmp_path}/there" in said
    )
    say(collect, f"source={argv[1]}", "source.path=there", "data=back")
    assert_same(store, EpisodeStore.open(tmp_path / "back"))
    assert not list(tmp_path.glob(".*"))  # nothing is left under a temporary name


@pytest.mark.parametrize("kind", KINDS)
def test_real_recordings_go_out_and_come_in_the_same(kind: str, say: Say, tmp_path: Path) -> None:
    argv = flags(kind)
    source = Recordings(shared("dmlab84") + "/seekavoid_arena_01")
    with EpisodeStore.writer(tmp_path / "lab", source.spec) as store:
        store.extend([source.read(index) for index in (0, 9)])
        say(export, *argv, "data=lab", "--out", "there")
        say(collect, f"source={argv[1]}", "source.path=there", "data=back")
        assert_same(store, EpisodeStore.open(tmp_path / "back"))


def test_minari_itself_opens_the_data_set(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari", reason="the extra minari is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    store = small_store(tmp_path / "maze")
    say(export, "--to", "minari", "data=maze")
    say(export, "--to", "minari", "data=maze", "--id", "toy/lab/maze-v3", "--split", "held_out")
    assert set(minari.list_local_datasets()) == {"maze-v0", "toy/lab/maze-v3"}
    data = minari.load_dataset("maze-v0")
    assert (data.total_episodes, data.total_steps) == (4, 17) and not data.storage.jpeg_encoding
    facts = data.storage.metadata["worldmodel_spec"]
    assert (facts["env_id"], facts["rate"]) == (SPEC.env_id, SPEC.rate)
    assert facts["action_names"] == list(SPEC.action_names) and facts["env_kwargs"] == SPEC.env_kwargs
    for index, found in enumerate(data.iterate_episodes()):
        wanted = store.episode(index)
        np.testing.assert_array_equal(found.observations, wanted.frames.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(found.actions, wanted.actions[1:])
        np.testing.assert_array_equal(found.rewards, wanted.rewards[1:])
        assert found.terminations.tolist() == [False] * (wanted.steps - 1) + [wanted.terminated]
        assert found.truncations.tolist() == [False] * (wanted.steps - 1) + [wanted.truncated]
    assert minari.load_dataset("toy/lab/maze-v3").total_episodes == len(store.split("held_out")) == 1
    say(collect, "source=minari", "source.path=maze-v0", "data=back")
    assert_same(store, EpisodeStore.open(tmp_path / "back"))


def test_npz_files_are_read_without_our_code(tmp_path: Path) -> None:
    store = small_store(tmp_path / "maze")
    (tmp_path / "out").mkdir()
    to_npz(store, range(len(store)), tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [f"ep{n:05d}.npz" for n in range(4)] + [
        "spec.json"
    ]
    with np.load(tmp_path / "out/ep00001.npz", allow_pickle=False) as found:
        arrays = {name: (array.dtype.name, array.shape) for name, array in found.items()}
        obs, held_out = found["obs"], found["held_out"]
    assert arrays == {
        "obs": ("uint8", (8, 32, 40, 3)), "action": ("int64", (7,)), "reward": ("float32", (7,)),
        "terminated": ("bool", (7,)), "truncated": ("bool", (7,)), "held_out": ("bool", ()), "condition": ("int64", ()),
    }  # fmt: skip
    np.testing.assert_array_equal(obs, store.episode(1).frames.transpose(0, 2, 3, 1))
    assert held_out and json.loads((tmp_path / "out/spec.json").read_text())["action_names"] == list(SPEC.action_names)


def test_a_folder_is_replaced_only_when_asked_and_only_when_it_is_an_export(say: Say, tmp_path: Path) -> None:
    store = small_store(tmp_path / "maze")
    argv = ("--to", "npz", "data=maze", "--out", "there")
    say(export, *argv)
    before = {file.name: file.read_bytes() for file in (tmp_path / "there").iterdir()}
    said = say(export, *argv, "--split", "train", code=2)
    assert said == f"error: {tmp_path}/there is there; --overwrite replaces it, --output names another place\n"
    assert {file.name: file.read_bytes() for file in (tmp_path / "there").iterdir()} == before
    say(export, *argv, "--split", "train", "--overwrite")
    assert len(list((tmp_path / "there").glob("*.npz"))) == len(store.split("train")) < 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    for place in ("mine", "mine/letter.txt", "maze"):
        said = say(export, "--to", "npz", "data=maze", "--out", place, "--overwrite", code=2)
        assert "is there and holds no export as npz; choose another place with --out" in said
    assert (tmp_path / "mine/letter.txt").read_text() == "dear" and len(EpisodeStore.open(tmp_path / "maze")) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_fails_half_way_leaves_what_was_there(
    error: Any, kind: str, say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = (*flags(kind), "data=maze", "--out", "there")
    small_store(tmp_path / "maze")
    say(export, *argv)
    whole = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    read = EpisodeStore.episode

    def fails(store: EpisodeStore, index: int) -> Episode:
        if index == 2:
            raise error
        return read(store, index)

    monkeypatch.setattr(EpisodeStore, "verify", lambda store: [])
    monkeypatch.setattr(EpisodeStore, "episode", fails)
    say(export, *argv, "--overwrite", code=130 if error is KeyboardInterrupt else 2)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == whole


def test_an_export_that_cannot_be_put_in_its_place_leaves_the_old_one_there(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("--to", "npz", "data=maze", "--out", "there")
    small_store(tmp_path / "maze")
    say(export, *argv)
    whole = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    rename = Path.rename

    def refuses(path: Path, target: Path) -> Path:
        if path.name.endswith(".part"):
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuses)
    assert "Permission denied" in say(export, *argv, "--overwrite", code=2)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == whole


def test_what_a_killed_export_left_is_no_obstacle_and_is_removed_after_a_day(say: Say, tmp_path: Path) -> None:
    same, old, young = (tmp_path / "exports" / f".maze.{owner}.part" for owner in (os.getpid(), 1, 2))
    for part in (same, old, young):
        part.mkdir(parents=True)
        (part / "ep00000.npz").touch()
    os.utime(old, (time.time() - 100_000,) * 2)
    small_store(tmp_path / "maze")
    say(export, "--to", "npz", "data=maze")
    assert {path.name for path in (tmp_path / "exports").iterdir()} == {"maze", young.name}
    assert len(list((tmp_path / "exports/maze").glob("*.npz"))) == 4


def test_damaged_episodes_stay_at_home(say: Say, tmp_path: Path) -> None:
    small_store(tmp_path / "maze")
    with open(tmp_path / "maze/shard-00000.frames", "r+b") as file:
        file.write(b"garbage")
    assert say(export, "--to", "npz", "data=maze").startswith("exported  19 frames in 3 episodes")
    assert sorted(file.name for file in (tmp_path / "exports/maze").glob("*.npz")) == [
        f"ep{n:05d}.npz" for n in (1, 2, 3)
    ]


def put(folder: Path, shape: tuple[int, ...], steps: int) -> None:
    spec = Spec("x", shape, ("a", "b"), 1.0)
    with EpisodeStore.writer(folder, spec) as store:
        store.append(episode(0, steps, spec))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["data=nowhere", "--to", "npz"], "no data at nowhere; python -m worldmodel.collect data=nowhere records some"),
        (["data=sound", "--to", "npz"], "sound holds frames (1, 640); only images are exported"),
        (
            ["data=still", "--to", "minari"],
            "still holds episodes without a step, which Minari does not support; use --to npz",
        ),
        (["data=still", "--to", "npz", "--split", "held_out"], "still holds no episode of --split held_out"),
        (["data=still", "--to", "npz", "--id", "x-v0"], "--id is for --to minari, not for --to npz"),
        (["data=still", "--to", "minari", "--id", "x y"], "'x y' is no id of a Minari data set; write --id name-v0"),
        (["data=still", "--to", "minari", "--id", "../x-v0"], "'../x-v0' is no id of a Minari data set"),
        (["data=still"], "the following arguments are required: --to"),
        (["data=still", "--to", "zarr"], "invalid choice: 'zarr'"),
    ],
)
def test_what_cannot_go_out_is_one_line(argv: list[str], message: str, say: Say, tmp_path: Path) -> None:
    if "minari" in argv:
        pytest.importorskip("minari", reason="the extra minari is not installed")
    put(tmp_path / "sound", (1, 640), 3)
    put(tmp_path / "still", (3, 16, 16), 0)
    said = say(export, *argv, "--out", "out", code=2)
    assert said.startswith("error: ") and message in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_one_episode_at_a_time_is_in_memory(tmp_path: Path) -> None:
    peaks = []
    with EpisodeStore.writer(tmp_path / "maze", SPEC) as store:
        store.extend([Item(episode(0, 99)) for _ in range(12)])
        for count in (1, 12):
            (tmp_path / str(count)).mkdir()
            tracemalloc.start()
            to_npz(store, range(count), tmp_path / str(count))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_pictures_of_classes_go_through_npz(tmp_path: Path) -> None:
    spec = Spec("pets", (3, 16, 16), ("cat", "dog"), 1.0)
    with EpisodeStore.writer(tmp_path / "pets", spec) as store:
        still = episode(0, 0, spec)
        still.actions[0] = 1
        store.append(still)
        (tmp_path / "out").mkdir()
        to_npz(store, [0], tmp_path / "out")
    with np.load(tmp_path / "out/ep00000.npz") as found:
        assert found["obs"].shape == (1, 16, 16, 3) and found["condition"] == 1


def test_without_minari_one_line_says_what_to_install(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    small_store(tmp_path / "maze")
    for said in (
        say(collect, "source=minari", "source.path=x", code=2),
        say(export, "--to", "minari", "data=maze", "--out", "out", code=2),
    ):
        assert said.count("\n") == 1 and "'minari', which is not installed: pip install 'minari[hdf5]'" in said
    assert not (tmp_path / "out").exists()
