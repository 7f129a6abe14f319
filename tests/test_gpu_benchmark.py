"""``python -m benchmarks.gpu`` in small: on a CPU, and parts of it on a make-believe GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_cuda import Gpu

from benchmarks.gpu.__main__ import SECTIONS, main
from benchmarks.gpu.bench import Bench

ON_A_CPU = ("environment", "graphs", "against_the_cpu", "muon", "imagination", "parts_of_a_frame",
            "dream_environment", "batches", "planning", "resumed")  # fmt: skip
ON_A_GPU = ("environment", "graphs", "against_the_cpu", "muon", "imagination", "parts_of_a_frame",
            "dream_environment")  # fmt: skip


def test_its_sections_run_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    assert main(["--device", "cpu", "--tiny", "--only", ",".join(ON_A_CPU), "--out", str(out)]) == 0
    assert list(json.loads(out.read_text())) == list(ON_A_CPU)
    assert "0 rows are wrong or failed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--only", "imagining"])
    assert "there is no section imagining; choose environment, " in capsys.readouterr().err


def test_its_sections_run_on_a_make_believe_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with Gpu(count=2):
        code = main(["--tiny", "--only", ",".join(ON_A_GPU)])
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert "cuda:1 while cuda:0 is current" in shown and "make-believe GPU" in shown


def test_what_is_wrong_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(bench: Bench) -> None:
        bench.add("muon", wrong=0.5)
        raise ValueError("no such thing")

    monkeypatch.setitem(SECTIONS, "muon", fails)
    assert main(["--device", "cpu", "--tiny", "--only", "muon"]) == 1
    shown = capsys.readouterr().out
    assert "2 rows are wrong or failed" in shown and "ValueError: no such thing" in shown
    assert main(["--device", "cpu", "--minutes", "0.1", "--only", "muon"]) == 0
    assert "skipped=no time left" in capsys.readouterr().out
