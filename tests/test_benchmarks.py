"""The benchmarks, on a model of a few thousand weights: every figure is there and means something."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from moving_square import SPEC, record
from tiny import SMALL_PRIOR

from benchmarks import collect, environments, imagine, parts, quantizer
from benchmarks.run import main
from benchmarks.timing import rounds
from worldmodel.data.store import EpisodeStore

TINY = ("tokenizer.widths=[8,8,8]", "tokenizer.blocks=1", *SMALL_PRIOR, "tokenizer.num_codes=16", "device=cpu",
        "training.tokenizer.batch=4", "training.prior.batch=4")  # fmt: skip
SMALLER = {
    imagine: {"LONGEST": 3},
    parts: {"STEPS": 3, "CANDIDATES": 8, "HORIZON": 3, "ITERATIONS": 2, "SIMULATIONS": 4},
}
BATCHES = (1, 8)  # the second is large enough for bfloat16, where the processor has it


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with EpisodeStore.writer(folder, SPEC) as store:
        for seed in range(4):
            store.append(record(seed))
    return folder


def test_every_figure_is_there(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, smaller in SMALLER.items():
        for name, value in smaller.items():
            monkeypatch.setattr(module, name, value)
    out = tmp_path / "figures.json"
    batches = ",".join(map(str, BATCHES))
    assert main([f"data={data}", *TINY, "--repeat", "1", "--batches", batches, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["machine"]["device"] == "cpu" and report["model"]["grid"] == [2, 3]
    figures = {name: [f for f in found if f["what"] != "peak process memory"] for name, found in
               report["figures"].items()}  # fmt: skip
    every = [figure for found in report["figures"].values() for figure in found]
    assert all(0 < f["low"] <= f["value"] <= f["high"] and math.isfinite(f["high"]) for f in every)
    assert {f["what"] for f in figures["store"]} == {"random windows, cold", "random windows, warm"}
    whats = {
        "tokenizer": {"encode", "decode"},
        "imagination": {
            *(f"{sampler}, {what}" for sampler in ("one by one", "ancestral", "predictive") for what in
              ("codes alone", "with decoding")),
            *(f"one by one / predictive, {what}" for what in ("whole frames", "sampler")),
            *(f"{sampler}, passes a frame" for sampler in ("ancestral", "predictive")),
        },
        "environment": {"steps, codes", "steps, pixels"},
    }  # fmt: skip
    for name, wanted in whats.items():
        for batch in BATCHES:
            for precision in ("fp32", "bf16"):
                found = {f["what"] for f in figures[name] if f["batch"] == batch and f["precision"] == precision}
                assert found == wanted, (name, batch, precision)
    planned = {(f["what"].split(",")[0], f["precision"], f["unit"]) for f in figures["planning"]}
    assert planned == {(what, p, "s") for what in ("cross-entropy", "tree search") for p in ("fp32", "bf16")}
    trained = {(f["what"], f["precision"]) for f in figures["training"]}
    stages = ("tokenizer, frames", "prior, predicted frames")
    assert trained == {(stage, precision) for stage in stages for precision in ("fp32", "bf16")}
    assert all("peak process memory" in [f["what"] for f in found] for found in report["figures"].values())
    shown = capsys.readouterr().out
    assert "untrained" in shown and "random windows, cold" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=nowhere"], "unknown run 'nowhere'"),
        (["run=nowhere", "tokenizer.num_codes=8"], "tokenizer.num_codes=8 cannot change a trained run"),
        (["data=nowhere"], "no data at nowhere"),
        (["--threads", "0"], "--threads is 0; it must be at least 1"),
        (["--out", "no/folder.json"], "there is no folder no"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"runs={tmp_path}", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize("words", [["--batches", "1,0"], ["--only", "tokenizer,dreams"]])
def test_lists_are_checked(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "is none of" in err and err.count("\n") == 1


def test_contenders_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[tuple[str, int]] = []

    def contender(name: str, number: int) -> float:
        calls.append((name, number))
        return 10.0 * number

    spent = rounds({name: functools.partial(contender, name) for name in "ab"}, 2)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert spent == {"a": [10.0, 20.0], "b": [10.0, 20.0]}


def test_the_rival_of_the_quantiser(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it is installed, both choose the same codes; where not, one line says what to install."""
    out = tmp_path / "figures.json"
    words = ["--batch", "4", "--length", "128", "--width", "8", "--codes", "16", "--repeat", "1", "--out", str(out)]
    if importlib.util.find_spec("vector_quantize_pytorch") is None:
        assert quantizer.main(words) == 2
        assert "pip install -e '.[benchmarks]'" in capsys.readouterr().err
        return
    assert quantizer.main(words) == 0
    report = json.loads(out.read_text())
    assert report["different"] == {"encode": 0, "step": 0}
    assert len(report["figures"]["time"]) == len(report["figures"]["memory"]) == 6
    assert all(0 < figure["low"] <= figure["value"] <= figure["high"] for figure in report["figures"]["time"])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_peak_memory_is_that_since_the_reset() -> None:
    """Of this process alone, not of the one that started it, and not of what was freed before."""
    code = """
import numpy as np
import torch
from benchmarks.timing import peak_memory, reset_peak

device = torch.device("cpu")
np.ones(2**25)  # 256 MiB, which are given back at once
reset_peak(device)
before = peak_memory(device).value
block = np.ones(2**23)
assert 60 < peak_memory(device).value - before < 200
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)


def test_what_recording_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    words = ["env=vizdoom/basic", "env.size=32", "--steps", "40", "--repeat", "1", "--out", str(out)]
    assert collect.main(words) == 0
    figures = {figure["what"]: figure["value"] for figure in json.loads(out.read_text())["figures"]}
    contenders = [what for what in figures if "/" not in what]
    assert contenders == ["recorded by 1 process", "bare environment", "recorded by 2 processes"]
    assert all(value > 0 and math.isfinite(value) for value in figures.values())
    assert figures["recorded by 1 process / bare"] == pytest.approx(figures[contenders[0]] / figures[contenders[1]])
    assert collect.main(["--workers", "1"]) == 2
    assert "--workers is 1; it must be at least 2" in capsys.readouterr().err


def test_a_line_and_pictures_of_every_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--only", "vizdoom/basic,vizdoom/any", "--steps", "16", "--sheet", str(tmp_path / "sheet.png")]
    assert environments.main([*words, "env.size=32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| `vizdoom/basic` | 3×32×32 | noop, move_left, move_right, attack | ")
    assert lines[1].startswith("| `vizdoom/any` | – | the environment needs env.kwargs.scenario=… | – |")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
