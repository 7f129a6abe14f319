"""Timing: contenders are measured in turn in rounds, and figures are medians over the rounds."""

import contextlib
import dataclasses
import re
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from worldmodel.world import Precision

Key = TypeVar("Key", bound=Hashable)
Contender = Callable[[int], float]  # number of the round → measured seconds


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of the measurements."""

    batches: Sequence[int]
    precisions: Sequence[Precision]
    repeat: int  # measured rounds, after one for warming up


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured value: the median and the extremes over the rounds."""

    what: str
    value: float
    unit: str
    low: float
    high: float
    batch: int | None = None
    length: int | None = None  # frames per window, for a batch of windows
    precision: str | None = None

    @classmethod
    def of(cls, what: str, values: Sequence[float], unit: str, **conditions: Any) -> Self:
        """Make a figure from the values of all rounds; ``conditions`` are batch, length, precision."""
        return cls(what, statistics.median(values), unit, min(values), max(values), **conditions)

    @classmethod
    def ratio(cls, what: str, slow: Sequence[float], fast: Sequence[float], **conditions: Any) -> Self:
        """Make a figure of the ratio of two times, which is formed in every round."""
        return cls.of(what, [a / b for a, b in zip(slow, fast, strict=True)], "×", **conditions)


def synchronize(device: torch.device) -> None:
    """Wait for the pending work of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, with the device synchronised before and after."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def rounds(contenders: Mapping[Key, Contender], repeat: int) -> dict[Key, list[float]]:
    """The times of each contender in rounds 1 … ``repeat``, after an unmeasured round 0 that warms up.

    Every round measures all contenders, so that a slower machine affects all of them.
    """
    times: dict[Key, list[float]] = {name: [] for name in contenders}
    for number in range(repeat + 1):
        for name, contender in contenders.items():
            spent = contender(number)
            if number:
                times[name].append(spent)
    return times


def rates(work: float, spent: Sequence[float]) -> list[float]:
    """Work per second in every round."""
    return [work / time for time in spent]


def reset_peak(device: torch.device) -> None:
    """Start a new measurement of peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Where this is not permitted, it is the peak since the start of the process.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device, batch: int | None = None) -> Figure:
    """Peak since :func:`reset_peak`: of the tensors on a GPU, or of the process (with libraries and mapped data)."""
    if device.type == "cuda":
        return Figure.of("peak GPU memory", [torch.cuda.max_memory_allocated(device) / 2**20], "MiB", batch=batch)
    # Not ``ru_maxrss``, which cannot be reset and starts with the size of the parent process.
    peak = float(re.findall(r"^VmHWM:\s*(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)[0])  # KiB
    return Figure.of("peak process memory", [peak / 1024], "MiB", batch=batch)
