"""Recordings as npz files: which action belongs to which frame, what is left out, and what is refused."""

from __future__ import annotations

import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import numbered, write_npz
from test_sources import Attack, shared
from test_take_in import take_in

from worldmodel.data.pictures import to_frames
from worldmodel.data.sources import Arrays
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import DataError
from worldmodel.types import NO_ACTION, Episode


def told(found: Episode) -> tuple[list[int], list[int], list[int], bool, bool]:
    """The colours of the frames, the actions, the rewards and how it ended."""
    assert (found.frames == found.frames[:, :1, :1, :1]).all()
    rewards = [int(reward) for reward in found.rewards[1:]]
    return found.frames[:, 0, 0, 0].tolist(), found.actions[1:].tolist(), rewards, found.terminated, found.truncated


def episodes(file: Path, **settings: Any) -> list[Any]:
    source = Arrays(str(file), **settings)
    return [told(source.read(index).episode) for index in range(len(source))]


def test_of_frames_after_their_actions_the_first_of_an_episode_has_none(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", ends=(3,))
    assert episodes(tmp_path) == [
        ([0, 1, 2, 3], [1, 2, 0], [1, 2, 3], True, False),  # action 0 and reward 0 led to frame 0, from nowhere
        ([4, 5, 6, 7, 8], [2, 0, 1, 2], [5, 6, 7, 8], False, False),
    ]
    item = Arrays(str(tmp_path)).read(0)
    assert item.episode.condition == NO_ACTION and item.held_out is None and item.key == f"{tmp_path.name}/a/0-3"


def test_of_frames_before_their_actions_the_last_of_an_episode_lacks_one(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", ends=(3,))
    assert episodes(tmp_path, observed="before") == [
        ([0, 1, 2, 3, 3], [0, 1, 2, 0], [0, 1, 2, 3], True, False),  # what it ended in was not seen; that it did, was
        ([4, 5, 6, 7, 8], [1, 2, 0, 1], [4, 5, 6, 7], False, False),  # where it led to was not seen
    ]


@pytest.mark.parametrize("observed", ["after", "before"])
def test_with_one_frame_more_nothing_is_missing(observed: Any, tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", 3, ends=(2,), frames=4)
    assert episodes(tmp_path, observed=observed) == [([0, 1, 2, 3], [0, 1, 2], [0, 1, 2], True, False)]
    write_npz(tmp_path / "a.npz", 3, ends=(1,), frames=4)
    with pytest.raises(
        DataError, match=r"a\.npz has one frame more than actions, as one episode has, but an end at ste"
    ):
        Arrays(str(tmp_path))


def test_what_ends_an_episode(tmp_path: Path) -> None:
    lost = np.arange(9) == 4
    write_npz(tmp_path / "a.npz", ends=(8,), life_loss=lost)
    assert episodes(tmp_path) == [(list(range(9)), [t % 3 for t in range(1, 9)], list(range(1, 9)), True, False)]
    assert [(found[0], *found[3:]) for found in episodes(tmp_path, life_loss=True)] == [
        ([0, 1, 2, 3, 4], True, False),
        ([5, 6, 7, 8], True, False),
    ]
    # A life that was lost resets nothing: what the action led to is the next frame.
    assert [(found[0], *found[3:]) for found in episodes(tmp_path, life_loss=True, observed="before")] == [
        ([0, 1, 2, 3, 4, 5], True, False),
        ([5, 6, 7, 8, 8], True, False),
    ]
    for name, flags in (("truncated", (False, True)), ("terminated", (True, False))):
        write_npz(tmp_path / "a.npz", ends=(8,), **{name: np.arange(9) == 8})
        assert [found[3:] for found in episodes(tmp_path)] == [flags]
    write_npz(tmp_path / "a.npz", done=None, truncated=np.arange(9) == 2, terminated=np.arange(9) == 5)
    assert [found[3:] for found in episodes(tmp_path)] == [(False, True), (True, False), (False, False)]
    write_npz(tmp_path / "a.npz", ends=(0, 1, 4))  # episodes of one frame have no step
    assert [found[0] for found in episodes(tmp_path)] == [[2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("observed", ["after", "before"])
def test_a_cut_loses_no_step(observed: Any, tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", 11, ends=(10,))
    (frames, actions, rewards, *_), *others = episodes(tmp_path, observed=observed)
    assert not others
    parts = episodes(tmp_path, observed=observed, longest=4)
    assert [len(part[1]) for part in parts] == [4, 4, len(actions) - 8]
    assert [action for part in parts for action in part[1]] == actions
    assert [reward for part in parts for reward in part[2]] == rewards
    assert frames[:1] + [frame for part in parts for frame in part[0][1:]] == frames
    assert [part[3:] for part in parts] == [(False, True), (False, True), (True, False)]
    source = Arrays(str(tmp_path), observed=observed, longest=4)
    assert len(set(source.keys)) == 3
    assert [told(source.read(index).episode) for index in (2, 0, 2, 1)] == [parts[index] for index in (2, 0, 2, 1)]


def test_arrays_of_other_names_and_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
    write_npz(tmp_path / "a.npz", obs=None, done=None, image=pictures, terminals=np.arange(9) == 8)
    source = Arrays(str(tmp_path / "a.npz"), keys={"obs": "image", "done": "terminals"})
    assert source.keys == [f"{tmp_path.name}/a/0-8"] and source.spec.frame_shape == (3, 32, 48)
    np.testing.assert_array_equal(source.read(0).episode.frames, pictures.transpose(0, 3, 1, 2))
    small = Arrays(str(tmp_path), size=16, keys={"obs": "image", "done": "terminals"}, action_names=["a", "b", "c d"])
    means = pictures.reshape(9, 16, 2, 16, 3, 3).mean((2, 4)).transpose(0, 3, 1, 2)  # of the area that a pixel covers
    assert np.abs(small.read(0).episode.frames - means).max() <= 1
    assert small.spec.action_names == ("a", "b", "c d") and source.spec.action_names == ("0", "1", "2")
    settings = (
        "source.keys.obs=image",
        "source.keys.done=terminals",
        f"source.path={tmp_path}",
        f"data={tmp_path}/data",
    )
    assert take_in(capsys, "source=npz", *settings)[::2] == (0, "")
    for name, shape in (("first", (3, 20, 24)), ("grey", (20, 24))):
        write_npz(tmp_path / name / "a.npz", obs=numbered(*range(9), shape=shape), action=np.zeros((9, 1), np.uint8))
        source = Arrays(str(tmp_path / name))
        assert source.spec.frame_shape == ((3, 20, 24) if name == "first" else (1, 20, 24))
        assert told(source.read(0).episode)[0] == list(range(9))


def flipped(file: Path) -> None:
    """One pixel of a file that is stored without compression, where only the checksum knows it."""
    with np.load(file) as arrays:
        np.savez(file, **dict(arrays))
    data = bytearray(file.read_bytes())
    data[data.index(b"obs.npy") + 1000] ^= 1
    file.write_bytes(data)


def test_damaged_files_are_named_and_everything_else_is_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c", "d", "e", "f"):
        write_npz(tmp_path / f"set/{name}.npz", ends=(4,))
    (tmp_path / "set/.hidden.npz").write_bytes(b"")
    files = {name: tmp_path / f"set/{name}.npz" for name in "bcdef"}
    files["b"].write_bytes(b"garbage")
    files["c"].write_bytes(files["c"].read_bytes()[:-300])
    flipped(files["d"])
    np.savez(files["e"], obs=numbered(1), action=np.array([Attack(f"touch {tmp_path / 'flag'}")]), reward=[0])
    files["f"].write_bytes(pickle.dumps(Attack(f"touch {tmp_path / 'flag'}")))
    argv = ("source=npz", f"source.path={tmp_path / 'set'}", f"data={tmp_path / 'data'}")
    code, out, err = take_in(capsys, *argv)
    assert code == 2 and not (tmp_path / "flag").exists()
    assert out.startswith("new       2 of 8, 0 were there")  # both episodes of the damaged d are left out
    source = Arrays(str(tmp_path / "set"))
    for name in "bcdef":
        index = next(index for index, key in enumerate(source.keys) if key.startswith(f"set/{name}"))
        others = {"e": "holds an array of objects", "f": "is a file of format pickle"}
        message = others.get(name, "cannot be read .*remove it or restore it")
        with pytest.raises(DataError, match=f"{name}.npz {message}"):
            source.read(index)
    for name in "bcdef":
        write_npz(files[name], ends=(4,))
    code, out, err = take_in(capsys, *argv)
    assert (code, err) == (0, "") and out.startswith("new       10 of 12, 2 were there")
    store = EpisodeStore.open(tmp_path / "data")
    assert len(store) == 12 and store.keys == set(Arrays(str(tmp_path / "set")).keys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": None}, "has no obs, but action, reward, done, life_loss; source.keys={obs: …, action: …"),
        ({"reward": None}, "has no reward, but "),
        ({"done": None}, "has no done, and no terminated and truncated; source.keys="),
        (
            {"obs": numbered(*range(9)).astype(np.float32)},
            r"holds float32 \(9, 16, 16, 3\) for obs; each of its frames must be an image of 8-bit",
        ),
        ({"obs": numbered(*range(9), shape=(7, 7, 3))}, ".*16×16 or more, with 1 to 15 channels"),
        ({"obs": np.zeros((), np.uint8)}, r"holds uint8 \(\) for obs"),
        ({"obs": np.asfortranarray(numbered(*range(9)))}, "holds obs column by column"),
        ({"obs": numbered(*range(8))}, "has 9 actions and 8 frames; it needs as many, or one frame more"),
        ({"action": np.zeros((9, 4))}, r"holds float64 \(9, 4\) for action; it needs one number a step"),
        ({"action": np.linspace(0, 1, 9)}, "holds actions that are no whole numbers from 0 on"),
        ({"action": np.arange(9) - 1}, "holds actions that are no whole numbers from 0 on"),
        ({"action": np.full(9, 10**9)}, "holds the action 1,000,000,000; they are numbered from 0 to 9,999"),
        ({"done": np.full(9, 0.5)}, r"holds float64 \(9,\) from 0.5 to 0.5 for done; it needs true or false"),
        ({"reward": np.zeros(8)}, r"holds float64 \(8,\) for reward"),
        ({"reward": np.full(9, np.nan)}, "holds rewards that are no finite numbers, first nan at index 0"),
    ],
)
def test_files_of_something_else_are_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", **changes)
    with pytest.raises(DataError, match=rf"a\.npz {message}"):
        Arrays(str(tmp_path))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["source.path=nowhere"], "nowhere does not exist; source.path=… names an npz file, or a folder of them"),
        (["source.path=empty"], "there is no npz file in or below "),
        (["source.path=set", "source.observed=between"], "source.observed is 'between'; choose after, before"),
        (["source.path=set", "source.life_loss=2"], "source.life_loss is 2; choose true, false"),
        (["source.path=set", "source.longest=0"], "source.longest is 0; it must be at least 1"),
        (["source.path=set", "+source.keys.frames=obs"], "there is no source.keys.frames; choose obs, action, "),
        (["source.path=set", "source.action_names=[a,b]"], "3 actions, which need as many different names; got a, b"),
        (["source.path=set", "source.action_names=[a,b,a]"], "need as many different names; got a, b, a"),
        (["source.path=short"], "no step of an episode is in short"),
        (["source.path=odd"], "spec.json is damaged or of something else"),
    ],
)
def test_bad_settings_are_one_line(
    argv: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_npz(tmp_path / "set/a.npz")
    write_npz(tmp_path / "odd/a.npz")
    write_npz(tmp_path / "short/a.npz", 1)
    (tmp_path / "odd/spec.json").write_text("{}")
    code, out, err = take_in(capsys, "source=npz", *argv)
    assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "data").exists()


def test_no_more_than_an_episode_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        zipfile.ZipExtFile, "MAX_SEEK_READ", 2**20
    )  # it skips 16 MB at a time, more than is stored here
    steps = 2000
    obs = np.repeat(numbered(*range(250), shape=(32, 32, 3)), 8, axis=0)
    write_npz(tmp_path / "a.npz", steps, tuple(range(99, steps, 100)), obs=obs)
    source = Arrays(str(tmp_path))
    source.read(0)
    tracemalloc.start()
    found = [source.read(index).episode.frames.nbytes for index in (3, 11, 19, 5)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 20 and max(found) < obs.nbytes / 15
    assert peak < obs.nbytes / 2


# ------------------------------------------------------------------------------------------------------ the real thing


def test_real_recordings_of_atari_come_in_as_they_are() -> None:
    folder = shared("atari64")
    source = Arrays(folder)
    files = sorted(Path(folder).glob("*.npz"))
    assert [key.split("/")[:2] for key in source.keys] == [["atari64", file.stem] for file in files]
    for index, file in enumerate(files):
        found = source.read(index).episode
        with np.load(file) as raw:
            np.testing.assert_array_equal(found.frames, raw["obs"].transpose(0, 3, 1, 2))
            np.testing.assert_array_equal(found.actions[1:], raw["action"][1:])
            np.testing.assert_array_equal(found.rewards[1:], raw["reward"][1:])
            assert found.terminated == raw["done"][-1] and not found.truncated


@pytest.mark.parametrize(("game", "steps"), [("Pong", 200), ("MsPacman", 110)])
def test_the_real_recordings_hold_frames_after_their_actions(game: str, steps: int) -> None:
    """What the game itself does under the recorded actions; later the two part ways, by a step of another length."""
    ale = pytest.importorskip("ale_py", reason="the game is played by ale-py")
    gymnasium = pytest.importorskip("gymnasium")
    gymnasium.register_envs(ale)
    with np.load(Path(shared("atari64")) / f"{game}.npz") as raw:
        obs, actions, rewards = raw["obs"], raw["action"], raw["reward"]
    env = gymnasium.make(f"ALE/{game}-v5", frameskip=4, repeat_action_probability=0.0, full_action_space=False)
    env.reset(seed=0)
    played = [env.step(int(action))[:2] for action in actions[:steps]]
    assert [reward for _, reward in played] == rewards[:steps].tolist() and any(rewards[:steps])
    small = np.stack([to_frames(picture[None], 64)[0].transpose(1, 2, 0) for picture, _ in played]).astype(int)
    apart = {shift: np.abs(small[2:-2] - obs[2 + shift : steps - 2 + shift]).mean() for shift in (-2, -1, 0, 1, 2)}
    assert min(apart, key=lambda shift: apart[shift]) == 0, apart


def packed(value: Any, dtype: Any = None) -> np.ndarray:
    """An array of two arrays, of one episode each."""
    array = np.empty(2, object)
    array[:] = [value, value]
    return array


def test_intact_files_that_are_not_supported_are_told_apart_from_damaged_ones(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"

    def reason() -> str:
        with pytest.raises(DataError) as caught:
            Arrays(str(tmp_path))
        return str(caught.value)

    for name in ("obs", "action", "reward", "done"):
        write_npz(file, **{name: packed(np.zeros(3))})
        assert "restore" not in reason() and ("array of objects" in reason() or "holds object (2,)" in reason())
    write_npz(file)
    data = bytearray(file.read_bytes())
    for mark, at in ((b"PK\1\2", 10), (b"PK\3\4", 8)):  # the method of compression of every part
        start = -1
        while (start := data.find(mark, start + 1)) >= 0:
            data[start + at] = 93  # Zstandard, as Python 3.14 writes it
    file.write_bytes(data)
    assert "is compressed or encrypted in a way that is not supported" in reason()
    file.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "a.npz is a file of format HDF5, which is not supported here; save it again with numpy.sav" in reason()
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(file)
    assert "is a file of format npy" in reason()


def test_a_header_that_states_fewer_frames_than_there_are_is_refused(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        others = {name: array for name, array in arrays.items() if name != "obs"}
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, array in others.items():
            with archive.open(f"{name}.npy", "w") as part:
                np.lib.format.write_array(part, array)
        with archive.open("obs.npy", "w") as part:  # as by a program that wrote the header first
            np.lib.format.write_array_header_1_0(
                part, {"descr": "|u1", "fortran_order": False, "shape": (0, 16, 16, 3)}
            )
            part.write(numbered(*range(9)).tobytes())
    with pytest.raises(DataError, match=r"obs states \(0, 16, 16, 3\), 0 bytes, and holds 6,912; its header"):
        Arrays(str(tmp_path))


@pytest.mark.parametrize("damage", [(b"held_out", b"hemd_out"), (b"'descr'", b"('escr'")])
def test_a_wrong_byte_in_a_name_or_a_header_is_damage(tmp_path: Path, damage: tuple[bytes, bytes]) -> None:
    """Also of an array that need not be there, in the directory at the end of the file."""
    file = tmp_path / "a.npz"
    write_npz(file, held_out=np.array(True))
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(tmp_path / "plain.npz", "w") as plain:
        for name in archive.namelist():
            plain.writestr(name, archive.read(name))
    content = (tmp_path / "plain.npz").read_bytes()
    file.unlink()
    place = content.rfind(damage[0])
    (tmp_path / "plain.npz").write_bytes(content[:place] + damage[1] + content[place + len(damage[0]) :])
    with pytest.raises(DataError, match=r"plain\.npz cannot be read"):
        Arrays(str(tmp_path))
