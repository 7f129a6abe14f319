"""What tests of several files share."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: threads of torch would compete
    os.environ.setdefault("OMP_NUM_THREADS", "1")

MOST_PROCESSES = 8  # each needs about 1.5 GB


def pytest_xdist_auto_num_workers() -> int:
    return min(os.cpu_count() or 1, MOST_PROCESSES)


LONG = (
    "test_elastic.py", "test_actor_critic.py", "test_images.py", "test_train.py", "test_speech.py", "test_collect.py",
    "test_export_model.py", "test_envs.py", "test_sweep.py", "test_gpu.py", "test_sound_codec.py",
    "test_gpu_benchmark.py", "test_quickstart.py", "test_examples.py", "test_benchmarks.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no process is still busy with one when the others have ended."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


PLOTS = "worldmodel.media.plots"
rendered: set[str] = set()  # names of pages


@pytest.fixture(autouse=True)
def pages_are_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing a page takes a second, and every training, however small, makes some: after the first page of a file
    name, such as metrics.png, an empty page is rendered, and a training's page has one panel."""
    if PLOTS not in sys.modules:
        return
    plots: Any = importlib.import_module(PLOTS)
    whole = plots.Figure

    class Page(whole):
        def savefig(self, path: Path, **options: Any) -> None:
            page = whole(figsize=(1, 1)) if path.name in rendered else super()
            page.savefig(path, **options)
            rendered.add(path.name)

    save_panels = plots.save_panels

    def saved(path: Path, panels: Sequence[Any], *args: Any, **options: Any) -> Path:
        return save_panels(path, panels[:1] if path.name in rendered else panels, *args, **options)

    monkeypatch.setattr(plots, "Figure", Page)
    monkeypatch.setattr(plots, "save_panels", saved)


@pytest.fixture(autouse=True, scope="session")
def settings_are_read_once() -> None:
    """Half of the time that composing settings takes is reading YAML files, and the tests compose a thousand times."""
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.plugins import Plugins

    Plugins.instance()  # registers the kinds of sources
    packages: Any = SourcesRegistry.instance().resolve("pkg")
    read, known = packages._read_config, {}

    def read_once(source: Any, file: Path) -> Any:
        key = file, file.stat().st_mtime_ns
        if key not in known:
            known[key] = read(source, file)
        return copy.deepcopy(known[key])

    packages._read_config = read_once


@pytest.fixture(autouse=True)
def threads_stay() -> Iterator[None]:
    """A benchmark sets the number of torch's threads; later tests would compete for the cores."""
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if before is not None:
        sys.modules["torch"].set_num_threads(before)


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
