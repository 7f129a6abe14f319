"""The store: random windows per second, read by one thread as in training, from disk and from memory."""

from __future__ import annotations

import os

import torch

from benchmarks.subject import Subject
from benchmarks.timing import Figure, Plan, peak_memory, rates, reset_peak, rounds, seconds
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import Windows

LENGTH = 16  # frames per window
BATCH, CALLS = 32, 4  # windows per call, calls per measurement


def measure(subject: Subject, plan: Plan) -> list[Figure]:
    """Cold: after the files were dropped from the system's cache. Warm: the same windows again."""
    device = torch.device("cpu")
    reset_peak(device)
    opened: list[Windows] = []

    def read(windows: Windows, number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        return seconds(lambda: [windows.sample(BATCH, generator) for _ in range(CALLS)], device)

    def cold(number: int) -> float:
        opened.clear()  # mapped pages would stay in the cache
        drop_cache(subject.store)
        opened.append(Windows(EpisodeStore.open(subject.store.path), "train", LENGTH))
        return read(opened[0], number)

    def warm(number: int) -> float:
        return read(opened[0], number)

    spent = rounds({"random windows, cold": cold, "random windows, warm": warm}, plan.repeat)
    figures = [
        Figure.of(name, rates(BATCH * CALLS, times), "windows/s", batch=BATCH, length=LENGTH)
        for name, times in spent.items()
    ]
    return [*figures, peak_memory(device)]


def drop_cache(store: EpisodeStore) -> None:
    """Ask the system to drop the frames of a store from its cache; if it cannot, cold reads are warm."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in store.path.glob("shard-*.frames"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
