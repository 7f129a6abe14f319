"""Uses fewer threads of torch while other processes use the processor cores.

Two processes that compute with as many threads as there are cores wait for each other's threads at the end of every
operation. :meth:`FreeCores.adjust` gives torch as many threads as cores are free, and more when they become free again.
It does nothing where the user chose a number of threads, and nothing where Linux does not report the use of cores.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

CHOSEN_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "WORLDMODEL_FIXED_THREADS")
SECONDS = 0.5  # between two looks
SHARE = 0.3  # of a core that others may use before it counts as taken


def free_threads(cores: int, others: float, most: int) -> int:
    """Threads for a process on ``cores`` cores of which other processes use ``others``, at most ``most``."""
    return max(1, min(most, int(cores - others + SHARE)))


def busy_seconds(cores: set[int]) -> float:
    """Processor seconds that all processes used on some cores since the start of the machine, without those at low
    priority (nice), which give way. Raises OSError and ValueError where it is not reported."""
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores:
            user, _, system, _, _, irq, softirq, *_ = map(int, values)
            ticks += user + system + irq + softirq
    return ticks / os.sysconf("SC_CLK_TCK")


class FreeCores:
    """The threads of torch in this process; call :meth:`adjust` often, at moments when no operation runs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, busy: Callable[[set[int]], float] = busy_seconds):
        self._clock, self._busy = clock, busy
        self._due = 0.0  # when to look again
        self._most = 0  # threads that torch chose; 0: not read yet
        self._set = 0  # threads that this object chose
        self._last: tuple[float, float, float] | None = None  # time, seconds of all processes, of this one
        self._wanted = 0  # of the last look; a change needs two equal looks
        self.enabled = hasattr(os, "sched_getaffinity") and not any(os.environ.get(name) for name in CHOSEN_BY)

    def adjust(self) -> None:
        """Look whether it is time for it, and change the number of threads if it should be another one."""
        if not self.enabled or (now := self._clock()) < self._due:
            return
        torch = sys.modules["torch"]
        threads = torch.get_num_threads()
        if threads != (self._set or threads) or (not self._most and threads == 1):
            self.enabled = False  # the user has chosen a number since
            return
        self._most, self._set, self._due = self._most or threads, threads, now + SECONDS
        cores = os.sched_getaffinity(0)
        try:
            busy, own = self._busy(cores), time.process_time()
        except (OSError, ValueError):
            self.enabled = False
            return
        if self._last is not None:
            others = max(0.0, (busy - self._last[1]) - (own - self._last[2])) / max(now - self._last[0], 1e-9)
            wanted = free_threads(len(cores), others, self._most)
            if wanted == self._wanted != threads:
                torch.set_num_threads(wanted)
                self._set = wanted
            self._wanted = wanted
        self._last = now, busy, own


FREE_CORES = FreeCores()  # of this process
