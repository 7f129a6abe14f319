"""A pool of recorder processes; one that dies or hangs is replaced by another that records the remaining steps."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType

from worldmodel.errors import EnvError
from worldmodel.recording.recorder import RESCUE, STOP, Order, Recording, receive, work

MOST_FAILURES = 5  # consecutive failures without a recorded episode
STOP_SECONDS = 5.0
PIPE_BYTES = 2**20  # the limit of Linux for unprivileged users
START_SECONDS = 120.0  # for the start of an interpreter on a busy machine


@dataclasses.dataclass
class _Recorder:
    """The state of one process in the pool."""

    process: BaseProcess
    results: Connection
    control: Connection
    order: Order  # with the remaining steps
    place: int  # its index in the pool
    life: int  # number of earlier processes with this index
    deadline: float  # time.monotonic() by which it has to send a message
    hung: bool = False  # whether it missed the deadline and was asked for its unfinished episode
    saved: bool = False  # whether it sent that


@dataclasses.dataclass(frozen=True)
class Report:
    """New steps, a received episode, or a warning."""

    steps: int = 0
    recording: Recording | None = None
    warning: str | None = None


class RecorderPool:
    """Processes that share the steps of an order; a context manager that ends all of them.

    ``timeout`` is the seconds of silence after which a recorder counts as hung.
    """

    def __init__(self, order: Order, workers: int, timeout: float):
        self._spawn = multiprocessing.get_context("spawn")  # engines and threads do not survive a fork
        self._timeout = timeout
        self._failures = 0
        self._stepped = False  # whether any step was recorded
        self._recorders: list[_Recorder] = []
        self._shares = [
            dataclasses.replace(order, steps=share, seed=(*order.seed, place))
            for place in range(workers)
            if (share := order.steps // workers + (place < order.steps % workers))
        ]

    def __enter__(self) -> RecorderPool:
        for place, order in enumerate(self._shares):
            self._start(order, place, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for recorder in list(self._recorders):
            self._remove(recorder)

    def reports(self) -> Iterator[Report]:
        """Reports until every step is recorded; an empty one at least every half second.

        Raises :class:`EnvError` when recorders keep failing, and at once when the first cannot take a single step.
        """
        while self._recorders:
            yield Report()
            yield from self._listen(0.5, self._replace)
            now = time.monotonic()
            for recorder in [one for one in self._recorders if now > one.deadline]:
                yield self._replace(recorder, self._silent()) if recorder.hung else self._rescue(recorder)

    def stop(self) -> Iterator[Report]:
        """Request the unfinished episodes, flagged as truncated, and wait some seconds for them."""
        for recorder in self._recorders:
            try:
                recorder.control.send_bytes(STOP)
            except OSError:
                continue
        deadline = time.monotonic() + STOP_SECONDS
        while self._recorders and (left := deadline - time.monotonic()) > 0:
            yield from self._listen(left, self._give_up)

    def _start(self, order: Order, place: int, life: int) -> None:
        results, their_results = self._spawn.Pipe(duplex=False)
        their_control, control = self._spawn.Pipe(duplex=False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # on Linux: fewer context switches
            with contextlib.suppress(OSError):
                fcntl.fcntl(results.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        order_now = dataclasses.replace(order, seed=(*order.seed, life))
        process = self._spawn.Process(target=work, args=(order_now, their_results, their_control), daemon=True)
        process.start()
        their_results.close()  # so that its death ends the pipe
        their_control.close()
        deadline = time.monotonic() + max(self._timeout, START_SECONDS)
        self._recorders.append(_Recorder(process, results, control, order, place, life, deadline))

    def _remove(self, recorder: _Recorder) -> None:
        self._recorders.remove(recorder)
        recorder.process.kill()
        recorder.process.join()
        recorder.results.close()
        recorder.control.close()

    def _listen(self, seconds: float, failed: Callable[[_Recorder, str], Report]) -> Iterator[Report]:
        ready = wait([recorder.results for recorder in self._recorders], seconds)
        for recorder in [one for one in self._recorders if one.results in ready]:
            try:
                message = recorder.results.recv()
                if not recorder.hung:
                    recorder.deadline = time.monotonic() + self._timeout
                match message[0]:
                    case "steps":
                        self._stepped |= message[1] > 0
                        yield Report(steps=message[1])
                    case "episode":
                        recording = receive(message, recorder.results)
                        left = recorder.order.steps - recording.episode.steps
                        recorder.order = dataclasses.replace(recorder.order, steps=left)
                        self._stepped = True
                        recorder.saved = recorder.hung
                        if recording.broken is None:  # a simulator that always dies counts as failing
                            self._failures = 0
                        yield Report(recording=recording, warning=_cut(recording))
                    case "lost":
                        yield Report(warning=f"an episode was lost before its first step: {message[1]}")
                    case "failed" if not self._stepped:
                        raise EnvError(f"recording fails at its first step: {message[1]}")
                    case "failed":
                        yield failed(recorder, message[1])
                    case "done":
                        self._remove(recorder)
            except (EOFError, ConnectionResetError):
                recorder.process.join(1)
                ended = f"ended with exit code {recorder.process.exitcode}"
                yield failed(recorder, self._silent() if recorder.hung else ended)

    def _silent(self) -> str:
        return f"silent for {self._timeout:g} s"

    def _rescue(self, recorder: _Recorder) -> Report:
        """Request the unfinished episode of a recorder that hangs, for instance because its simulator died."""
        recorder.hung, recorder.deadline = True, time.monotonic() + STOP_SECONDS
        with contextlib.suppress(OSError):
            recorder.control.send_bytes(RESCUE)
        return Report()

    def _give_up(self, recorder: _Recorder, reason: str) -> Report:
        self._remove(recorder)
        return Report()

    def _replace(self, recorder: _Recorder, reason: str) -> Report:
        """Start another process for the remaining steps, with other seeds."""
        self._remove(recorder)
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            raise EnvError(f"recording failed {self._failures} times in a row, the last time because: {reason}")
        if recorder.order.steps > 0:
            self._start(recorder.order, recorder.place, recorder.life + 1)
        lost = "" if recorder.saved else ", its episode is lost"
        return Report(warning=f"recorder {recorder.place} was replaced{lost}: {reason}")


def _cut(recording: Recording) -> str | None:
    """A warning about an episode that the environment did not finish."""
    if recording.broken is None:
        return None
    return f"an episode was cut after {recording.episode.steps:,} steps and marked truncated: {recording.broken}"
