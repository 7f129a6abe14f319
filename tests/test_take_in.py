"""The command line for pictures and recordings: taken in once, named in one line when they are bad, ready to train."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from test_sources import Attack, pixels, write_cifar, write_images, write_recording

from worldmodel import collect as collect_module
from worldmodel import train as train_module
from worldmodel.config.cli import compose_config
from worldmodel.data.store import EpisodeStore
from worldmodel.runs.folder import load_config, new_run
from worldmodel.types import Spec

ROOT = Path(__file__).parents[1]
PETS = tuple(f"{'cat' if i % 2 else 'dog'}/{i:02d}.png" for i in range(30))


def collect(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "worldmodel.collect", *argv]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


def test_a_folder_of_images_is_taken_in_once(tmp_path: Path) -> None:
    write_images(tmp_path / "pets", PETS)
    argv = ("source=images", f"source.path={tmp_path / 'pets'}", "source.size=16")
    first = collect(tmp_path / "work", *argv)
    assert first.returncode == 0, first.stderr
    new, now = first.stdout.splitlines()
    assert new.startswith("new       30 of 30, 0 were there, in ")
    assert now == "now       30 frames in 30 episodes (3 held out), 2 classes (cat, dog), at data/images"
    index = (tmp_path / "work/data/images/index.jsonl").read_bytes()
    again = collect(tmp_path / "work", *argv)
    assert again.returncode == 0 and again.stdout.startswith("new       0 of 30, 30 were there, in ")
    assert again.stdout.splitlines()[1] == now and (tmp_path / "work/data/images/index.jsonl").read_bytes() == index
    write_images(tmp_path / "pets", ("dog/99.png",))
    (tmp_path / "pets/cat/01.png").unlink()  # what is stored stays, even where its file has gone
    more = collect(tmp_path / "work", *argv)
    assert more.returncode == 0 and more.stdout.startswith("new       1 of 30, 29 were there, in ")
    store = EpisodeStore.open(tmp_path / "work/data/images")
    assert len(store) == 31 and store.verify() == [] and store.spec.frame_shape == (3, 16, 16)
    other = collect(tmp_path / "work", *argv[:2], "source.size=8")
    assert other.returncode == 2 and "frame_shape [3, 16, 16], not [3, 8, 8]; choose another folder" in other.stderr


def take_in(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit code, output, and what stands in stderr beside the progress."""
    code = collect_module.main(list(argv))
    out, err = capsys.readouterr()
    return code, out, "".join(line for line in err.splitlines(True) if not line.startswith("reading "))


def test_every_source_is_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cifar(tmp_path / "cifar")
    write_images(tmp_path / "net", ("n01/a.png", "n02/a.png"))
    write_recording(tmp_path / "lab/maze", 0)
    for source, folder, contents in (
        ("cifar10", "cifar", "9 frames in 9 episodes (3 held out), 3 classes (airplane, automobile, bird), at "),
        ("imagenet", "net", "2 frames in 2 episodes (0 held out), 2 classes (n01, n02), at "),
        ("dmlab", "lab", "6 frames in 1 episodes (0 held out), 2 actions (noop, forward), at "),
    ):
        data = tmp_path / "data" / source
        argv = [f"source={source}", f"source.path={tmp_path / folder}", f"data={data}", "--workers", "3"]
        code, out, err = take_in(capsys, *argv)
        assert (code, err) == (0, "") and out.splitlines()[1] == f"now       {contents}{data}"
    assert EpisodeStore.open(tmp_path / "data/imagenet").spec.frame_shape == (3, 128, 128)


def poisoned(folder: Path) -> None:
    write_cifar(folder)
    (folder / "data_batch_2").write_bytes(pickle.dumps({"data": Attack(f"touch {folder / 'flag'}")}, 2))


@pytest.mark.parametrize(
    ("make", "argv", "message"),
    [
        (None, ["source=cifar10"], "the source cifar10 needs source.path=…, the folder"),
        (None, ["source=images", "source.path=nowhere"], "nowhere does not exist; source.path=… names a folder"),
        (None, ["source=images", "source.path="], "source.path is ''; it must be a text"),
        (None, ["source=images", "source.path=.", "source.size=0"], "source.size is 0; it must be at least 1"),
        (None, ["source=cifar"], "there is no source 'cifar'; choose cifar10, dmlab, env, imagenet, images"),
        (None, ["source=cifar10", "source.path=.", "--steps", "3"], "source=cifar10 is imported as a whole"),
        (None, ["source=cifar10", "source.path=.", "source.size=3"], "source.size"),
        (Path.mkdir, ["source=images", "source.path=set"], "there is no picture in "),
        (Path.mkdir, ["source=imagenet", "source.path=set"], "there is no picture in "),
        (Path.mkdir, ["source=cifar10", "source.path=set"], "there is no data_batch_1 and no test_batch in "),
        (Path.mkdir, ["source=dmlab", "source.path=set"], "there is no meta.json in or below "),
        (lambda path: path.write_text("x"), ["source=images", "source.path=set"], "set is no folder"),
        (poisoned, ["source=cifar10", "source.path=set"], "data_batch_2 is refused: it names posix.system"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    make: Callable[[Path], object] | None,
    argv: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if make is not None:
        make(tmp_path / "set")
    code, out, err = take_in(capsys, *argv)
    assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "data").exists() and not (tmp_path / "set/flag").exists()


def test_bad_pictures_are_named_and_everything_else_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "pets", PETS)
    argv = ("source=images", f"source.path={tmp_path / 'pets'}", "source.size=8", f"data={tmp_path / 'data'}")
    file = tmp_path / "pets" / PETS[4]
    file.write_bytes(file.read_bytes()[:-60])
    code, out, err = take_in(capsys, *argv)
    assert code == 2 and err.startswith(f"error: {file} cannot be read (") and err.count("\n") == 1
    assert err.endswith("; everything else is stored\n") and out.startswith("new       29 of 30, 0 were there")
    (tmp_path / "pets" / PETS[5]).write_bytes(b"")
    (tmp_path / "data/index.jsonl").unlink()
    code, out, err = take_in(capsys, *argv)
    assert code == 2 and err == "error: 2 files could not be read, named above; everything else is stored\n"
    assert out.startswith("new       28 of 30, 0 were there")
    write_images(tmp_path / "pets", PETS)
    code, out, err = take_in(capsys, *argv)
    assert (code, err) == (0, "") and out.startswith("new       2 of 30, 28 were there")


def test_an_import_of_which_nothing_can_be_read_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "pets", PETS[:2])
    for name in PETS[:2]:
        (tmp_path / "pets" / name).write_bytes(b"")
    argv = ("source=images", f"source.path={tmp_path / 'pets'}", "source.size=8", f"data={tmp_path / 'data'}")
    code, out, err = take_in(capsys, *argv)
    assert code == 2 and out.startswith("new       0 of 2, 0 were there") and "2 files could not be read" in err
    assert not (tmp_path / "data").exists()


def test_a_tokenizer_is_trained_on_images_and_its_run_has_the_name_of_their_source(tmp_path: Path) -> None:
    write_images(tmp_path / "pets", PETS)
    where = [f"data={tmp_path / 'data'}", f"runs={tmp_path / 'runs'}", "source=images", "source.size=16"]
    assert collect_module.main([*where, f"source.path={tmp_path / 'pets'}"]) == 0
    small = ["tokenizer.widths=[8,8]", "tokenizer.num_codes=16", "training.tokenizer.batch=4", "device=cpu"]
    assert train_module.main([*where, *small, "--stage", "tokenizer", "--steps", "3"]) == 0
    assert (tmp_path / "runs/images-1/tokenizer.safetensors").is_file()


def test_settings_of_runs_without_a_source_still_load(tmp_path: Path) -> None:
    config = compose_config([f"runs={tmp_path}"])
    assert config.source.name == config.env.name == "my_way_home" and config.data == "data/my_way_home"
    older = OmegaConf.masked_copy(config, [key for key in config if key != "source"])
    spec = Spec("x", (3, 16, 16), ("a",), 1.0)
    folder = new_run(older, spec)
    assert folder.name == "my_way_home-1" and "source" not in load_config(folder)
    assert new_run(config, spec).name == "my_way_home-2"
    assert compose_config(["source=cifar10", "run=x"]).data == "data/cifar10"
    assert json.loads((folder / "spec.json").read_text())["env_id"] == "x"


def test_pixels_are_what_the_pictures_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "pets", PETS)
    argv = ("source=images", f"source.path={tmp_path / 'pets'}", "source.size=8", f"data={tmp_path / 'data'}")
    assert take_in(capsys, *argv)[0] == 0
    store = EpisodeStore.open(tmp_path / "data")
    for entry, index in zip(store.entries, range(len(store)), strict=True):
        seed = PETS.index(str(entry.key).removeprefix("pets/"))
        np.testing.assert_array_equal(store.episode(index).frames[0], pixels(seed).transpose(2, 0, 1))
        assert store.spec.action_names[store.episode(index).condition] == PETS[seed].split("/")[0]
