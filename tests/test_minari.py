"""Minari data sets: whatever pictures and discrete actions they hold, and nothing that they name is run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Space, Tuple
from test_take_in import take_in

from worldmodel.data.sources import Minari, fill
from worldmodel.data.sources.minari import names_of
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import DataError

minari = pytest.importorskip("minari", reason="the extra minari is not installed")

PICTURE = Box(0, 255, (24, 20, 3), np.uint8)
ACTIONS = Discrete(3)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Minari keeps its data sets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def make(
    space: Space[Any] = PICTURE,
    actions: Space[Any] = ACTIONS,
    lengths: Sequence[int] = (4, 2),
    name: str = "toy/maze-v0",
    **options: Any,
) -> list[Any]:
    """A data set by Minari's own means; returns what was written."""
    space.seed(0)
    actions.seed(0)
    buffers = []
    for length in lengths:
        seen = [space.sample() for _ in range(length + 1)]
        stacked = {key: np.stack([one[key] for one in seen]) for key in seen[0]} if isinstance(seen[0], dict) else seen
        ends = [False] * (length - 1)
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                observations=stacked if isinstance(stacked, dict) else np.stack(stacked),
                actions=[actions.sample() for _ in range(length)],
                rewards=[0.1 * step for step in range(length)],
                terminations=[*ends, length == 4],
                truncations=[*ends, length != 4],
            )
        )
    options = {"jpeg_encoding": False, **options}
    minari.create_dataset_from_buffers(name, buffers, observation_space=space, action_space=actions, **options)
    return buffers


class Toy(gymnasium.Env[Any, Any]):
    metadata = {"action_names": ["noop", "forward", "left"]}  # noqa: RUF012
    observation_space, action_space = PICTURE, Discrete(3)


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Minari asks for an author, and for much else


def test_a_data_set_comes_in_by_its_id_and_by_its_folder(root: Path, tmp_path: Path) -> None:
    buffers = make()
    for path in ("toy/maze-v0", str(root / "toy/maze-v0"), str(root / "toy/maze-v0/data")):
        source = Minari(path)
        assert source.keys == ["toy/maze-v0/0", "toy/maze-v0/1"]
    assert source.spec.env_id == "minari" and source.spec.frame_shape == (3, 24, 20) and source.spec.rate == 15
    assert source.spec.action_names == ("0", "1", "2")
    for index, buffer in enumerate(buffers):
        item = source.read(index)
        np.testing.assert_array_equal(item.episode.frames, buffer.observations.transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(item.episode.actions[1:], buffer.actions)
        np.testing.assert_array_equal(item.episode.rewards[1:], np.float32(buffer.rewards))
        assert (item.episode.terminated, item.episode.truncated) == (index == 0, index == 1)
        assert item.held_out is None and item.key == source.keys[index]
    with EpisodeStore.writer(tmp_path / "data", source.spec) as store:
        assert fill(store, source).added == 2 and store.verify() == []


def test_a_part_of_a_dict_is_the_picture(tmp_path: Path) -> None:
    spaces = {
        "state": Box(-1, 1, (4,), np.float32),
        "grid": Box(0, 255, (7, 7, 3), np.uint8),
        "first": Box(0, 255, (3, 24, 20), np.uint8),
        "grey": Box(0, 255, (24, 20), np.uint8),
    }
    (buffer, _) = make(Dict(spaces), Discrete(4, start=-1), name="two-v0")
    with pytest.raises(DataError, match=r"several pictures; choose with source\.observation=first\|grey"):
        Minari("two-v0")
    with pytest.raises(DataError, match="no picture 'grid'; choose first, grey"):
        Minari("two-v0", observation="grid")
    first, grey = (Minari("two-v0", observation=part).read(0).episode for part in ("first", "grey"))
    np.testing.assert_array_equal(first.frames, buffer.observations["first"])
    np.testing.assert_array_equal(grey.frames[:, 0], buffer.observations["grey"])
    np.testing.assert_array_equal(first.actions[1:], np.array(buffer.actions) + 1)
    del spaces["grey"]
    make(Dict(spaces), name="one-v0")
    assert Minari("one-v0").spec.frame_shape == (3, 24, 20)
    assert Minari("one-v0", size=16).read(0).episode.frames.shape == (5, 3, 16, 16)


def test_pictures_that_minari_keeps_as_jpeg_are_decoded() -> None:
    smooth = np.add.outer(np.arange(40), np.arange(48)).astype(np.uint8)[..., None].repeat(3, 2)
    space = Box(0, 255, (40, 48, 3), np.uint8)
    buffer = minari.data_collector.EpisodeBuffer(
        observations=np.stack([smooth] * 3), actions=[0, 1], rewards=[0, 0], terminations=[0, 1], truncations=[0, 0]
    )
    minari.create_dataset_from_buffers("jpeg-v0", [buffer], observation_space=space, action_space=Discrete(2))
    frames = Minari("jpeg-v0").read(0).episode.frames
    assert 0 < np.abs(frames - smooth.transpose(2, 0, 1).astype(int)).mean() < 3


def test_actions_have_the_names_of_an_environment_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    gymnasium.register("worldmodel-tests/Toy-v0", f"{__name__}:Toy")
    try:
        make(env=gymnasium.spec("worldmodel-tests/Toy-v0"))
        source = Minari("toy/maze-v0")
        assert source.spec.env_id == "worldmodel-tests/Toy-v0"
        assert source.spec.action_names == ("noop", "forward", "left")
        assert Minari("toy/maze-v0", action_names=["a", "b", "c"]).spec.action_names == ("a", "b", "c")
        assert names_of("worldmodel-tests/Toy-v0", 4) is None
    finally:
        del gymnasium.registry["worldmodel-tests/Toy-v0"]
    assert Minari("toy/maze-v0").spec.action_names == ("0", "1", "2")
    with pytest.raises(DataError, match="3 actions and 4 names were given"):
        Minari("toy/maze-v0", action_names=list("abcd"))


@pytest.mark.parametrize("spaces", [True, False])
def test_an_environment_that_a_data_set_describes_is_not_built(spaces: bool, root: Path, tmp_path: Path) -> None:
    make()
    file = root / "toy/maze-v0/data/metadata.json"
    facts = json.loads(file.read_text())
    spec = gymnasium.envs.registration.EnvSpec("Evil-v0", "os:system", kwargs={"command": f"touch {tmp_path / 'flag'}"})
    facts["env_spec"] = spec.to_json()
    if not spaces:
        del facts["observation_space"]
    file.write_text(json.dumps(facts))
    if spaces:
        assert Minari("toy/maze-v0").spec.action_names == ("0", "1", "2")
    else:
        with pytest.raises(DataError, match="does not state its observation_space"):
            Minari("toy/maze-v0")
    assert not (tmp_path / "flag").exists()


@pytest.mark.parametrize(
    ("space", "actions", "message"),
    [
        (PICTURE, MultiDiscrete([2, 3]), r"has actions MultiDiscrete\(\[2 3\]\); only Discrete ones can be read"),
        (PICTURE, Box(-1, 1, (2,)), r"has actions Box\(.*; only Discrete ones can be read"),
        (Box(-1, 1, (24, 20, 3), np.float32), Discrete(3), "no image of 8-bit pixels"),
        (Dict({"a": Box(0, 255, (8, 8, 3), np.uint8)}), Discrete(3), "no image of 8-bit pixels"),
    ],
)
def test_what_holds_something_else_is_one_line(space: Space[Any], actions: Space[Any], message: str) -> None:
    make(space, actions)
    with pytest.raises(DataError, match=message) as caught:
        Minari("toy/maze-v0")
    assert "\n" not in str(caught.value)


def test_tuples_are_refused() -> None:
    buffer = minari.data_collector.EpisodeBuffer(
        observations=(np.zeros((2, 24, 20, 3), np.uint8), np.zeros((2, 1), np.float32)), actions=[0], rewards=[0.0],
        terminations=[True], truncations=[False],
    )  # fmt: skip
    both = Tuple((PICTURE, Box(-1, 1, (1,), np.float32)))
    minari.create_dataset_from_buffers("pair-v0", [buffer], observation_space=both, action_space=Discrete(2))
    with pytest.raises(DataError, match="has observations Tuple"):
        Minari("pair-v0")


def test_what_is_not_there_is_not_fetched_unless_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[str] = []

    def fetch(name: str, *args: Any, **kwargs: Any) -> None:
        asked.append(name)
        raise ConnectionError("no way out")

    monkeypatch.setattr(minari.storage.hosting, "download_dataset", fetch)
    argv = ("source=minari", "source.path=toy/nowhere-v0", f"data={tmp_path / 'data'}")
    code, _, err = take_in(capsys, *argv)
    assert code == 2 and err.count("\n") == 1 and not asked
    assert err.startswith(
        "error: there is no Minari data set toy/nowhere-v0; source.path=… names a folder or an id that"
    )
    code, _, err = take_in(capsys, *argv, "source.download=true")
    assert code == 2 and asked == ["toy/nowhere-v0"] and "toy/nowhere-v0 cannot be read (no way out)" in err


def test_damaged_episodes_are_named_and_the_others_are_stored(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    h5py = pytest.importorskip("h5py", reason="minari[hdf5] is not installed")
    make(lengths=(4, 2, 3))
    file = root / "toy/maze-v0/data/main_data.hdf5"
    with h5py.File(file, "a") as data:
        del data["episode_0/actions"]
        data["episode_1/rewards"].resize((1,))
    argv = ("source=minari", "source.path=toy/maze-v0", f"data={tmp_path / 'data'}")
    code, out, err = take_in(capsys, *argv)
    assert code == 2 and out.startswith("new       1 of 3") and "2 files could not be read" in err
    for index, reason in ((0, "actions"), (1, "of 2 steps, its parts have 1, 2")):
        with pytest.raises(DataError, match=f"episode {index} of toy/maze-v0 cannot be read .*{reason}"):
            Minari("toy/maze-v0").read(index)
    file.write_bytes(file.read_bytes()[:2000])
    code, out, err = take_in(capsys, *argv)
    assert code == 2 and out.startswith("new       0 of 3, 1 were there") and "2 files could not be read" in err
    (root / "toy/maze-v0/data/metadata.json").write_text("{")
    code, out, err = take_in(capsys, *argv)
    assert code == 2 and err.startswith("error: the Minari data set toy/maze-v0 cannot be read (") and not out


def test_an_arrow_data_set_is_read_and_asked_for_where_it_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="minari[arrow] is not installed")
    (buffer, _) = make(Dict({"image": PICTURE, "text": Box(0, 1, (2,), np.float32)}), data_format="arrow")
    found = Minari("toy/maze-v0").read(0).episode
    np.testing.assert_array_equal(found.frames, buffer.observations["image"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(found.actions[1:], buffer.actions)
    assert found.terminated and not found.truncated


def test_what_minari_does_not_check_names_data_set_episode_and_step(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    h5py = pytest.importorskip("h5py", reason="minari[hdf5] is not installed")
    make(lengths=(4, 2, 3, 2))
    with h5py.File(root / "toy/maze-v0/data/main_data.hdf5", "a") as data:
        data["episode_0/actions"][2] = 7
        data["episode_1/rewards"][1] = np.inf
        floats = data["episode_2/observations"][:] / 255
        del data["episode_2/observations"]
        data["episode_2/observations"] = floats
    argv = ("source=minari", "source.path=toy/maze-v0", f"data={tmp_path / 'data'}")
    code, out, _ = take_in(capsys, *argv)
    assert code == 2 and out.startswith("new       1 of 4")
    source = Minari("toy/maze-v0")
    with EpisodeStore.writer(tmp_path / "data", source.spec) as store:
        reasons = fill(store, source).unreadable
    assert reasons[0].startswith("toy/maze-v0/0, step 3: the action is 7; actions are in [0, 3)")
    assert reasons[1].startswith("toy/maze-v0/1, step 2: the reward is inf; it must be a finite number")
    assert "episode 2 of toy/maze-v0 cannot be read (its frames: the image is float64 (4, 24, 20, 3)" in reasons[2]


def test_a_data_set_without_episodes_is_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(lengths=(2,))
    for name in ("metadata.json", "main_data.hdf5"):
        file = root / "toy/maze-v0/data" / name
        if name == "metadata.json":
            file.write_text(json.dumps({**json.loads(file.read_text()), "total_episodes": 0, "total_steps": 0}))
        else:
            h5py = pytest.importorskip("h5py", reason="minari[hdf5] is not installed")
            with h5py.File(file, "a") as data:
                del data["episode_0"]
    code, _, err = take_in(capsys, "source=minari", "source.path=toy/maze-v0", f"data={tmp_path / 'data'}")
    assert (code, err) == (
        2, "error: toy/maze-v0 holds no episode that can be imported; choose another source.path=…\n"
    )  # fmt: skip
    assert not (tmp_path / "data").exists()
