"""A sample of the fault-injection campaign; ``python -m benchmarks.faults`` is the whole of it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.faults import __main__ as faults
from benchmarks.faults import environments
from benchmarks.faults.damage import damaged
from benchmarks.faults.judge import Outcome, Result, judge
from worldmodel.errors import DataError


@pytest.mark.parametrize(("test", "count"), [("bytes", 18), ("env", 30), ("settings", 3), ("malicious", 6)])
def test_nothing_is_lost(test: str, count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    assert faults.main(["--only", test, "--count", str(count), "--out", str(out)]) == 0, capsys.readouterr().out
    report = json.loads(out.read_text())
    assert sum(sum(part.values()) for part in report["figures"][test].values()) == count
    assert report["lost"] == [] and f"{test}: {count} faults" in capsys.readouterr().out


def test_the_exit_code_states_whether_anything_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def losing(scratch: Path, rng: random.Random) -> Iterator[Result]:
        yield Result("a file", Outcome.SAME)
        yield Result("a file", Outcome.LOST, "byte 7: silently another result")
        raise SystemExit  # the process ends before its work

    monkeypatch.setitem(faults.TESTS, "env", (losing, 3))
    with pytest.raises(SystemExit, match="1"):
        faults.main(["--only", "env"])
    shown = capsys.readouterr().out
    assert "a file: byte 7: silently another result" in shown
    assert faults.main(["--only", "nothing"]) == 2


def test_outcomes_are_distinguished() -> None:
    def fails(error: Exception) -> dict[str, str]:
        raise error

    wanted = {"a": "1", "b": "2"}
    assert judge("", "", lambda: wanted, wanted).outcome is Outcome.SAME
    assert judge("", "", lambda: {"a": "1"}, wanted).outcome is Outcome.LOST
    assert judge("", "", lambda: {"a": "2"}, wanted, checked=False).outcome is Outcome.UNCHECKED
    assert judge("", "", lambda: fails(DataError("it is damaged")), wanted).outcome is Outcome.REFUSED
    assert judge("", "", lambda: fails(KeyError("a")), wanted).outcome is Outcome.LOST


def test_an_environment_that_returns_nothing_is_lost() -> None:
    env, rng = mock.Mock(**{"step.return_value": None, "reset.return_value": None}), random.Random(0)
    results = [environments.step("", env, rng) for _ in range(40)]
    lost = {each.detail.partition("(")[0] for each in results if each.outcome is Outcome.LOST}
    assert lost == {".step", ".reset"}


def test_every_kind_of_damage_is_done() -> None:
    rng, content = random.Random(0), bytes(range(256)) * 4
    faults_made = [damaged(content, rng) for _ in range(200)]
    assert {how.split()[0] for _, how in faults_made} == {"flip", "overwrite", "zero", "cut", "swap"}
    assert all(len(new) == len(content) or how.startswith("cut") for new, how in faults_made)
