"""How things are timed: contenders take turns in rounds, and what counts is the median over the rounds."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from worldmodel.world import Precision

Key = TypeVar("Key", bound=Hashable)
Contender = Callable[[int], float]  # the number of the round → the seconds that it wants counted


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured."""

    batches: Sequence[int]
    precisions: Sequence[Precision]
    repeat: int  # rounds that count; one more comes before them and does not


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured value: the median over the rounds, and the extremes that tell how quiet the machine was."""

    what: str
    value: float
    unit: str
    low: float
    high: float
    batch: int | None = None
    length: int | None = None  # frames a window, where a batch is one of windows
    precision: str | None = None

    @classmethod
    def of(cls, what: str, values: Sequence[float], unit: str, **conditions: Any) -> Figure:
        """From the values of all rounds; ``conditions`` are batch, length, precision."""
        return cls(what, statistics.median(values), unit, min(values), max(values), **conditions)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's queue drained on both sides."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def rounds(contenders: Mapping[Key, Contender], repeat: int) -> dict[Key, list[float]]:
    """What each contender returns in rounds 1 … ``repeat``, one entry a round.

    In every round each has its turn, so that a machine that slows down slows all of them. Round 0 warms up and is not
    reported.
    """
    found: dict[Key, list[float]] = {name: [] for name in contenders}
    for number in range(repeat + 1):
        for name, contender in contenders.items():
            spent = contender(number)
            if number:
                found[name].append(spent)
    return found


def rates(work: float, spent: Sequence[float]) -> list[float]:
    """Work a second, in every round."""
    return [work / time for time in spent]


def reset_peak(device: torch.device) -> None:
    """Peak memory counts from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Linux forgets the peak of a process that asks for it; elsewhere it stays the peak since the process began.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device, batch: int | None = None) -> Figure:
    """Since :func:`reset_peak`: the tensors on a GPU, or the whole process (libraries and mapped data too) on a CPU."""
    if device.type == "cuda":
        what, peak = "peak GPU memory", torch.cuda.max_memory_allocated(device)
    else:
        what, peak = "peak process memory", _peak_resident()
    return Figure.of(what, [peak / 2**20], "MiB", batch=batch)


def _peak_resident() -> int:
    """Bytes that this process had resident at most. Linux is asked first how it counts since the last reset: its
    ``ru_maxrss`` begins with the size of the process that started this one.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)  # bytes on macOS, kibibytes elsewhere
