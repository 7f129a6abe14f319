"""Sources: what they hold comes into the store as it is, once, and nothing that stands in a file is ever run."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from recordings import tiny_minari, tiny_npz
from sounds import tiny_speech, tiny_timit, tiny_vctk

from worldmodel.data.sources import CIFAR10, ImageFolder, Recordings, Source, fill
from worldmodel.data.sources.images import read_image
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import DataError
from worldmodel.types import NO_ACTION

SHARED = Path(__file__).parents[2] / "shared/data"
CLASSES = ["airplane", "automobile", "bird"]
ACTIONS = ["noop", "forward"]


def pixels(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_cifar(folder: Path, count: int = 3) -> Path:
    """Batches as they are published: protocol 2, with an array of bytes and a list of labels."""
    folder.mkdir(parents=True)
    dump(folder / "batches.meta", {"label_names": CLASSES, "num_vis": 3072})
    for number, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        data = np.random.default_rng(number).integers(0, 256, (count, 3072), np.uint8)
        labels = [(number + row) % len(CLASSES) for row in range(count)]
        dump(folder / name, {"data": data, "labels": labels, "filenames": ["a.png"] * count})
    return folder


def dump(file: Path, content: object, protocol: int = 2) -> None:
    file.write_bytes(pickle.dumps(content, protocol))


def write_images(folder: Path, names: tuple[str, ...]) -> Path:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(seed)).save(folder / name)
    return folder


def write_recording(folder: Path, number: int, steps: int = 5, frames: int | None = None, **changes: Any) -> np.ndarray:
    """One recording and the facts beside it; returns its frames (T + 1, 16, 16, 3)."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"height": 16, "width": 16, "action_names": ACTIONS, "agent_fps": 15.0}
    (folder / "meta.json").write_text(json.dumps(facts))
    pictures = np.random.default_rng(number).integers(0, 256, (steps + 1, 16, 16, 3), np.uint8)
    lossless = ["-crf", "0", "-preset", "ultrafast"]
    film = imageio_ffmpeg.write_frames(
        str(folder / f"ep{number:04d}.mp4"), (16, 16), pix_fmt_in="rgb24", pix_fmt_out="rgb24", fps=15,
        codec="libx264rgb", output_params=lossless, macro_block_size=1,
    )  # fmt: skip
    film.send(None)
    for picture in pictures[:frames]:
        film.send(picture.tobytes())
    film.close()
    ends = np.zeros(steps, bool)
    ends[-1] = True
    arrays = {
        "actions": np.arange(steps) % 2, "rewards": np.arange(steps, dtype=np.float32), "terminated": ends,
        "truncated": ~ends & False, "seed": np.int64(7), **changes,
    }  # fmt: skip
    np.savez(folder / f"ep{number:04d}.npz", **arrays)
    return pictures


def tiny_cifar(folder: Path) -> Source:
    return CIFAR10(str(write_cifar(folder)))


def tiny_images(folder: Path) -> Source:
    return ImageFolder(str(write_images(folder, ("b/1.png", "a/1.png", "a/deep/2.jpg", "b/3.bmp"))), 6)


def tiny_pile(folder: Path) -> Source:
    return ImageFolder(str(write_images(folder, tuple(f"{i:02d}.png" for i in range(21)))), 8, "pile")


def tiny_recordings(folder: Path) -> Source:
    for number in range(2):
        write_recording(folder / "maze", number)
        write_recording(folder / "arena", number, 3)
    return Recordings(str(folder))


@pytest.mark.parametrize(
    "make",
    [tiny_cifar, tiny_images, tiny_pile, tiny_recordings, tiny_npz, tiny_minari, tiny_vctk, tiny_timit, tiny_speech],
)
def test_every_source_keeps_its_contract(make: Callable[[Path], Source], tmp_path: Path) -> None:
    source = make(tmp_path / "set")
    assert len(source) == len(source.keys) == len(set(source.keys)) > 3
    with EpisodeStore.writer(tmp_path / "data", source.spec) as store:
        first = fill(store, source)
        assert (first.added, first.known, first.unreadable) == (len(source), 0, ())
        assert fill(store, source).added == 0 and len(store) == len(source)
    store = EpisodeStore.open(tmp_path / "data")
    assert store.verify() == [] and [entry.key for entry in store.entries] == list(source.keys)
    assert store.spec == source.spec
    for index in reversed(range(len(source))):  # in any order the same
        item, stored = source.read(index), store.episode(index)
        assert item.key == source.keys[index]
        for field in dataclasses.fields(stored):
            np.testing.assert_array_equal(getattr(item.episode, field.name), getattr(stored, field.name))
        assert item.held_out is None or item.held_out == store.entries[index].held_out
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set").rename(tmp_path / "elsewhere/set")
    facts: dict[str, Any] = {"path": str(tmp_path / "elsewhere/set"), "name": source.spec.env_id}
    again = type(source)(**facts, **({"size": source.spec.frame_shape[1]} if isinstance(source, ImageFolder) else {}))
    assert again.keys == source.keys and again.spec == source.spec  # a folder may be moved


def test_what_was_damaged_or_interrupted_comes_in_again(tmp_path: Path) -> None:
    source = tiny_pile(tmp_path / "set")
    asked: list[int] = []

    def after_the_first_chunk() -> bool:
        asked.append(1)
        return True

    with EpisodeStore.writer(tmp_path / "data", source.spec) as store:
        with pytest.raises(KeyboardInterrupt):
            fill(store, source, stopped=after_the_first_chunk)
        assert 0 < len(store) < len(source) and asked
        kept = len(store)
        progress: list[tuple[int, int]] = []
        filled = fill(store, source, progress=lambda done, total: progress.append((done, total)))
        assert (filled.added, filled.known) == (len(source) - kept, kept)
        assert progress[0] == (0, len(source) - kept) and progress[-1] == (len(source) - kept,) * 2
    with open(tmp_path / "data/shard-00000.frames", "r+b") as file:
        file.write(b"garbage")
    with EpisodeStore.writer(tmp_path / "data", source.spec) as store:
        assert len(store.verify()) == 1
        assert fill(store, source).added == 1 and store.verify() == []
        assert store.keys == set(source.keys) and len(store) == len(source)
        with pytest.raises(DataError, match="another Spec"):
            fill(store, tiny_cifar(tmp_path / "cifar"))


# ------------------------------------------------------------------------------------------------------------ CIFAR-10


def test_cifar_batches_come_in_order_and_the_test_batch_is_held_out(tmp_path: Path) -> None:
    source = tiny_cifar(tmp_path / "set")
    assert source.spec.frame_shape == (3, 32, 32) and source.spec.action_names == tuple(CLASSES)
    assert source.keys[:4] == ["data_batch_1/0", "data_batch_1/1", "data_batch_1/2", "data_batch_2/0"]
    items = [source.read(index) for index in range(9)]
    assert [item.held_out for item in items] == [False] * 6 + [True] * 3
    assert [item.episode.condition for item in items] == [0, 1, 2, 1, 2, 0, 2, 0, 1]
    data = np.random.default_rng(1).integers(0, 256, (3, 3072), np.uint8)
    np.testing.assert_array_equal(items[4].episode.frames[0].ravel(), data[1])  # planes of red, green and blue


def test_more_of_a_set_that_grew_is_added(tmp_path: Path) -> None:
    small, large = (CIFAR10(str(write_cifar(tmp_path / name, count))) for name, count in (("small", 2), ("large", 3)))
    with EpisodeStore.writer(tmp_path / "data", small.spec) as store:
        fill(store, small)
        assert fill(store, large).added == 3 and store.keys == set(large.keys)


class Attack:
    """Runs a command where it is unpickled by the usual means."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def attacks(command: str) -> dict[str, bytes]:
    array = np.array([[Attack(command)]], object)
    stacked = b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + pickle.dumps(command, 4)[2:-1] + b"\x85R."
    return {
        "called": pickle.dumps({"data": Attack(command), "labels": []}, 2),
        "named by strings": stacked,
        "in an array": pickle.dumps({"data": array, "labels": [0]}, 2),
        "builtins": b'c__builtin__\neval\n(S\'__import__("os").system("' + command.encode() + b"\")'\ntR.",
        "a helper of numpy": b"cnumpy.testing._private.utils\nrunstring\n(S'import os'\n}tR.",
        "an attribute": b"cnumpy\nndarray.__class__\n.",
        "persistent": b"Pid\n.",
    }


@pytest.mark.parametrize("kind", list(attacks("")))
@pytest.mark.parametrize("name", ["data_batch_1", "batches.meta"])
def test_a_pickle_of_anything_but_arrays_is_refused_by_name_and_not_run(kind: str, name: str, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    folder = write_cifar(tmp_path / "set")
    (folder / name).write_bytes(attacks(f"touch {flag}")[kind])
    with pytest.raises(DataError, match=rf"{name} is refused: it (names [\w.]+|refers to something outside)"):
        CIFAR10(str(folder))
    assert not flag.exists()
    if kind == "called":
        pickle.loads(attacks(f"touch {flag}")[kind])
        assert flag.exists()  # so the attack is one


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or no pickle"),
        (b"\x80\x02}q\x00", "damaged or no pickle"),
        (b"<html>", "damaged or no pickle"),
        (pickle.dumps([1], 2), "no table of arrays"),
        (pickle.dumps({"labels": [0]}, 2), "no array of n × 3072 bytes"),
        (pickle.dumps({"data": "x" * 3072, "labels": [0]}, 2), "no array of n × 3072 bytes"),
        (pickle.dumps({"data": np.zeros((1, 300), np.uint8), "labels": [0]}, 2), "no array of n × 3072 bytes"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.float32), "labels": [0]}, 2), "no array of n × 3072 bytes"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, 2), "2 images and 1 labels"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [3]}, 2), "none of the 3 classes"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": ["0"]}, 2), "none of the 3 classes"),
    ],
)
def test_a_batch_that_is_none_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    folder = write_cifar(tmp_path / "set")
    (folder / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match=f"data_batch_2 .*{message}"):
        CIFAR10(str(folder))


def test_arrays_of_both_pythons_are_read_alike(tmp_path: Path) -> None:
    """Python 3 writes bytes for Python 2 by way of a function; protocol 4 names things by strings."""
    read = []
    for protocol in (2, 3, 4):
        folder = write_cifar(tmp_path / str(protocol))
        content = {"data": np.arange(6144, dtype=np.uint8).reshape(2, 3072), "labels": [1, 2]}
        dump(folder / "data_batch_1", content, protocol)
        read.append(CIFAR10(str(folder)).read(1).episode.frames)
    assert all(np.array_equal(read[0], other) for other in read)
    assert read[0].ravel().tolist() == (np.arange(3072, 6144) % 256).tolist()


# -------------------------------------------------------------------------------------------------------------- images


def test_sub_folders_are_the_classes_and_every_tenth_file_is_held_out(tmp_path: Path) -> None:
    names = [f"{'cat' if i % 2 else 'dog'}/{i:02d}.png" for i in range(30)]
    write_images(tmp_path, (*names, "loose.png", ".hidden/x.png", "cat/.hidden.png"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "dog/notes.txt").write_text("not a picture")
    (tmp_path / "dog/back").symlink_to(tmp_path)  # a link that leads back does no harm
    source = ImageFolder(str(tmp_path), 8)
    assert source.spec.action_names == ("cat", "dog") and len(source) == 31
    items = [source.read(index) for index in range(31)]
    assert [item.episode.condition for item in items] == [0] * 15 + [1] * 15 + [NO_ACTION]
    assert [index for index, item in enumerate(items) if item.held_out] == [9, 19, 29]
    assert items[0].key == f"{tmp_path.name}/cat/01.png"
    np.testing.assert_array_equal(items[0].episode.frames[0], pixels(1).transpose(2, 0, 1))


def test_random_squares_of_training_images_follow_the_images(tmp_path: Path) -> None:
    for i in range(12):
        grey = np.arange(40 * 30, dtype=np.uint16).reshape(30, 40) // 5  # brighter to the right and to the bottom
        Image.fromarray(np.stack([grey.astype(np.uint8)] * 3, -1)).save(tmp_path / f"{i:02d}.png")
    source = ImageFolder(str(tmp_path), 8, crops=3)
    names = [f"{i:02d}.png" for i in range(12)]
    crops = [f"{name}#{crop}" for name in names if name != "09.png" for crop in range(3)]
    assert [key.partition("/")[2] for key in source.keys] == names + crops
    items = [source.read(index) for index in range(len(source))]
    assert [index for index, item in enumerate(items) if item.held_out] == [9]
    frames = np.stack([item.episode.frames[0] for item in items])
    assert len(np.unique(frames[12:].reshape(33, -1), axis=0)) == 33  # no two squares are the same
    slopes = frames[12:].astype(float).mean((1, 2)) @ np.linspace(-1, 1, 8)
    assert 5 < (slopes < 0).sum() < 28  # about half of them are mirrored
    again = ImageFolder(str(tmp_path), 8, crops=3)
    np.testing.assert_array_equal(again.read(30).episode.frames, items[30].episode.frames)


def test_a_folder_without_classes_has_one(tmp_path: Path) -> None:
    source = tiny_pile(tmp_path / "set")
    assert source.spec.action_names == ("image",) and source.spec.env_id == "pile"
    assert {source.read(index).episode.condition for index in range(len(source))} == {0}


def test_a_text_beside_a_picture_is_its_caption(tmp_path: Path) -> None:
    write_images(tmp_path, ("a/0.png", "a/1.png", "b/2.png", "3.png", "4.png"))
    for name, text in (("a/0", "A red bus, at night\nmore"), ("4", "two birds"), ("b/2", "  \n")):
        (tmp_path / f"{name}.txt").write_text(text)
    source = ImageFolder(str(tmp_path), 8)
    names = dict(zip(source.keys, range(len(source)), strict=True))
    called = {
        key.partition("/")[2]: source.read(n).episode.condition for key, n in names.items()
    }  # without a text: the folder
    known = source.spec.action_names
    assert known == ("A_red_bus_at_night", "a", "b", "two_birds")
    told = {key: known[at] if at >= 0 else None for key, at in called.items()}
    assert told == {"3.png": None, "4.png": "two_birds", "a/0.png": known[0], "a/1.png": "a", "b/2.png": "b"}


@pytest.mark.parametrize("place", ["", ".."])
def test_words_name_the_folders_of_imagenet(place: str, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "train", ("n1/a.png", "n2/a.png", "n3/a.png", "n4/a.png", "n5/a.png"))
    words = "n1 tench, Tinca tinca\nn2 great white shark, white shark\nn3\tcrane\nn4 crane, stork\n\nn9 odd one"
    (folder / place / "LOC_synset_mapping.txt").write_text(words)
    source = ImageFolder(str(folder), 8)
    assert source.spec.action_names == ("tench", "great_white_shark", "crane", "crane_2", "n5")


def save(image: Image.Image, tmp_path: Path, **options: Any) -> Path:
    file = tmp_path / "x.png"
    image.save(file, **options)
    return file


def test_grey_levels_and_palettes_become_rgb(tmp_path: Path) -> None:
    grey = pixels(0)[..., 0]
    np.testing.assert_array_equal(read_image(save(Image.fromarray(grey), tmp_path), 8), np.stack([grey] * 3))
    blocks = np.kron(np.arange(4).reshape(2, 2), np.ones((4, 4), int)).astype(np.uint8)
    palette = Image.frombytes("P", (8, 8), blocks.tobytes())
    colours = pixels(1, 2, 2).reshape(4, 3)
    palette.putpalette(colours.ravel().tolist())
    np.testing.assert_array_equal(read_image(save(palette, tmp_path), 8), colours[blocks].transpose(2, 0, 1))


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    rgba = np.concatenate([pixels(0), np.full((8, 8, 1), 255, np.uint8)], 2)
    np.testing.assert_array_equal(read_image(save(Image.fromarray(rgba), tmp_path), 8), pixels(0).transpose(2, 0, 1))
    rgba[:4, :, 3] = 0
    frame = read_image(save(Image.fromarray(rgba), tmp_path), 8)
    assert (frame[:, :4] == 255).all() and np.array_equal(frame[:, 4:], pixels(0)[4:].transpose(2, 0, 1))


def test_the_square_in_the_middle_is_taken_and_resized(tmp_path: Path) -> None:
    wide = np.zeros((8, 20, 3), np.uint8)
    wide[:, 6:14] = pixels(3)
    file = save(Image.fromarray(wide), tmp_path)
    np.testing.assert_array_equal(read_image(file, 8), pixels(3).transpose(2, 0, 1))  # of that size: untouched
    assert read_image(file, 4).shape == (3, 4, 4) and read_image(file, 33).shape == (3, 33, 33)
    flat = save(Image.new("RGB", (50, 90), (10, 200, 30)), tmp_path)
    assert (read_image(flat, 7) == np.array([10, 200, 30])[:, None, None]).all()


def test_a_picture_is_stored_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    file = save(Image.fromarray(pixels(4)), tmp_path, exif=exif)
    np.testing.assert_array_equal(read_image(file, 8), np.rot90(pixels(4), -1).transpose(2, 0, 1))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-60])


def too_deep(file: Path) -> None:
    Image.fromarray(pixels(0)[..., 0].astype(np.uint16) * 200).save(file)


def a_bomb(file: Path) -> None:
    """A file of some bytes that claims to be a picture of 60,000 × 60,000."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "cannot be read"),
        (lambda file: file.write_bytes(b""), "cannot be read .it is no picture"),
        (lambda file: file.write_bytes(b"<html>not found</html>"), "cannot be read .it is no picture"),
        (too_deep, r"of mode I;16; convert it to 8-bit RGB"),
        (a_bomb, "cannot be read"),
    ],
)
def test_a_bad_picture_is_named_and_the_others_come_in(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    source = tiny_pile(tmp_path / "set")
    damage(tmp_path / "set/04.png")
    with EpisodeStore.writer(tmp_path / "data", source.spec) as store:
        filled = fill(store, source)
        assert (filled.added, len(store)) == (20, 20)
        (reason,) = filled.unreadable
        assert "04.png" in reason and "\n" not in reason
        with pytest.raises(DataError, match=message):
            source.read(4)
        Image.fromarray(pixels(4)).save(tmp_path / "set/04.png")
        assert fill(store, source).added == 1
        assert [store.entries[i].key for i in store.split("held_out")] == ["set/09.png", "set/19.png"]


# ---------------------------------------------------------------------------------------------------------- recordings


def test_recordings_are_read_frame_by_frame(tmp_path: Path) -> None:
    pictures = write_recording(tmp_path / "maze", 9, 6)
    write_recording(tmp_path / "arena", 3, 1)
    source = Recordings(str(tmp_path))
    assert source.keys == ["arena/ep0003", "maze/ep0009"]
    assert Recordings(str(tmp_path / "maze")).keys == ["maze/ep0009"]  # the same names from nearer
    assert source.spec.action_names == tuple(ACTIONS) and source.spec.rate == 15.0
    item = source.read(1)
    np.testing.assert_array_equal(item.episode.frames, pictures.transpose(0, 3, 1, 2))
    assert item.episode.actions.tolist() == [NO_ACTION, 0, 1, 0, 1, 0, 1]
    assert item.episode.rewards.tolist() == [0, 0, 1, 2, 3, 4, 5]
    assert item.episode.terminated and not item.episode.truncated and item.episode.condition == NO_ACTION
    assert item.held_out and not source.read(0).held_out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 4}, r"ep0001.mp4 has 4 frames; its 5 steps need 6"),
        ({"rewards": np.zeros(4, np.float32)}, "different lengths"),
        ({"terminated": np.array([0, 1, 0, 0, 0])}, r"ep0001.npz ends before its last step"),
        ({"actions": np.full(5, 2)}, "actions that meta.json does not name"),
        ({"actions": np.zeros(5)}, "no whole numbers"),
        ({"actions": np.array([None] * 5)}, r"ep0001.npz holds an array of objects"),
    ],
)
def test_a_recording_that_does_not_fit_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_recording(tmp_path / "maze", 0)
    write_recording(tmp_path / "maze", 1, **changes)
    source = Recordings(str(tmp_path))
    with pytest.raises(DataError, match=message):
        source.read(1)
    assert source.read(0).episode.steps == 5


@pytest.mark.parametrize("suffix", [".mp4", ".npz"])
def test_a_truncated_recording_is_named(suffix: str, tmp_path: Path) -> None:
    write_recording(tmp_path, 0)
    file = tmp_path / f"ep0000{suffix}"
    for content in (file.read_bytes()[:-300], b"", b"nothing"):
        file.write_bytes(content)
        with pytest.raises(DataError, match=rf"ep0000\{suffix} cannot be read"):
            Recordings(str(tmp_path)).read(0)


def test_folders_of_recordings_must_go_together(tmp_path: Path) -> None:
    write_recording(tmp_path / "maze", 0)
    write_recording(tmp_path / "arena", 0)
    facts = json.loads((tmp_path / "maze/meta.json").read_text())
    (tmp_path / "maze/meta.json").write_text(json.dumps({**facts, "action_names": ["jump"]}))
    with pytest.raises(DataError, match="differ in actions, size or rate"):
        Recordings(str(tmp_path))
    for wrong in ("{", "[]", json.dumps({**facts, "height": 0}), json.dumps({**facts, "agent_fps": "fast"})):
        (tmp_path / "maze/meta.json").write_text(wrong)
        with pytest.raises(DataError, match=r"meta\.json does not state width"):
            Recordings(str(tmp_path / "maze"))


# ------------------------------------------------------------------------------------------------------ the real thing


def shared(name: str) -> str:
    if not (SHARED / name).is_dir():
        pytest.skip(f"there is no {name} beside this checkout")
    return str(SHARED / name)


def test_the_real_cifar_10_is_read() -> None:
    folder = shared("cifar10/cifar-10-batches-py")
    source = CIFAR10(folder)
    assert len(source.spec.action_names) == 10 and source.spec.action_names[0] == "airplane"
    batch = pickle.loads(Path(folder, "test_batch").read_bytes(), encoding="bytes")  # what Python itself makes of it
    first = source.keys.index("test_batch/0")
    assert len(source) - first == len(batch[b"data"])
    for row in (0, 1, len(batch[b"data"]) - 1):
        item = source.read(first + row)
        np.testing.assert_array_equal(item.episode.frames[0].ravel(), batch[b"data"][row])
        assert item.episode.condition == batch[b"labels"][row] and item.held_out


def test_the_real_imagenet_is_read() -> None:
    folder = shared("imagenet128")
    source = ImageFolder(folder, 128, "imagenet")
    assert all(name.startswith("n") for name in source.spec.action_names)
    assert len(source.spec.action_names) == len(list(Path(folder).iterdir()))
    for index in (0, 9, len(source) - 1):
        item = source.read(index)
        with Image.open(Path(folder).parent / source.keys[index]) as image:
            assert image.size == (128, 128)
            np.testing.assert_array_equal(item.episode.frames[0], np.asarray(image).transpose(2, 0, 1))
        assert item.held_out == (index % 10 == 9)
        assert source.spec.action_names[item.episode.condition] == Path(source.keys[index]).parent.name


def test_the_real_deepmind_lab_is_read() -> None:
    folder = shared("dmlab84")
    source = Recordings(folder)
    assert source.spec.frame_shape == (3, 84, 84) and {key.split("/")[0] for key in source.keys} == {
        path.name for path in Path(folder).iterdir()
    }
    item = source.read(len(source) - 1)
    film = imageio_ffmpeg.read_frames(str(Path(folder, source.keys[-1] + ".mp4")))  # another way to the same frames
    size = next(film)["size"]
    frames = np.stack([np.frombuffer(frame, np.uint8).reshape(size[1], size[0], 3) for frame in film])
    np.testing.assert_array_equal(item.episode.frames, frames.transpose(0, 3, 1, 2))
    assert item.episode.steps == len(frames) - 1 and item.episode.truncated


def test_frames_of_another_size_are_refused_also_with_as_many_bytes(tmp_path: Path) -> None:
    write_recording(tmp_path, 0)
    facts = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(
        json.dumps({**facts, "width": 2 * facts["width"], "height": facts["height"] // 2})
    )
    with pytest.raises(DataError, match=r"ep0000\.mp4 has no frames of .*, as meta.json states"):
        Recordings(str(tmp_path)).read(0)


def test_the_only_recording_is_not_held_out(tmp_path: Path) -> None:
    write_recording(tmp_path, 9)
    assert not Recordings(str(tmp_path)).read(0).held_out


def test_numbers_alone_are_no_caption_and_captions_can_be_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, ("a/0.png", "b/1.png"))
    (tmp_path / "a/0.txt").write_text("0 0.946392 0.238711 8.7e-1 0.9\n1 0 0 1 1")
    assert ImageFolder(str(tmp_path), 8).spec.action_names == ("a", "b")
    (tmp_path / "b/1.txt").write_text("2 birds")
    assert ImageFolder(str(tmp_path), 8).spec.action_names == ("2_birds", "a")
    assert ImageFolder(str(tmp_path), 8, captions=False).spec.action_names == ("a", "b")


def test_parts_of_a_data_set_are_no_classes(tmp_path: Path) -> None:
    write_images(tmp_path, ("Train/cat/0.png", "val/cat/1.png"))
    with pytest.raises(DataError, match=r"are Train, val, which are no classes; source\.path=.*Train reads one"):
        ImageFolder(str(tmp_path), 8)
    assert ImageFolder(str(tmp_path / "Train"), 8).spec.action_names == ("cat",)


@pytest.mark.parametrize(
    ("head", "kind"), [(b"\0\0\0\x18ftypheic", "HEIC"), (b'<?xml version="1.0"?>\n<svg>', "SVG"), (b"%PDF-1.4", "PDF")]
)
def test_an_intact_file_of_another_format_is_not_called_damaged(head: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(head + bytes(50))
    with pytest.raises(DataError, match=rf"x\.png is a file of format {kind}, which is not supported here; convert it"):
        read_image(tmp_path / "x.png", 8)
