"""The codes of a store, computed once and cached in the folder of a run.

``<run>/codes/codes.npy`` holds the codes of all frames of all episodes; ``codes.json`` states the episodes, the
tokenizer and a checksum. All codes are computed again for another tokenizer or after damage, and those of new episodes
when the store has grown.
"""

import contextlib
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import nn

from worldmodel.data.store import EpisodeStore
from worldmodel.tokenizers.base import Tokenizer
from worldmodel.util.files import as_bytes, replace_text, reserve, take_lock

CHECK = "check"  # in codes.json, the CRC-32 of all else in it and of codes.npy; codes without one are computed again


class CodeStore:
    """Codes of all episodes of a store: those of episode e start at row ``starts[e]``."""

    def __init__(self, store: EpisodeStore, codes: np.ndarray):
        self.store = store
        self.codes = codes  # (frames of all episodes, *grid) uint16 or uint32, memory-mapped
        self.starts = _starts(store)  # (E,) int64

    def episode(self, index: int) -> np.ndarray:
        """(T, *grid): the codes of one episode, as a view."""
        start = self.starts[index]
        return self.codes[start : start + self.store.entries[index].frames]


def encode_store(
    store: EpisodeStore,
    tokenizer: Tokenizer,
    folder: str | Path,
    device: torch.device | str = "cpu",
    batch: int = 256,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CodeStore:
    """The codes of every frame, from the cache in ``folder``, or computed and cached there.

    ``progress(frames done, frames to encode)`` is called after every batch of frames. The tokenizer is moved to
    ``device``. While another process writes the cache, this one waits. Raises :class:`DataError` for a damaged episode,
    OSError when the disk is full.
    """
    folder = Path(folder)
    key = {"tokenizer": fingerprint(tokenizer), "episodes": _names(store)}
    if (codes := _read(folder, key)) is not None:
        return CodeStore(store, codes)
    folder.mkdir(parents=True, exist_ok=True)
    with take_lock(folder, wait=True) or contextlib.nullcontext():
        if (codes := _read(folder, key)) is not None:  # another process was writing them
            return CodeStore(store, codes)
        old, known = _open_cache(folder)
        if old.get("tokenizer") != key["tokenizer"]:
            known = None
        temporary = folder / "codes.npy.tmp"  # a fixed name, overwritten after a crash
        dtype = np.uint16 if tokenizer.num_codes <= 2**16 else np.uint32
        try:
            out = open_memmap(temporary, "w+", dtype, (store.frames, *tokenizer.grid))
            reserve(temporary)
            missing = list(range(len(store))) if known is None else _copy_known(out, store, known, old["episodes"])
            _encode(out, store, missing, tokenizer, device, batch, progress)
            out.flush()
            del out
            check = _check(temporary, key)
            (folder / "codes.json").unlink(missing_ok=True)  # no key may describe other codes
            os.replace(temporary, folder / "codes.npy")
        finally:
            temporary.unlink(missing_ok=True)
        replace_text(folder / "codes.json", json.dumps({**key, CHECK: check}))
        return CodeStore(store, np.load(folder / "codes.npy", mmap_mode="r"))


def _read(folder: Path, key: dict[str, Any]) -> np.ndarray | None:
    """The codes of the cache, if they are all of those that ``key`` describes."""
    own, codes = _open_cache(folder)
    return codes if all(own.get(name) == value for name, value in key.items()) else None


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the class, the sizes and all tensors of a tokenizer or a prior."""
    digest = hashlib.sha256(f"{type(model).__name__} {model.grid} {getattr(model, 'num_codes', None)}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _starts(store: EpisodeStore) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(store.frame_counts)[:-1]]).astype(np.int64)


def _names(store: EpisodeStore) -> list[list[int]]:
    """Identifiers of episodes: number, steps, checksum."""
    return [[entry.episode, entry.length, entry.crc] for entry in store.entries]


def _open_cache(folder: Path) -> tuple[dict[str, Any], np.ndarray | None]:
    """Key and codes of the cache; an empty key and None if it is missing, damaged, or without a checksum."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        key = json.loads((folder / "codes.json").read_text())
        if key.pop(CHECK) == _check(folder / "codes.npy", key):
            return key, np.load(folder / "codes.npy", mmap_mode="r", allow_pickle=False)
    return {}, None


def _check(file: Path, key: dict[str, Any]) -> int:
    """CRC-32 of the file of codes, with its header, and of the key."""
    return zlib.crc32(json.dumps(key).encode(), zlib.crc32(as_bytes(np.memmap(file, np.uint8, "r"))))


def _copy_known(out: np.ndarray, store: EpisodeStore, known: np.ndarray, old_names: list[list[int]]) -> list[int]:
    """Copy the codes of episodes in the old cache; returns the indices of the others."""
    if known.shape[1:] != out.shape[1:] or known.dtype != out.dtype:
        return list(range(len(store)))
    rows = np.cumsum([0, *(length + 1 for _, length, _ in old_names)])
    old_rows = {tuple(name): int(row) for name, row in zip(old_names, rows[:-1], strict=True)}
    missing = []
    for index, (name, start) in enumerate(zip(_names(store), _starts(store), strict=True)):
        row, size = old_rows.get(tuple(name)), name[1] + 1
        if row is None:
            missing.append(index)
        else:
            out[start : start + size] = known[row : row + size]
    return missing


@torch.no_grad()
def _encode(
    out: np.ndarray,
    store: EpisodeStore,
    episodes: list[int],
    tokenizer: Tokenizer,
    device: torch.device | str,
    batch: int,
    progress: Callable[[int, int], None],
) -> None:
    """Encode episodes into their rows, in evaluation mode."""
    starts, counts = _starts(store)[episodes], store.frame_counts[episodes]
    places = [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
    rows = np.concatenate([np.empty(0, np.int64), *places])
    every = (store.episode(index).frames for index in episodes)
    done, training = 0, tokenizer.training
    tokenizer.to(device).eval()
    try:
        for frames in map(np.array, every) if tokenizer.joined else _batches(every, batch):
            x = torch.from_numpy(frames).to(device, non_blocking=True)
            codes = tokenizer.encode_episode(x) if tokenizer.joined else tokenizer.encode(x)
            out[rows[done : done + len(frames)]] = codes.cpu().numpy()
            done += len(frames)
            progress(done, len(rows))
    finally:
        tokenizer.train(training)


def _batches(episodes: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The frames of some episodes, ``size`` at a time across episodes: (n, C, *size)."""
    frames = itertools.chain.from_iterable(episodes)
    while batch := list(itertools.islice(frames, size)):
        yield np.stack(batch)
