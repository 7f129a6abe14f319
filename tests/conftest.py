"""What tests of several files share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLOTS = "worldmodel.media.plots"
rendered: set[str] = set()  # titles of panels


@pytest.fixture(autouse=True)
def panels_are_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering a page takes a second, and every training, however small, makes some: where each of its panels has been
    rendered before, by title, a page is drawn but an empty one is rendered."""
    if PLOTS not in sys.modules:
        return
    plots: Any = importlib.import_module(PLOTS)
    whole = plots.Figure

    class Page(whole):
        def savefig(self, *args: Any, **options: Any) -> None:
            titles = {axes.get_title(loc="left") for axes in self.axes}
            page = whole(figsize=(1, 1)) if titles <= rendered else super()
            page.savefig(*args, **options)
            rendered.update(titles)

    monkeypatch.setattr(plots, "Figure", Page)


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs one command in a folder of its own and returns what it says, after checking its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(module: Any, *argv: str, code: int = 0) -> str:
        found = module.main(list(argv))
        out, err = capsys.readouterr()
        assert found == code, err
        return out if code == 0 else err

    return run
