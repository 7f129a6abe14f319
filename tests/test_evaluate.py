"""The evaluation as a whole: a known world, episodes on disk, the report in a folder."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from moving_square import SPEC, World, record
from PIL import Image
from rich.console import Console

from worldmodel.data.store import EpisodeStore
from worldmodel.errors import DataError
from worldmodel.evaluate import main, settings_of
from worldmodel.evaluation.figures import panels
from worldmodel.evaluation.inverse import Budget
from worldmodel.evaluation.long import Extent
from worldmodel.evaluation.report import page, plain, rows, table
from worldmodel.evaluation.suite import QUICK, Settings, default_context, evaluate
from worldmodel.types import Spec

SMALL = Settings(
    windows=16,
    horizon=12,
    frames=200,
    budget=Budget(900, 100, 64),
    starts=20,
    dream_steps=4,
    long_dreams=Extent(dreams=4, steps=60, span=12),
)


def fill(path: Path, count: int, spec: Spec = SPEC) -> EpisodeStore:
    with EpisodeStore.writer(path, spec) as writer:
        for seed in range(count):
            writer.append(record(seed))
    return EpisodeStore.open(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    return fill(tmp_path_factory.mktemp("data"), 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "evaluation"


@pytest.fixture(scope="module")
def found(store: EpisodeStore, folder: Path) -> dict[str, Any]:
    return evaluate(World(), store, SMALL, folder=folder, run="square-1", command="test")  # type: ignore[arg-type]


def test_an_exact_world_gets_full_marks(found: dict[str, Any]) -> None:
    assert found["open_loop"]["curves"]["dream"]["psnr"]["value"] == pytest.approx([58.92] * 12, abs=0.01)
    assert found["open_loop"]["windows"] == 16 and found["open_loop"]["steps"] == [1, 5, 10]
    assert min(found["open_loop"]["gain_over"]["last_frame"]["psnr"]["low"]) > 3
    assert found["inverse"]["real"]["accuracy"] > 0.95
    for reading in (found["inverse"]["real"], *found["inverse"]["dreamt"].values()):
        assert min(reading["accuracy_by_action"]) > 0.9 and len(reading["accuracy_by_action"]) == 3
    assert found["inverse"]["headline"] == "1" and set(found["inverse"]["dreamt"]) == {"1", "0"}
    assert found["inverse"]["dreamt"]["1"]["ratio_to_real"]["value"] == pytest.approx(1.0, abs=0.05)
    assert found["one_step"]["prior"]["bits_per_code"]["value"] == pytest.approx(0.152, abs=0.001)
    assert found["codes"]["of"] == 12
    for kind in ("recorded", "held"):
        for reading in found["long_dreams"]["dreamt"][kind].values():
            assert reading["first"]["obeyed"]["value"] > 0.9
            assert reading["ratio"]["value"] == pytest.approx(1.0, abs=0.1)


def test_only_held_out_episodes_are_measured(found: dict[str, Any], store: EpisodeStore) -> None:
    held_out = store.split("held_out")
    lengths = np.cumsum(store.frame_counts[held_out])
    assert found["one_step"]["frames"] in lengths.tolist()
    rewards = [store.episode(int(i)).rewards for i in held_out][: found["one_step"]["episodes"]]
    assert found["one_step"]["rewards"]["events"]["positives"] == sum(int((r == 1).sum()) for r in rewards)


def test_the_report_is_written_whole(found: dict[str, Any], folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "metrics.json",
        "report.png",
        "strips.png",
        "long_dreams.png",
        "report.html",
        "inverse.safetensors",
    }
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(plain(found)))
    for name in ("report.png", "strips.png", "long_dreams.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").resize((64, 64)).getcolors(4096) or []) > 10  # not blank
    text = (folder / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 3
    assert "://" not in text  # needs nothing from outside
    assert all(
        key in text
        for key in ("square-1", "psnr_of_mean_mse", "dream over last frame", "accuracy by action", "Long dreams")
    )


def test_the_classifier_is_kept_and_all_repeats(found: dict[str, Any], store: EpisodeStore, folder: Path) -> None:
    before = (folder / "inverse.safetensors").stat().st_mtime_ns
    again = evaluate(World(), store, SMALL, folder=folder, run="square-1", command="test")  # type: ignore[arg-type]
    assert (folder / "inverse.safetensors").stat().st_mtime_ns == before
    assert plain({**again, "date": ""}) == plain({**found, "date": ""})


def test_without_classifier_and_folder(store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[str] = []
    quick = dataclasses.replace(QUICK, windows=8, frames=100)
    found = evaluate(World(), store, quick, progress=lambda name, done, total: seen.append(name))  # type: ignore[arg-type]
    assert found["inverse"] is None and found["long_dreams"] is None
    assert set(seen) == {"one step ahead", "open loop"}
    assert not list(tmp_path.iterdir())
    assert not any("obeyed" in name for name, _ in rows(found))


def test_text_of_the_data_cannot_become_markup(found: dict[str, Any]) -> None:
    assert "<script>" not in page({**found, "environment": "<script>"}, {}, rows(found))


def test_plain_has_no_numbers_that_json_lacks() -> None:
    assert plain({"a": [float("nan"), 1.0, (float("inf"), None)]}) == {"a": [None, 1.0, [None, None]]}


def test_shorter_episodes_shorten_the_horizon(tmp_path: Path) -> None:
    with EpisodeStore.writer(tmp_path / "short", SPEC) as writer:
        for seed in range(30):
            writer.append(record(seed, least=8, most=12))
    quick = dataclasses.replace(QUICK, windows=4)
    found = evaluate(World(), EpisodeStore.open(tmp_path / "short"), quick)  # type: ignore[arg-type]
    assert found["open_loop"]["horizon"] <= 9 and found["open_loop"]["steps"] == [1, 5]


def test_data_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"of 2 episodes at .*, none is held out; python -m worldmodel\.collect"):
        evaluate(World(), fill(tmp_path / "few", 2), QUICK)  # type: ignore[arg-type]
    other = dataclasses.replace(SPEC, action_names=("stay", "left", "right"))
    with pytest.raises(DataError, match=r"stay.*choose data="):
        evaluate(World(), fill(tmp_path / "other", 12, other), QUICK)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("context", "lead", "reach", "expected"),
    [(4, 4, 525, 4), (4, 64, 525, 32), (4, 16, 525, 16), (40, 64, 525, 40), (4, 64, 24, 8), (0, 1, 525, 1)],
)
def test_a_memory_sees_more_frames_before_an_open_loop(context: int, lead: int, reach: int, expected: int) -> None:
    assert default_context(SimpleNamespace(context=context, lead=lead), reach) == expected  # type: ignore[arg-type]


def arguments(**flags: Any) -> Any:
    return SimpleNamespace(**{"quick": False, "windows": None, "context": None, "top_k": None, "skip": None, **flags})


def test_flags_become_settings() -> None:
    assert settings_of(arguments(), 3) == dataclasses.replace(Settings(), seed=3)
    assert settings_of(arguments(quick=True, windows=9), 0) == dataclasses.replace(QUICK, windows=9)
    assert settings_of(arguments(context=28), 0) == dataclasses.replace(Settings(), context=28)
    assert settings_of(arguments(skip=["inverse"], top_k=5), 0) == dataclasses.replace(Settings(), budget=None, top_k=5)
    both = dataclasses.replace(Settings(), budget=None, long_dreams=None)
    assert settings_of(arguments(skip=["inverse", "long"]), 0) == both
    assert settings_of(arguments(skip=["loops"]), 0) == dataclasses.replace(Settings(), loops=None)
    assert settings_of(arguments(skip=["mean"]), 0) == dataclasses.replace(Settings(), samples=None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--windows 1", "--windows is 1; it must be at least 2"),
        ("--top-k 0", "--top-k is 0; it must be at least 1"),
        ("--context 0", "--context is 0; it must be at least 1"),
    ],
)
def test_a_number_that_is_too_small_is_one_line(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags.split()) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_an_unknown_run_is_one_line_and_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"runs={tmp_path}", "run=nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "nowhere" in error and error.count("\n") == 1


def test_a_damaged_episode_is_named_set_aside_and_skipped(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = fill(tmp_path / "data", 40)
    lost = store.entries[store.split("held_out")[0]]
    with open(store.path / "shard-00000.frames", "r+b") as file:
        file.seek(lost.offset * 3 * 16 * 24)
        file.write(b"garbage")
    run = tmp_path / "square-1"
    run.mkdir()
    (run / "config.yaml").write_text(f"data: {store.path}\ntokenizer: {{}}\nprior: {{}}\ntraining: {{}}\n")
    (run / "spec.json").write_text(SPEC.to_json())
    for name in ("tokenizer", "prior"):
        (run / f"{name}.safetensors").touch()
    monkeypatch.setattr("worldmodel.world.WorldModel.load", lambda *_: World())
    for flags in (["--quick"], ["--skip", "inverse"]):  # the second time there is nothing to say
        assert main([f"runs={tmp_path}", "--windows", "8", *flags]) == 0
        quick, output = flags == ["--quick"], capsys.readouterr().out
        assert ("Long dreams, 8 of 1,000 steps, frames 1–100 and 901–1,000" in output) is not quick
        assert (run / "evaluation" / "long_dreams.png").exists() is ("long_dreams.png" in output) is not quick
    assert [f"episode {lost.episode} in" in message for message in caplog.messages] == [True]
    assert lost not in EpisodeStore.open(store.path).entries


def test_the_table_fits_a_terminal_of_80_columns(found: dict[str, Any]) -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(table(found, rows(found)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = text.splitlines()
    (steps,) = [line for line in lines if line.startswith("step ")]
    (dream,) = [line for line in lines if line.startswith("dream, temperature 0")]
    assert steps.split() == ["step", "1", "5", "10"]
    assert dream.split()[-3:] == ["58.9"] * 3  # on one line
    assert max(map(len, lines)) <= 80


def test_no_panel_for_events_that_there_were_not(found: dict[str, Any]) -> None:
    one = found["one_step"]

    def drawn(auroc: float | None, positives: int) -> list[str]:
        events = {"auroc": auroc, "average_precision": auroc, "positives": positives, "of": 900}
        given = {**one, "rewards": {**one["rewards"], "events": events}, "ends": {**one["ends"], **events}}
        return [panel.title for panel in panels({**found, "one_step": given})]

    before, after, few = drawn(0.9, 10), drawn(None, 0), drawn(1.0, 9)
    assert len(after) == len(before) - 1
    assert any("Rare events" in title for title in before) and not any("Rare events" in title for title in after)
    assert few == after  # the table says that they are too few to trust
