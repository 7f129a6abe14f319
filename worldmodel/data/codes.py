"""The codes of a store, computed once and cached in the folder of a run.

``<run>/codes/codes.npy`` holds the codes of all frames of all episodes; ``codes.json`` states the episodes, the
tokenizer and a checksum. All codes are computed again for another tokenizer or after damage, and those of new episodes
when the store has grown.
"""

from __future__ import annotations

import hashlib
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
from worldmodel.util.files import as_bytes, replace_text, reserve


class CodeStore:
    """Codes of all episodes of a store: those of episode e start at row ``starts[e]``."""

    def __init__(self, store: EpisodeStore, codes: np.ndarray, size: int):
        self.store = store
        self.codes = codes  # (frames of all episodes, *grid) uint16 or uint32, memory-mapped
        self.size = size  # K
        self.starts = _starts(store)  # (E,) int64

    @property
    def grid(self) -> tuple[int, ...]:
        return self.codes.shape[1:]

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
    progress: Callable[[int, int], None] | None = None,
) -> CodeStore:
    """The codes of every frame, from the cache in ``folder``, or computed and cached there.

    ``progress(frames done, frames to encode)`` is called after every batch of frames. The tokenizer is moved to
    ``device``. Raises :class:`DataError` for a damaged episode, OSError
    when the disk is full.
    """
    folder = Path(folder)
    key = {"tokenizer": fingerprint(tokenizer), "episodes": _names(store)}
    cached = _open_cache(folder)
    if cached is not None and all(cached[0].get(name) == value for name, value in key.items()):
        return CodeStore(store, cached[1], tokenizer.num_codes)
    known = cached[1] if cached is not None and cached[0].get("tokenizer") == key["tokenizer"] else None
    old_names = cached[0]["episodes"] if cached is not None and known is not None else []
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "codes.npy.tmp"  # a fixed name, overwritten after a crash
    dtype = np.uint16 if tokenizer.num_codes <= 2**16 else np.uint32
    try:
        out = open_memmap(temporary, "w+", dtype, (store.frames, *tokenizer.grid))
        reserve(temporary)
        missing = _copy_known(out, store, known, old_names)
        _encode(out, store, missing, tokenizer, device, batch, progress)
        out.flush()
        crc = zlib.crc32(as_bytes(out))
        del out
        (folder / "codes.json").unlink(missing_ok=True)  # no key may describe other codes
        os.replace(temporary, folder / "codes.npy")
    finally:
        temporary.unlink(missing_ok=True)
    replace_text(folder / "codes.json", json.dumps({**key, "crc": crc}))
    return CodeStore(store, np.load(folder / "codes.npy", mmap_mode="r"), tokenizer.num_codes)


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


def _open_cache(folder: Path) -> tuple[dict[str, Any], np.ndarray] | None:
    """Key and codes of a valid cache, or None."""
    try:
        key = json.loads((folder / "codes.json").read_text())
        codes = np.load(folder / "codes.npy", mmap_mode="r", allow_pickle=False)
        frames = sum(length + 1 for _, length, _ in key["episodes"])
        valid = len(codes) == frames and key.get("crc") in (None, zlib.crc32(as_bytes(codes)))  # older caches have none
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return (key, codes) if valid else None


def _copy_known(
    out: np.ndarray, store: EpisodeStore, known: np.ndarray | None, old_names: list[list[int]]
) -> list[int]:
    """Copy the codes of episodes in the old cache; returns the indices of the others."""
    if known is None or known.shape[1:] != out.shape[1:] or known.dtype != out.dtype:
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
    progress: Callable[[int, int], None] | None,
) -> None:
    """Encode episodes into their rows, in evaluation mode."""
    total = int(store.frame_counts[episodes].sum())
    done = 0
    training = tokenizer.training
    tokenizer.to(device).eval()
    try:
        whole = _episodes(store, episodes) if tokenizer.joined else _batches(store, episodes, batch)
        for rows, frames in whole:
            x = torch.from_numpy(frames).to(device, non_blocking=True)
            codes = tokenizer.encode_episode(x) if tokenizer.joined else tokenizer.encode(x)
            out[rows] = codes.cpu().numpy()
            done += len(rows)
            if progress is not None:
                progress(done, total)
    finally:
        tokenizer.train(training)


def _episodes(store: EpisodeStore, episodes: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One episode at a time: rows (T,) and frames (T, C, *size)."""
    starts = _starts(store)
    for index in episodes:
        frames = store.episode(index).frames
        yield np.arange(len(frames)) + starts[index], np.array(frames)


def _batches(store: EpisodeStore, episodes: list[int], batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All frames of some episodes, ``batch`` at a time across episodes: rows (n,) and frames (n, C, *size)."""
    starts = _starts(store)
    rows: list[np.ndarray] = []
    parts: list[np.ndarray] = []
    free = batch
    for index in episodes:
        frames = store.episode(index).frames
        at = 0
        while at < len(frames):
            part = frames[at : at + free]
            rows.append(np.arange(starts[index] + at, starts[index] + at + len(part)))
            parts.append(part)
            at, free = at + len(part), free - len(part)
            if not free:
                yield np.concatenate(rows), np.concatenate(parts)
                rows, parts, free = [], [], batch
    if parts:
        yield np.concatenate(rows), np.concatenate(parts)
