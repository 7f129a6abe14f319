"""What tests of several files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs one command in a folder of its own and returns what it says, after checking its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(module: object, *argv: str, code: int = 0) -> str:
        found = module.main(list(argv))  # type: ignore[attr-defined]
        out, err = capsys.readouterr()
        assert found == code, err
        return out if code == 0 else err

    return run
