"""A process that runs an environment and sends episodes to the writer process.

Messages to the writer are tuples ``(kind, …)``: ``steps`` (number since the last message), ``episode`` (followed by the
bytes of its arrays), ``lost`` (an episode that failed before its first step, with the reason), ``failed``, ``done``.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from worldmodel.errors import EnvError
from worldmodel.types import NO_ACTION, Episode, Spec

REPORT_SECONDS = 0.2
STOP, RESCUE = b"stop", b"rescue"
"""Messages to a recorder: end the episode; or, while the environment hangs, send the unfinished episode."""
MOST_BROKEN = 3  # consecutive failed episodes after which a recorder is replaced


class FrameSource(Protocol):
    """A gymnasium environment whose observations are (C, *size) uint8 frames, with a Spec."""

    @property
    def data_spec(self) -> Spec: ...
    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]: ...
    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]: ...
    def close(self) -> None: ...


class ActionSource(Protocol):
    """Chooses the actions; see :class:`worldmodel.agents.base.Agent`."""

    def begin(self, action_names: tuple[str, ...], rng: np.random.Generator) -> None: ...
    def act(self, frame: np.ndarray) -> int: ...


@dataclasses.dataclass(frozen=True)
class Order:
    """The task of one recorder."""

    make_env: Callable[[], FrameSource]  # picklable
    explorer: ActionSource  # picklable
    steps: int  # to record in all
    longest: int  # steps after which an episode is cut
    seed: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Recording:
    """One episode and the places that it visited."""

    episode: Episode
    places: frozenset[int]
    broken: str | None = None  # why the environment did not finish it


@dataclasses.dataclass
class Draft:
    """An episode that is being recorded. Another thread may read it meanwhile."""

    frames: list[np.ndarray] = dataclasses.field(default_factory=list)
    actions: list[int] = dataclasses.field(default_factory=list)  # that led to each frame
    rewards: list[float] = dataclasses.field(default_factory=list)
    places: set[int] = dataclasses.field(default_factory=set)

    @property
    def steps(self) -> int:
        return len(self.rewards) - 1

    def add(self, frame: np.ndarray, info: Mapping[str, Any], action: int = NO_ACTION, reward: float = 0.0) -> None:
        """Append a frame and the action that led to it."""
        self.frames.append(frame)
        self.actions.append(action)
        self.places.add(place_of(frame, info))
        self.rewards.append(reward)  # last: another thread takes as many frames as there are rewards

    def recording(self, terminated: bool, truncated: bool, broken: str | None = None) -> Recording | None:
        """The episode so far; None before its first step."""
        count = len(self.rewards)
        if count < 2:
            return None
        episode = Episode(
            frames=np.stack(self.frames[:count]),
            actions=np.array(self.actions[:count], np.int64),
            rewards=np.array(self.rewards[:count], np.float32),
            terminated=terminated,
            truncated=truncated or not terminated,
        )
        return Recording(episode, frozenset(self.places), broken)


def record_episode(
    env: FrameSource,
    explorer: ActionSource,
    rng: np.random.Generator,
    longest: int,
    tick: Callable[[], bool],
    draft: Draft | None = None,
) -> Recording | None:
    """Record one episode of at most ``longest`` steps into ``draft``.

    ``tick`` is called after every step and returns whether to continue. An episode that ends by it, by its length or by
    an :class:`EnvError` is flagged as truncated; one without a step is None. Raises other errors of the environment,
    and an :class:`EnvError` before the first step.
    """
    draft = Draft() if draft is None else draft
    frame, info = env.reset(seed=int(rng.integers(2**31)))
    explorer.begin(env.data_spec.action_names, np.random.default_rng(int(rng.integers(2**63))))
    draft.add(frame, info)
    terminated = truncated = False
    running = True
    while not terminated and not truncated and running and draft.steps < longest:
        action = explorer.act(frame)
        try:
            frame, reward, terminated, truncated, info = env.step(action)
        except EnvError as error:  # the simulator died; the frames so far are valid
            if not draft.steps:
                raise
            return draft.recording(False, True, broken=str(error))
        draft.add(frame, info, action, reward)
        running = tick()
    return draft.recording(terminated, truncated)


def place_of(frame: np.ndarray, info: Mapping[str, Any]) -> int:
    """An id of the place: the cell of ``info["pose"]``, 64 units × 64 units × 30°, or else a hash of a coarse frame."""
    if "pose" in info:
        x, y, angle = map(float, info["pose"])  # for a few numbers, Python is faster than numpy
        return zlib.crc32(struct.pack("<3i", int(x // 64), int(y // 64), int(angle // 30)))
    sums = frame.sum(0, dtype=np.int32)
    for axis, size in enumerate(sums.shape):  # 4 × 4 tiles
        sums = np.add.reduceat(sums, [-(-size * tile // 4) for tile in range(min(size, 4))], axis)
    return zlib.crc32((sums // (32 * frame.size // sums.size)).tobytes())


def work(order: Order, results: Connection, control: Connection) -> None:
    """Body of the process. It ends when its steps are recorded, on request, and when the writer has ended."""
    os.setpgrp()  # Ctrl-C reaches only the writer, which then requests unfinished episodes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shared = _Shared()
    threading.Thread(target=_watch, args=(control, results, shared), daemon=True).start()
    try:
        results.send(("steps", 0))  # from now on, the timeout applies
        _record(order, results, shared)
        results.send(("done",))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)
    except Exception as error:
        results.send(("failed", f"{type(error).__name__}: {error}" if not isinstance(error, EnvError) else str(error)))


@dataclasses.dataclass
class _Shared:
    """State that the recording thread shares with the thread that waits for messages."""

    stopped: threading.Event = dataclasses.field(default_factory=threading.Event)
    draft: Draft = dataclasses.field(default_factory=Draft)


def _watch(control: Connection, results: Connection, shared: _Shared) -> None:
    """Wait for the message to stop, or to send the unfinished episode of an environment that hangs. End the process
    when the writer has closed the pipe.
    """
    try:
        while control.recv_bytes() != RESCUE:
            shared.stopped.set()
        recording = shared.draft.recording(False, True, broken="the environment did not answer any more")
        if recording is not None:
            send(results, recording)
    finally:
        os._exit(1)


def _record(order: Order, results: Connection, shared: _Shared) -> None:
    rng = np.random.default_rng(order.seed)
    env = order.make_env()
    left, failures = order.steps, 0
    unreported, reported_at = 0, -math.inf  # the first step is reported at once

    def tick() -> bool:
        nonlocal unreported, reported_at
        unreported += 1
        now = time.monotonic()
        if now - reported_at >= REPORT_SECONDS:
            results.send(("steps", unreported))
            unreported, reported_at = 0, now
        return not shared.stopped.is_set()

    try:
        while left > 0 and not shared.stopped.is_set():
            try:
                shared.draft = Draft()
                recording = record_episode(env, order.explorer, rng, min(order.longest, left), tick, shared.draft)
                broken = recording and recording.broken
            except EnvError as error:  # the environment may recover after a reset
                recording, broken = None, str(error)
                if failures + 1 < MOST_BROKEN:
                    results.send(("lost", broken))
            shared.draft = Draft()
            if recording is not None:
                left -= recording.episode.steps
                send(results, recording)
            unreported = 0
            failures = failures + 1 if broken else 0
            if failures >= MOST_BROKEN and left > 0:
                raise EnvError(broken)
    finally:
        env.close()


def send(results: Connection, recording: Recording) -> None:
    """Send one episode; :func:`receive` is the other end."""
    episode = recording.episode
    flags = (episode.terminated, episode.truncated)
    results.send(("episode", episode.frames.shape, flags, recording.places, recording.broken))
    for array in (episode.frames, episode.actions, episode.rewards):
        _write(results.fileno(), array.reshape(-1).view(np.uint8).data)


def receive(message: tuple[Any, ...], results: Connection) -> Recording:
    """The episode that an ``episode`` message announces. Raises EOFError when the sender died in the middle."""
    _, shape, (terminated, truncated), places, broken = message
    episode = Episode(
        frames=np.empty(shape, np.uint8),
        actions=np.empty(shape[0], np.int64),
        rewards=np.empty(shape[0], np.float32),
        terminated=terminated,
        truncated=truncated,
    )
    for array in (episode.frames, episode.actions, episode.rewards):
        _read(results.fileno(), array.reshape(-1).view(np.uint8).data)
    return Recording(episode, places, broken)


# Connection.send_bytes and recv_bytes would copy the frames three times.
def _write(pipe: int, data: memoryview) -> None:
    while data:
        data = data[os.write(pipe, data) :]


def _read(pipe: int, data: memoryview) -> None:
    while data:
        if not (count := os.readv(pipe, [data])):
            raise EOFError
        data = data[count:]
