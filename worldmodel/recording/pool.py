"""A pool of recorder processes; one that dies or hangs is replaced by another that records the remaining steps.

A recorder receives orders, None when there are no more, or one of two requests, ``STOP`` and ``RESCUE``. It sends
tuples ``(kind, …)``: ``steps`` (number since the last message), ``episode`` (followed by the bytes of its arrays),
``lost`` (an episode that failed before its first step, with the reason), ``failed`` (the reason), ``refused`` (the
reason: the environment returned what cannot be recorded, so another attempt is useless), ``done`` (an order).
"""

import contextlib
import dataclasses
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Self

import cloudpickle

from worldmodel.errors import DataError, EnvError, WorldModelError
from worldmodel.recording.recorder import ActionSource, MakeEnv, Order, Recorder, Recording, receive, send
from worldmodel.util.processes import Child, start

STOP, RESCUE = "stop", "rescue"
"""Requests: end the episode; or, while the environment hangs, send the unfinished episode."""
MOST_FAILURES = 5  # consecutive failures without a recorded episode
STOP_SECONDS = 5.0
PIPE_BYTES = 2**20  # the limit of Linux for unprivileged users
START_SECONDS = 120.0  # for the start of an interpreter on a busy machine


@dataclasses.dataclass
class _Recorder:
    """The state of one process in the pool."""

    child: Child
    order: Order | None  # with the remaining steps; None after the last order
    place: int  # its index in the pool
    deadline: float  # time.monotonic() by which it has to send a message
    hung: bool = False  # whether it missed the deadline and was asked for its unfinished episode
    saved: bool = False  # whether it sent that


@dataclasses.dataclass(frozen=True)
class Report:
    """New steps, a received episode, or a warning."""

    steps: int = 0
    recording: Recording | None = None
    warning: str | None = None


def serialized(make_env: MakeEnv, agent: ActionSource, workers: int) -> bytes:
    """An environment and its agent, to be sent to recorder processes of which ``workers`` share the cores.

    Modules are imported there, and what a script or a notebook defines is sent by value. Raises :class:`EnvError` for
    what cannot be sent.
    """
    try:
        return cloudpickle.dumps((make_env, agent, workers))
    except Exception as error:  # an object may raise anything when it is pickled
        raise EnvError(
            "the environment or its agent cannot be sent to a recorder process "
            f"({type(error).__name__}: {' '.join(str(error).split())}); define and register it in a module, "
            "and name the module: env.id=my_module:MyEnv-v0"
        ) from error


class RecorderPool:
    """At most ``workers`` processes that share orders; a context manager that ends all of them.

    ``task`` is what :func:`serialized` returns. ``timeout`` is the seconds of silence after which a recorder counts as
    hung.
    """

    def __init__(self, task: bytes, orders: Sequence[Order], workers: int, timeout: float):
        self._task, self._orders, self._workers, self._timeout = task, iter(orders), workers, timeout
        self._failures = 0
        self._stepped = False  # whether any step was recorded
        self._recorders: list[_Recorder] = []

    def __enter__(self) -> Self:
        for place, order in enumerate(itertools.islice(self._orders, self._workers)):
            self._start(order, place)
        return self

    def __exit__(self, *error: object) -> None:
        for recorder in list(self._recorders):
            self._remove(recorder)

    def reports(self) -> Iterator[Report]:
        """Reports until every step is recorded; an empty one at least every half second.

        Raises :class:`EnvError` when recorders keep failing, and at once when the first cannot take a single step;
        :class:`DataError` at once when an environment returned what cannot be recorded.
        """
        while self._recorders:
            yield Report()
            yield from self._listen(0.5, self._replace)
            now = time.monotonic()
            for recorder in [one for one in self._recorders if now > one.deadline]:
                yield self._replace(recorder, self._silent()) if recorder.hung else self._rescue(recorder)

    def stop(self) -> Iterator[Report]:
        """Request the unfinished episodes, flagged as truncated, and wait some seconds for them."""
        self._orders = iter(())
        for recorder in self._recorders:
            self._send(recorder, STOP)
        deadline = time.monotonic() + STOP_SECONDS
        while self._recorders and (left := deadline - time.monotonic()) > 0:
            yield from self._listen(left, self._give_up)

    def _start(self, order: Order, place: int) -> None:
        child = start("worldmodel.recording.pool", "work", own_group=True)  # Ctrl-C requests unfinished episodes
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # on Linux: fewer context switches
            with contextlib.suppress(OSError):
                fcntl.fcntl(child.results.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._recorders.append(_Recorder(child, order, place, time.monotonic() + max(self._timeout, START_SECONDS)))
        with contextlib.suppress(OSError):
            child.control.send_bytes(self._task)
        self._send(self._recorders[-1], order)

    def _send(self, recorder: _Recorder, message: Order | str | None) -> None:
        with contextlib.suppress(OSError):  # it has ended, which the other pipe shows
            recorder.child.control.send(message)

    def _remove(self, recorder: _Recorder) -> None:
        self._recorders.remove(recorder)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended
            # Also what a simulator started, such as compilers of maps.
            os.killpg(recorder.child.process.pid, signal.SIGKILL)
        recorder.child.process.wait()
        recorder.child.results.close()
        recorder.child.control.close()

    def _listen(self, seconds: float, failed: Callable[[_Recorder, str], Report]) -> Iterator[Report]:
        ready = wait([recorder.child.results for recorder in self._recorders], seconds)
        for recorder in [one for one in self._recorders if one.child.results in ready]:
            try:
                message = recorder.child.results.recv()
                if not recorder.hung:
                    recorder.deadline = time.monotonic() + self._timeout
                match message[0]:
                    case "steps":
                        self._stepped |= message[1] > 0
                        yield Report(steps=message[1])
                    case "episode":
                        recording = receive(message, recorder.child.results)
                        recorder.order = recorder.order and recorder.order.without(recording)
                        self._stepped = True
                        recorder.saved = recorder.hung
                        if recording.broken is None:  # a simulator that always dies counts as failing
                            self._failures = 0
                        yield Report(recording=recording, warning=_cut(recording))
                    case "lost":
                        yield Report(warning=f"an episode was lost before its first step: {message[1]}")
                    case "refused":
                        raise DataError(message[1])
                    case "failed" if recorder.order and recorder.order.whole:  # it would fail again
                        raise EnvError(f"an episode failed: {message[1]}")
                    case "failed" if not self._stepped:
                        raise EnvError(f"recording fails at its first step: {message[1]}")
                    case "failed":
                        yield failed(recorder, message[1])
                    case "done":
                        recorder.order = next(self._orders, None)
                        self._send(recorder, recorder.order)
            except (EOFError, ConnectionResetError):
                if recorder.order is None:  # it has closed its environment
                    self._remove(recorder)
                    continue
                with contextlib.suppress(subprocess.TimeoutExpired):
                    recorder.child.process.wait(1)
                code = recorder.child.process.returncode
                ended = f"ended with exit code {code}" + ("; fewer workers need less memory" if code == -9 else "")
                yield failed(recorder, self._silent() if recorder.hung else ended)

    def _silent(self) -> str:
        return f"silent for {self._timeout:g} s; raise collect.timeout if its simulator compiles maps"

    def _rescue(self, recorder: _Recorder) -> Report:
        """Request the unfinished episode of a recorder that hangs, for instance because its simulator died."""
        recorder.hung, recorder.deadline = True, time.monotonic() + STOP_SECONDS
        self._send(recorder, RESCUE)
        return Report()

    def _give_up(self, recorder: _Recorder, reason: str) -> Report:
        self._remove(recorder)
        return Report()

    def _replace(self, recorder: _Recorder, reason: str) -> Report:
        """Start another process for the remaining steps, with other seeds, or for the same whole episode."""
        self._remove(recorder)
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            raise EnvError(f"recording failed {self._failures} times in a row, the last time because: {reason}")
        order = recorder.order if recorder.order and recorder.order.steps else next(self._orders, None)
        if order is not None:
            self._start(dataclasses.replace(order, attempt=order.attempt + 1), recorder.place)
        lost = "" if recorder.saved else ", its episode is lost"
        return Report(warning=f"recorder {recorder.place} was replaced{lost}: {reason}")


def _cut(recording: Recording) -> str | None:
    """A warning about an episode that the environment did not finish."""
    if recording.broken is None:
        return None
    return f"an episode was cut after {recording.episode.steps:,} steps and marked truncated: {recording.broken}"


def work(results: Connection, control: Connection) -> None:
    """Body of the process: receives ``make_env``, an agent and the number of processes that share the cores.

    It records the orders that it receives, until it receives None or the other process ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        make_env, agent, workers = control.recv()
    except Exception as error:  # the module of an environment or an agent may raise anything
        results.send(("failed", f"it cannot be made in a process of its own: {type(error).__name__}: {error}"))
        return
    if torch := sys.modules.get("torch"):  # loaded by agents with a network
        torch.set_num_threads(min(torch.get_num_threads(), max(1, (os.cpu_count() or 1) // workers)))
    orders: SimpleQueue[Order | None] = SimpleQueue()
    recorder = Recorder(
        agent, lambda steps: results.send(("steps", steps)), on_lost=lambda reason: results.send(("lost", reason))
    )
    threading.Thread(target=_watch, args=(control, results, recorder, orders), daemon=True).start()
    try:
        results.send(("steps", 0))  # from now on, the timeout applies
        with contextlib.closing(make_env()) as env:
            while (order := orders.get()) is not None:
                for recording in recorder.record(env, order):
                    send(results, recording)
                results.send(("done",))
        results.close()
    except (BrokenPipeError, ConnectionResetError):
        _die()
    except Exception as error:
        own = isinstance(error, WorldModelError)
        kind = "refused" if isinstance(error, DataError) else "failed"
        results.send((kind, str(error) if own else f"{type(error).__name__}: {error}"))


def _watch(control: Connection, results: Connection, recorder: Recorder, orders: SimpleQueue[Order | None]) -> None:
    """Receive orders and the request to stop, or to send the unfinished episode of an environment that hangs. End the
    process when the other one has closed the pipe."""
    try:
        while (message := control.recv()) != RESCUE:
            if message == STOP:
                recorder.stopped = True
            else:
                orders.put(message)
        recording = recorder.draft.recording(False, True, broken="the environment did not answer any more")
        if recording is not None:
            send(results, recording)
    finally:
        _die()


def _die() -> None:
    """End this process and those of its simulator, even while the other thread is in the simulator's code."""
    os.killpg(0, signal.SIGKILL)
