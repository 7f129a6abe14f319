"""``train --multirun``: one run for each combination; a failed job does not stop the others."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from moving_square import SPEC, record
from test_elastic import SETTINGS

from worldmodel.data.store import EpisodeStore
from worldmodel.runs.folder import load_config
from worldmodel.train import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    with EpisodeStore.writer(path, SPEC) as store:
        for seed in range(11):
            store.append(record(seed))
    return path


def sweep(data: Path, folder: Path, *words: str) -> int:
    common = ["--steps=3", "--stage=tokenizer", f"data={data}", f"runs={folder / 'runs'}", "stem=square", *SETTINGS]
    return main(["--multirun", *common, *words])


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_each_job_is_a_run_and_a_failed_one_stops_no_other(
    data: Path, tmp_path: Path, launcher: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    several = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    if several and importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("needs hydra-joblib-launcher: pip install -e '.[sweep]'")
    monkeypatch.chdir(tmp_path)
    words = ["seed=0,1", "training.tokenizer.clip=1.0,-1.0", f"hydra/launcher={launcher}", *several]
    assert sweep(data, tmp_path, *words) == 2
    runs = [folder for folder in (tmp_path / "runs").iterdir() if not folder.name.startswith(".")]
    assert sorted(load_config(folder).seed for folder in runs) == [0, 1]
    assert all((folder / "tokenizer.safetensors").is_file() for folder in runs)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("job ", "error: 2 of"))]
    assert len(lines) == 3 and lines[2] == "error: 2 of 4 jobs failed; the others are finished"
    for line, seed in zip(lines, (0, 1), strict=False):
        assert f"seed={seed} training.tokenizer.clip=-1.0" in line and line.endswith("failed: exit code 2")


def test_what_no_sweep_can_do_is_one_line(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sweep(data, tmp_path, "run=one", "seed=0,1") == 2
    assert "run=… names one; leave it out" in capfd.readouterr().err
    assert sweep(data, tmp_path, "seed=0,1", "hydra/launcher=nothing") == 2
    assert "launchers other than basic are plugins" in capfd.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sweep(data, tmp_path, "seed=0,1") == 2
    assert "use it without torchrun" in capfd.readouterr().err
