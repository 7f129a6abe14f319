"""Paths: what a shell passes arrives unchanged, ~ is the home folder, and a run finds its data from anywhere."""

from __future__ import annotations

import argparse
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from moving_square import SPEC, record
from omegaconf import OmegaConf
from PIL import Image
from recordings import write_npz
from rich.console import Console

import worldmodel.collect
from worldmodel.config.cli import compose_config
from worldmodel.config.entry_point import run_entry_point
from worldmodel.config.flags import add_output
from worldmodel.data.sources import Arrays
from worldmodel.data.store import SOURCE, EpisodeStore
from worldmodel.errors import ConfigError, DataError, RunError
from worldmodel.evaluation.report import table
from worldmodel.media.plots import Line, Panel, save_panels
from worldmodel.runs.data import source_path
from worldmodel.runs.folder import find_run, load_config, new_run, open_data, save_config
from worldmodel.util.files import check_writable
from worldmodel.util.output import output_of

NAMES = ["données", "写真", "Photos (2019)", "a=b", "a,b", "it's", 'a "b"', "#1", "a&b", "set [1]", "[1]", "{a: 1}",
         "007", "1e3", "a\\", "a\\'b", "'", " a ", "50 %", "v1.2", "-x", "$HOME", "a: b", "~x"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_path_arrives_as_the_shell_passes_it(name: str) -> None:
    config = compose_config([f"data={name}", f"runs=runs/{name}", f"run={name}", f"++source.path={name}"])
    assert (config.data, config.runs, config.run) == (name, f"runs/{name}", name)
    assert config.source.path == name


def test_what_is_quoted_or_no_path_is_left_to_hydra() -> None:
    config = compose_config(["data='a (b)'", 'runs="it\'s"', "run=null", "collect.steps=1e3"])
    assert (config.data, config.runs, config.run, config.collect.steps) == ("a (b)", "it's", None, 1000)
    assert compose_config(["data=${env.name}/x", "env=crafter"]).data == "crafter/x"


@pytest.mark.parametrize("override", ["seed=1,2", "stem=写真", "stem=a (b"])
def test_how_to_quote_other_texts_is_reported(override: str) -> None:
    with pytest.raises(ConfigError, match="in quotes: 'key=") as caught:
        compose_config([override])
    assert "--multirun" not in str(caught.value) and "hydra.cc" not in str(caught.value)


def test_tilde_is_the_home_folder_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home" / "pics").mkdir(parents=True)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "home/pics/0.png")
    argv = ["source=images", "source.size=16", "source.path=~/pics", "data=~/store"]
    assert worldmodel.collect.main(argv) == 0
    assert len(EpisodeStore.open("~/store")) == 1 and os.listdir(tmp_path) == ["home"]
    assert compose_config(["data='~/a'", "runs=~/b", "run=~/b/c"]).run == str(tmp_path / "home/b/c")
    seen = []
    (tmp_path / "home/a=b.wav").touch()
    run_entry_point(lambda args, config: seen.extend(args.operands), "toy", "", argv=["~/a=b.wav"], operands=("FILE",))
    assert seen == [str(tmp_path / "home/a=b.wav")]


def test_the_source_of_a_store_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics (1)").mkdir()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "pics (1)/0.png")
    (tmp_path / "link").symlink_to("pics (1)")
    assert worldmodel.collect.main(["source=images", "source.size=16", "source.path=link", "data=store"]) == 0
    assert worldmodel.collect.main(["source=images", "source.size=16", "source.path=pics (1)", "data=store"]) == 0
    store = EpisodeStore.open("store")
    assert len(store) == 1 and (store.path / SOURCE).is_file()
    monkeypatch.chdir("/")
    assert source_path(EpisodeStore.open(tmp_path / "store")) == tmp_path / "pics (1)"


def make_run(runs: str, data: str) -> Path:
    parts = {"env": {"name": "toy"}, "run": None, "tokenizer": {}, "prior": {}, "training": {}}
    if not os.path.exists(data):
        with EpisodeStore.writer(data, SPEC) as store:
            store.append(record(0))
    return new_run(OmegaConf.create({**parts, "runs": runs, "data": data}), SPEC)


def test_a_run_finds_its_data_from_any_folder_and_after_a_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "my.project"
    project.mkdir()
    monkeypatch.chdir(project)
    folder = make_run("runs", "data/a (1)")
    assert OmegaConf.load(folder / "config.yaml").data == "../../data/a (1)"
    assert load_config(folder).data == str(project / "data/a (1)")
    monkeypatch.chdir("/")
    assert len(open_data(project / folder)) == 1
    shutil.move(project, tmp_path / "moved")
    assert len(open_data(tmp_path / "moved/runs/toy-1")) == 1
    monkeypatch.chdir(tmp_path / "moved")
    assert len(open_data("runs/toy-1")) == 1
    save_config(folder, load_config(folder))  # as a continued training does
    assert OmegaConf.load(folder / "config.yaml").data == "../../data/a (1)"
    (tmp_path / "moved/data").rename(tmp_path / "gone")
    with pytest.raises(DataError, match=r"trained on are not at \S+/moved/data/a \(1\) any more; name .* data=…"):
        open_data(folder)


def test_data_elsewhere_and_links_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "disk/runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    (tmp_path / "project/runs").symlink_to(tmp_path / "disk/runs")
    folder = make_run("runs", "data/a")
    assert OmegaConf.load(folder / "config.yaml").data == str(tmp_path / "project/data/a")
    (tmp_path / "disk/data").symlink_to(tmp_path / "project/data")
    other = make_run("../disk/runs", "../disk/data/a")
    assert OmegaConf.load(other / "config.yaml").data == "../../data/a"
    monkeypatch.chdir("/")
    for way in ("project/runs", "disk/runs"):
        for name in ("toy-1", "toy-2"):
            assert len(open_data(tmp_path / way / name)) == 1
            assert find_run(tmp_path / way, name) == tmp_path / way / name


def test_relative_paths_of_earlier_versions_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    folder = make_run("runs", "data/a").absolute()
    text = (folder / "config.yaml").read_text().rpartition("# crc32")[0]
    (folder / "config.yaml").write_text(text.replace("../../data/a", "data/a"))
    for place in (tmp_path, tmp_path / "project", Path("/")):
        monkeypatch.chdir(place)
        assert load_config(folder).data == str(tmp_path / "project/data/a")
    monkeypatch.chdir(tmp_path)
    (folder / "config.yaml").write_text(text.replace("../../data/a", "elsewhere/a"))
    shutil.copytree(tmp_path / "project/data", tmp_path / "elsewhere")
    assert load_config(folder).data == str(tmp_path / "elsewhere/a")


@pytest.mark.parametrize("name", [name for name in NAMES if "/" not in name])
def test_a_run_may_be_called_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts = {"env": {"name": "toy"}, "tokenizer": {}, "prior": {}, "training": {}, "data": f"data/{name}"}
    folder = new_run(OmegaConf.create({**parts, "runs": f"all {name}", "run": name}), SPEC)
    assert folder == Path(f"all {name}", name) == find_run(f"all {name}", name)
    assert load_config(folder).data == str(tmp_path / f"data/{name}") and load_config(folder).run == name


def test_an_output_is_a_file_a_folder_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("results.2026").mkdir()

    def paths(text: str) -> list[str]:
        parser = argparse.ArgumentParser()
        add_output(parser, (".mp4", ".png"))
        output = parser.parse_args([f"--output={text}"]).output
        return [str(path) for path in output_of(output, Path("run"), "name", (".mp4", ".png")).paths((".mp4", ".png"))]

    assert paths("results.2026") == ["results.2026/name.mp4", "results.2026/name.png"]
    assert paths("new.folder/") == ["new.folder/name.mp4", "new.folder/name.png"]
    assert paths("results.2026/a b.png") == ["results.2026/a b.png"]
    assert paths("a.b/c") == ["a.b/c.mp4", "a.b/c.png"]
    assert paths("~/results.2026") == [str(tmp_path / "results.2026/name") + suffix for suffix in (".mp4", ".png")]
    with pytest.raises(ConfigError, match=r"must end in \.mp4, \.png"):
        paths("a.txt")
    Path("file").touch()
    with pytest.raises(NotADirectoryError):
        paths("file/x")
    assert sorted(os.listdir()) == ["file", "results.2026"]


def test_brackets_and_dollars_of_names_are_shown(tmp_path: Path) -> None:
    console = Console(markup=False, file=io.StringIO())
    console.print(table({"run": "r [x]", "environment": "e"}, [("One step", ""), ("of [bold]", "[1, 2]")]))
    assert all(word in console.file.getvalue() for word in ("r [x]", "of [bold]", "[1, 2]"))
    save_panels(tmp_path / "page.png", [Panel("a$\\x$", {"b": Line([0, 1], [1, 2])})], title="$1 $\\y{$")
    assert (tmp_path / "page.png").is_file()


def test_recordings_behind_links_are_found(tmp_path: Path) -> None:
    write_npz(tmp_path / "disk/level/a.npz", ends=(8,))
    write_npz(tmp_path / "here/b.npz", ends=(8,))
    write_npz(tmp_path / "here/.hidden/c.npz")
    (tmp_path / "here/there").symlink_to(tmp_path / "disk/level")
    (tmp_path / "disk/level/back").symlink_to(tmp_path / "here")
    (tmp_path / "link").symlink_to("here")
    assert Arrays(str(tmp_path / "link")).keys == Arrays(str(tmp_path / "here")).keys
    assert len({key.rpartition("/")[0] for key in Arrays(str(tmp_path / "link")).keys}) == 2


@pytest.mark.parametrize("width", [20, 40, 80])
def test_no_value_of_a_table_is_lost_in_a_narrow_terminal(width: int) -> None:
    lines = [
        ("One step", ""),
        ("reconstruction PSNR (mean over frames)", "12.34 [11.20, 13.55] dB"),
        ("step", "1 5 10"),
    ]
    console = Console(width=width, file=io.StringIO())
    console.print(table({"run": "r", "environment": "e"}, lines))
    shown = console.file.getvalue()
    for word in " ".join(value for _, value in lines).split():
        assert word in shown


@pytest.mark.parametrize("name", ["", " ", ".", "..", ".x", "a/b", "a\nb"])
def test_no_name_of_a_run(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="plain name of a folder"):
        new_run(OmegaConf.create({"env": {"name": "toy"}, "runs": str(tmp_path / "runs"), "run": name}), SPEC)
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_is_reported_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new/deep")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file/x", Path("/proc/none/x")):
        with pytest.raises(OSError) as caught:
            check_writable(folder)
        assert caught.value.filename
