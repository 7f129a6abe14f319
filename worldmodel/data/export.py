"""Lossless export of a store as a Minari data set or as npz files."""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium.spaces import Box, Discrete

from worldmodel.data.sources.minari import SPEC, package
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, DataError
from worldmodel.types import Episode
from worldmodel.util.files import replace_text

Storage = Literal["hdf5", "arrow", "parquet"]
Progress = Callable[[int], None]  # called with the number of written episodes


def check_exportable(store: EpisodeStore, least: int = 0) -> None:
    """Raises :class:`DataError` for a store of sound and for episodes with fewer than ``least`` steps."""
    if len(store.spec.frame_shape) != 3:
        raise DataError(f"{store.path} holds frames {store.spec.frame_shape}; only images are exported")
    if (store.frame_counts <= least).any():
        raise DataError(f"{store.path} holds episodes without a step, which Minari does not support; use --to npz")


def to_npz(store: EpisodeStore, indices: Sequence[int], folder: Path, progress: Progress = lambda done: None) -> None:
    """Write episodes into an empty folder as ``ep00000.npz``, … by their numbers in the store, and ``spec.json``.

    For S steps: ``obs`` (S + 1, H, W, C) uint8; ``action`` (S,) int64, which leads from ``obs[t]`` to
    ``obs[t + 1]``; ``reward`` (S,) float32; ``terminated`` and ``truncated`` (S,) bool; ``held_out`` bool and
    ``condition`` int64, -1 for none.
    """
    check_exportable(store)
    for done, index in enumerate(indices, 1):
        episode, entry = store.episode(index), store.entries[index]
        arrays = dict(zip(("obs", "action", "reward", "terminated", "truncated"), _steps(episode), strict=True))
        arrays |= {"held_out": np.array(entry.held_out), "condition": np.array(episode.condition, np.int64)}
        _write_npz(folder / f"ep{entry.episode:05d}.npz", arrays)
        progress(done)
    replace_text(folder / "spec.json", store.spec.to_json())


def _steps(episode: Episode) -> tuple[np.ndarray, ...]:
    """Frames (S + 1, H, W, C), and the actions, rewards, terminated and truncated flags of the S steps."""
    last = np.arange(episode.steps) == episode.steps - 1
    flags = last & episode.terminated, last & episode.truncated
    return episode.frames.transpose(0, 2, 3, 1), episode.actions[1:], episode.rewards[1:], *flags


def _write_npz(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Like numpy.savez_compressed, but twice as fast for slightly larger files, and without copies."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array(part, array, allow_pickle=False)


def to_minari(
    store: EpisodeStore,
    indices: Sequence[int],
    folder: Path,
    dataset_id: str,
    storage: Storage = "hdf5",
    progress: Progress = lambda done: None,
) -> None:
    """Write episodes into an empty folder as the Minari data set ``dataset_id``, with lossless frames (H, W, C).

    One episode is in memory at a time. The data set contains the Spec under :data:`SPEC`, and the split, condition and
    key of every episode. Raises :class:`DataError` without Minari, or when it is too old.
    """
    check_exportable(store, 1)
    minari = package()
    channels, height, width = store.spec.frame_shape
    try:
        data = package("minari.dataset.minari_storage").MinariStorage.new(
            folder / "data",
            observation_space=Box(0, 255, (height, width, channels), np.uint8),
            action_space=Discrete(len(store.spec.action_names)),
            data_format=storage,
            jpeg_encoding=False,  # Minari's default is lossy
        )
    except (ImportError, TypeError) as error:
        extra = "hdf5" if storage == "hdf5" else "arrow"
        reason = f"this Minari cannot write {storage} without loss ({error})"
        raise DataError(f"{reason}: pip install 'minari[{extra}]>=0.5.4'") from error
    spec = json.loads(store.spec.to_json())
    data.update_metadata({"dataset_id": dataset_id, "minari_version": minari.__version__, SPEC: spec})
    data.update_episodes(_buffers(store, indices, progress))
    data.update_episode_metadata(
        [
            {"held_out": entry.held_out, "condition": condition, "key": entry.key or str(entry.episode)}
            for entry, condition in ((store.entries[index], store.episode(index).condition) for index in indices)
        ]
    )


def _buffers(store: EpisodeStore, indices: Sequence[int], progress: Progress) -> Iterator[Any]:
    """Episodes as Minari buffers, created lazily."""
    buffer = package("minari.data_collector").EpisodeBuffer
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    for done, index in enumerate(indices):
        progress(done)
        yield buffer(**dict(zip(names, _steps(store.episode(index)), strict=True)))
    progress(len(indices))


def check_id(dataset_id: str) -> str:
    """Return a valid id of a Minari data set. Raises :class:`ConfigError`."""
    try:
        package("minari.dataset.minari_dataset").parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        reason = f"{dataset_id!r} is no id of a Minari data set"
        raise ConfigError(f"{reason}; write --id name-v0 or --id group/name-v0, of letters, digits, - and _") from error
    return dataset_id


def default_folder(dataset_id: str) -> Path:
    """The folder of a data set in Minari: below MINARI_DATASETS_PATH, or .minari/datasets at home."""
    return Path(package("minari.storage").get_dataset_path(dataset_id))
