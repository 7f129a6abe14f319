"""Records episodes of an environment with an agent, and sends them through a pipe."""

import dataclasses
import math
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any, Protocol, Self

import numpy as np

from worldmodel.data.validate import check_episode
from worldmodel.errors import EnvError
from worldmodel.types import NO_ACTION, POSE, Episode, Spec
from worldmodel.util.files import as_bytes

REPORT_SECONDS = 0.2
MOST_BROKEN = 3  # consecutive failed episodes after which a recorder is replaced


class FrameSource(Protocol):
    """A gymnasium environment whose observations are (C, *size) uint8 frames, with a Spec."""

    @property
    def data_spec(self) -> Spec: ...
    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]: ...
    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]: ...
    def close(self) -> None: ...


MakeEnv = Callable[[], FrameSource]


class ActionSource(Protocol):
    """Chooses the actions; see :class:`worldmodel.agents.base.Agent`. ``check`` and ``finished`` may be missing."""

    def begin(self, action_names: tuple[str, ...], rng: np.random.Generator) -> None: ...
    def act(self, frame: np.ndarray) -> int: ...


@dataclasses.dataclass(frozen=True)
class Recording:
    """One episode, the places that it visited, and the decisions of the agent."""

    episode: Episode
    places: frozenset[int] = frozenset()
    broken: str | None = None  # why the environment did not finish it
    seconds: float = 0.0  # total time in the agent's ``act``
    plans: tuple[Any, ...] = ()  # (T - 1,): the agent's plan for each action or None; () if not recorded
    number: int = -1  # of the order


@dataclasses.dataclass(frozen=True)
class Order:
    """The task of a recorder: episodes with ``steps`` steps in all or, with a ``number`` from 0, one whole episode.

    An episode that the environment breaks off is kept in the first case, and repeated with the same seed in the second.
    """

    seed: tuple[int, ...]
    longest: int  # steps after which an episode is cut
    steps: int  # left to record
    number: int = -1  # of a whole episode
    plans: bool = False  # whether the plans of the agent are recorded
    attempt: int = 0  # number of earlier recorders that failed at this order

    @classmethod
    def episode(cls, seed: int, number: int, longest: int, plans: bool = False) -> Self:
        """A whole episode, whose random numbers depend only on ``seed`` and ``number``."""
        return cls((seed, number), longest, longest, number, plans)

    @property
    def whole(self) -> bool:
        return self.number >= 0

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed if self.whole else (*self.seed, self.attempt))

    def without(self, recording: Recording) -> Self:
        """What is left to do after a recording."""
        return dataclasses.replace(self, steps=0 if self.whole else self.steps - recording.episode.steps)


@dataclasses.dataclass
class Draft:
    """An episode that is being recorded. Another thread may read it meanwhile."""

    frames: list[np.ndarray] = dataclasses.field(default_factory=list)
    actions: list[int] = dataclasses.field(default_factory=list)  # that led to each frame
    rewards: list[float] = dataclasses.field(default_factory=list)
    places: set[int] = dataclasses.field(default_factory=set)
    seconds: float = 0.0
    plans: list[Any] | None = None  # None: they are not recorded
    spec: Spec | None = None  # to check the episode against

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
        """The episode so far; None before its first step. Raises :class:`DataError` if it does not fit the Spec."""
        count = len(self.rewards)
        if count < 2:
            return None
        frames, actions = np.stack(self.frames[:count]), np.array(self.actions[:count], np.int64)
        rewards = np.array(self.rewards[:count], np.float32)
        episode = Episode(frames, actions, rewards, terminated, truncated or not terminated)
        if self.spec is not None:
            check_episode(episode, self.spec, self.spec.env_id)
        return Recording(episode, frozenset(self.places), broken, self.seconds, tuple(self.plans or ()))


def record_episode(
    env: FrameSource,
    explorer: ActionSource,
    rng: np.random.Generator,
    longest: int,
    tick: Callable[[], bool],
    draft: Draft | None = None,
) -> Recording | None:
    """Record one episode of at most ``longest`` steps into ``draft``.

    ``tick`` is called after every step and returns whether to continue. An episode that ends by it, by its length, by
    the explorer (``finished``) or by an :class:`EnvError` is flagged as truncated; one without a step is None. Raises
    other errors of the environment, and an :class:`EnvError` before the first step.
    """
    draft = Draft() if draft is None else draft
    frame, info = env.reset(seed=int(rng.integers(2**31)))
    explorer.begin(env.data_spec.action_names, np.random.default_rng(int(rng.integers(2**63))))
    draft.add(frame, info)
    terminated = truncated = False
    running = True
    while not terminated and not truncated and running and draft.steps < longest:
        started = time.perf_counter()
        action = explorer.act(frame)
        draft.seconds += time.perf_counter() - started
        if draft.plans is not None:
            draft.plans.append(getattr(explorer, "plan", None))
        try:
            frame, reward, terminated, truncated, info = env.step(action)
        except EnvError as error:  # the simulator died; the frames so far are valid
            if not draft.steps:
                raise
            return draft.recording(False, True, broken=str(error))
        draft.add(frame, info, action, reward)
        running = tick() and not getattr(explorer, "finished", False)
    return draft.recording(terminated, truncated)


def place_of(frame: np.ndarray, info: Mapping[str, Any]) -> int:
    """An id of the place: the cell of ``info[POSE]``, 64 units × 64 units × 30°, or else a hash of a coarse frame."""
    if POSE in info:
        x, y, angle = map(float, info[POSE])  # for a few numbers, Python is faster than numpy
        return zlib.crc32(struct.pack("<3i", int(x // 64), int(y // 64), int(angle // 30)))
    sums = frame.sum(0, dtype=np.int32)
    for axis, size in enumerate(sums.shape):  # 4 × 4 tiles
        sums = np.add.reduceat(sums, [-(-size * tile // 4) for tile in range(min(size, 4))], axis)
    return zlib.crc32((sums // (32 * frame.size // sums.size)).tobytes())


class Recorder:
    """Records orders with an agent; meanwhile another thread may set :attr:`stopped` and read :attr:`draft`.

    ``on_steps`` receives the number of steps since its last call, every ``interval`` seconds, ``on_lost`` the reason
    for which an episode failed before its first step.
    """

    def __init__(
        self,
        agent: ActionSource,
        on_steps: Callable[[int], None],
        interval: float = REPORT_SECONDS,
        on_lost: Callable[[str], None] = lambda reason: None,
    ):
        self._agent, self._on_steps, self._interval, self._on_lost = agent, on_steps, interval, on_lost
        self._steps, self._reported_at = 0, -math.inf  # the first step is reported at once
        self.draft = Draft()
        self.stopped = False

    def record(self, env: FrameSource, order: Order) -> Iterator[Recording]:
        """The episodes of an order. Raises :class:`EnvError` after several consecutive failures."""
        rng, failures = order.rng(), 0
        while order.steps > 0 and not self.stopped:
            self.draft = Draft(plans=[] if order.plans else None, spec=env.data_spec)
            longest = min(order.longest, order.steps)
            try:
                recording = record_episode(env, self._agent, rng, longest, self._tick, self.draft)
                broken = recording and recording.broken
            except EnvError as error:  # the environment may recover after a reset
                recording, broken = None, str(error)
                if failures + 1 < MOST_BROKEN:
                    self._on_lost(broken)
            self.draft, self._steps = Draft(), 0
            failures = failures + 1 if broken else 0
            interrupted = self.stopped and recording and not recording.episode.terminated
            if order.whole and (broken or interrupted):
                recording, rng = None, order.rng()
            if recording is not None:
                order = order.without(recording)
                yield dataclasses.replace(recording, number=order.number)
            if failures >= MOST_BROKEN and order.steps > 0:
                raise EnvError(broken)

    def _tick(self) -> bool:
        """Count a step and report now and then; returns whether to continue."""
        self._steps += 1
        now = time.monotonic()
        if now - self._reported_at >= self._interval:
            self._on_steps(self._steps)
            self._steps, self._reported_at = 0, now
        return not self.stopped


def send(results: Connection, recording: Recording) -> None:
    """Send one episode; :func:`receive` is the other end."""
    episode, others = recording.episode, {name: value for name, value in vars(recording).items() if name != "episode"}
    results.send(("episode", episode.frames.shape, (episode.terminated, episode.truncated), others))
    for array in (episode.frames, episode.actions, episode.rewards):
        _write(results.fileno(), as_bytes(array))


def receive(message: tuple[Any, ...], results: Connection) -> Recording:
    """The episode that an ``episode`` message announces. Raises EOFError when the sender died in the middle."""
    _, shape, (terminated, truncated), others = message
    arrays = np.empty(shape, np.uint8), np.empty(shape[0], np.int64), np.empty(shape[0], np.float32)
    for array in arrays:
        _read(results.fileno(), as_bytes(array))
    return Recording(Episode(*arrays, terminated, truncated), **others)


# Connection.send_bytes and recv_bytes would copy the frames three times.
def _write(pipe: int, data: memoryview) -> None:
    while data:
        data = data[os.write(pipe, data) :]


def _read(pipe: int, data: memoryview) -> None:
    while data:
        if not (count := os.readv(pipe, [data])):
            raise EOFError
        data = data[count:]
