"""A run of the corridor with recorded episodes, and its server in a process of its own, for tests of playing."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from corridor import LONGEST, SPEC
from corridor_run import save_run

from worldmodel.data.store import EpisodeStore
from worldmodel.types import Episode


def save_played_run(folder: Path) -> Path:
    """The run, in ``folder/runs``; its episodes are in ``folder/data``."""
    rng = np.random.default_rng(0)
    with EpisodeStore.writer(folder / "data", SPEC) as store:
        for _ in range(3):
            frames = rng.integers(0, 256, (LONGEST, *SPEC.frame_shape), dtype=np.uint8)
            actions, rewards = rng.integers(0, 2, LONGEST - 1), np.zeros(LONGEST - 1)
            store.append(Episode.from_steps(frames, actions, rewards, False, True))
    return save_run(folder / "runs")


def where(run: Path) -> list[str]:
    return [f"runs={run.parent}", f"data={run.parents[1] / 'data'}", "device=cpu"]


@contextlib.contextmanager
def serving(run: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a running server, and its process; it must have written no error."""
    command = [sys.executable, "-m", "worldmodel.play", *where(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            lines = [process.stdout.readline() for _ in range(3)]
            yield lines[1].split()[-1], process
        finally:
            process.kill()
        errors = process.stderr.read()
        assert not errors, errors
