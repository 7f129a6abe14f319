"""A process that plays an environment and sends what it saw to the one process that writes.

Messages to the writer are small tuples, ``(kind, …)``: ``steps`` (taken since the last, also the sign of life),
``episode`` (followed by the bytes of its arrays), ``lost`` (one that broke before its first step, with the reason),
``failed``, ``done``.
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
"""What a recorder is told: end this episode; or send what there is of it from beside the environment, which hangs."""
MOST_BROKEN = 3  # episodes that broke in a row after which a recorder gives up and is replaced


class FrameSource(Protocol):
    """What is recorded: a gymnasium environment whose observations are (C, *size) uint8 frames, with a Spec."""

    @property
    def data_spec(self) -> Spec: ...
    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]: ...
    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]: ...
    def close(self) -> None: ...


class ActionSource(Protocol):
    """What chooses the actions; see :class:`worldmodel.agents.base.Agent`."""

    def begin(self, action_names: tuple[str, ...], rng: np.random.Generator) -> None: ...
    def act(self, frame: np.ndarray) -> int: ...


@dataclasses.dataclass(frozen=True)
class Order:
    """What one recorder has to do."""

    make_env: Callable[[], FrameSource]  # picklable
    explorer: ActionSource  # picklable
    steps: int  # to record in all
    longest: int  # steps after which an episode is cut
    seed: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Recording:
    """One episode, and the places it visited."""

    episode: Episode
    places: frozenset[int]
    broken: str | None = None  # why the environment could not play it to its end


@dataclasses.dataclass
class Draft:
    """An episode that is being recorded. Another thread may read it while the environment is at work."""

    frames: list[np.ndarray] = dataclasses.field(default_factory=list)
    actions: list[int] = dataclasses.field(default_factory=list)  # that led to each frame
    rewards: list[float] = dataclasses.field(default_factory=list)
    places: set[int] = dataclasses.field(default_factory=set)

    @property
    def steps(self) -> int:
        return len(self.rewards) - 1

    def add(self, frame: np.ndarray, info: Mapping[str, Any], action: int = NO_ACTION, reward: float = 0.0) -> None:
        """One frame more, and the action that led to it."""
        self.frames.append(frame)
        self.actions.append(action)
        self.places.add(place_of(frame, info))
        self.rewards.append(reward)  # last: another thread takes as many frames as there are rewards

    def recording(self, terminated: bool, truncated: bool, broken: str | None = None) -> Recording | None:
        """What there is of it; None before its first step."""
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
    """Play one episode of at most ``longest`` steps, written to ``draft`` as it goes.

    ``tick`` is called after every step and says whether to go on. An episode that is cut, by it, for its length or by
    an :class:`EnvError`, is flagged as truncated; one that was cut before its first step is None. Raises what else the
    environment raises, and the :class:`EnvError` of one that did not get to a step.
    """
    draft = Draft() if draft is None else draft
    frame, info = env.reset(seed=int(rng.integers(2**31)))
    explorer.begin(env.data_spec.action_names, np.random.default_rng(int(rng.integers(2**63))))
    draft.add(frame, info)
    terminated = truncated = False
    go_on = True
    while not terminated and not truncated and go_on and draft.steps < longest:
        action = explorer.act(frame)
        try:
            frame, reward, terminated, truncated, info = env.step(action)
        except EnvError as error:  # the simulator died: what it showed until then is good
            if not draft.steps:
                raise
            return draft.recording(False, True, broken=str(error))
        draft.add(frame, info, action, reward)
        go_on = tick()
    return draft.recording(terminated, truncated)


def place_of(frame: np.ndarray, info: Mapping[str, Any]) -> int:
    """A number for where one is: the cell of ``info["pose"]``, 64 units × 64 units × 30°, or else a coarse picture."""
    if "pose" in info:
        x, y, angle = map(float, info["pose"])  # of a few numbers Python is faster than numpy
        return zlib.crc32(struct.pack("<3i", int(x // 64), int(y // 64), int(angle // 30)))
    sums = frame.sum(0, dtype=np.int32)
    for axis, size in enumerate(sums.shape):  # 4 × 4 tiles, the first ones larger where they cannot be alike
        sums = np.add.reduceat(sums, [-(-size * tile // 4) for tile in range(min(size, 4))], axis)
    return zlib.crc32((sums // (32 * frame.size // sums.size)).tobytes())


def work(order: Order, results: Connection, control: Connection) -> None:
    """Body of the process. Ends when its steps are recorded, when told to, and when the writer is gone."""
    os.setpgrp()  # Ctrl-C goes to the writer alone, which then asks for what is half recorded
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    desk = _Desk()
    threading.Thread(target=_watch, args=(control, results, desk), daemon=True).start()
    try:
        results.send(("steps", 0))  # awake: from now on silence has a meaning
        _record(order, results, desk)
        results.send(("done",))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)
    except Exception as error:
        results.send(("failed", f"{type(error).__name__}: {error}" if not isinstance(error, EnvError) else str(error)))


@dataclasses.dataclass
class _Desk:
    """What the thread that plays and the one that listens share."""

    stopped: threading.Event = dataclasses.field(default_factory=threading.Event)
    draft: Draft = dataclasses.field(default_factory=Draft)


def _watch(control: Connection, results: Connection, desk: _Desk) -> None:
    """Wait for the word to stop, or to save what there is of an episode whose environment does not come back.

    A writer that died says it by closing the pipe; then nothing here is of use.
    """
    try:
        while control.recv_bytes() != RESCUE:
            desk.stopped.set()
        recording = desk.draft.recording(False, True, broken="the environment did not answer any more")
        if recording is not None:
            send(results, recording)
    finally:
        os._exit(1)


def _record(order: Order, results: Connection, desk: _Desk) -> None:
    rng = np.random.default_rng(order.seed)
    env = order.make_env()
    left, failures = order.steps, 0
    unreported, reported_at = 0, -math.inf  # the first step is told at once: it says that the environment works

    def tick() -> bool:
        nonlocal unreported, reported_at
        unreported += 1
        now = time.monotonic()
        if now - reported_at >= REPORT_SECONDS:
            results.send(("steps", unreported))
            unreported, reported_at = 0, now
        return not desk.stopped.is_set()

    try:
        while left > 0 and not desk.stopped.is_set():
            try:
                desk.draft = Draft()
                recording = record_episode(env, order.explorer, rng, min(order.longest, left), tick, desk.draft)
                broken = recording and recording.broken
            except EnvError as error:  # the environment says that a reset helps
                recording, broken = None, str(error)
                if failures + 1 < MOST_BROKEN:
                    results.send(("lost", broken))
            desk.draft = Draft()
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


# Connection.send_bytes and recv_bytes would copy the frames thrice and allocate all of them for every part that comes.
def _write(pipe: int, data: memoryview) -> None:
    while data:
        data = data[os.write(pipe, data) :]


def _read(pipe: int, data: memoryview) -> None:
    while data:
        if not (count := os.readv(pipe, [data])):
            raise EOFError
        data = data[count:]
