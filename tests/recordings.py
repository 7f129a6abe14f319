"""Small recordings: a store of them, and the same as npz files and Minari data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.data.export import to_minari
from worldmodel.data.records import Item
from worldmodel.data.sources import Arrays, Minari
from worldmodel.data.store import EpisodeStore
from worldmodel.types import Episode, Spec

SPEC = Spec("toy:Maze-v0", (3, 32, 40), ("noop", "forward", "left"), 12.5, {"level": "a", "ends": [1, 2.5]})
"""Large enough for Minari to take its pictures for such, which it would keep as JPEG."""


def numbered(*numbers: int, shape: tuple[int, ...] = (16, 16, 3)) -> np.ndarray:
    """Pictures of one colour each, which is their number: (n, *shape) uint8."""
    return np.stack([np.full(shape, number, np.uint8) for number in numbers])


def episode(seed: int, steps: int, spec: Spec = SPEC, **ends: bool) -> Episode:
    random = np.random.default_rng(seed)
    return Episode.from_steps(
        frames=random.integers(0, 256, (steps + 1, *spec.frame_shape), np.uint8),
        actions=random.integers(0, len(spec.action_names), steps),
        rewards=random.normal(size=steps).astype(np.float32),
        **{"terminated": False, "truncated": False, **ends},
    )


def small_store(folder: Path) -> EpisodeStore:
    """Episodes of every kind of end; the first has one step, the second a damaged neighbour in the count."""
    items = [
        Item(episode(0, 1, terminated=True)),
        Item(episode(1, 7, truncated=True), held_out=True, key="maze/ep0001"),
        Item(episode(2, 4, terminated=True, truncated=True)),
        Item(episode(3, 5)),
    ]
    with EpisodeStore.writer(folder, SPEC) as store:
        store.extend(items)
    return EpisodeStore.open(folder)


def write_npz(
    file: Path, steps: int = 9, ends: tuple[int, ...] = (), frames: int | None = None, **changes: Any
) -> None:
    """A recording whose frame t is of colour t, whose action is t % 3, and whose reward is t."""
    file.parent.mkdir(parents=True, exist_ok=True)
    done = np.zeros(steps, bool)
    done[list(ends)] = True
    if "obs" not in changes:
        changes["obs"] = numbered(*range(frames or steps))
    arrays = {
        "action": np.arange(steps) % 3,
        "reward": np.arange(steps, dtype=np.int64), "done": done, "life_loss": np.zeros(steps, bool), **changes,
    }  # fmt: skip
    np.savez_compressed(file, **{name: array for name, array in arrays.items() if array is not None})


def tiny_npz(folder: Path) -> Arrays:
    for number in range(3):
        write_npz(folder / f"level/{number}.npz", ends=(3, 7))
    write_npz(folder / "last.npz", frames=10)
    return Arrays(str(folder))


def tiny_minari(folder: Path) -> Minari:
    pytest.importorskip("minari", reason="the extra minari is not installed")
    store = small_store(folder.parent / "exported")
    folder.mkdir()
    to_minari(store, range(len(store)), folder, "toy/maze-v0")
    return Minari(str(folder))
