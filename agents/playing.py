"""Episodes that an agent plays in the real environment, each under a seed of its own, in one or several processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
from worldmodel.agents.base import Plan

from worldmodel.errors import EnvError, WorldModelError
from worldmodel.recording.recorder import (
    MOST_BROKEN,
    ActionSource,
    FrameSource,
    Recording,
    receive,
    record_episode,
    send,
)
from worldmodel.types import Episode

SECONDS = 1.0
"""Between two words on how many steps were played: an episode of a planner may take many minutes."""

Watch = Callable[[int], bool]
"""Is told of so many steps more, and says whether to go on."""


@dataclasses.dataclass(frozen=True)
class Match:
    """What is played."""

    make_env: Callable[[], FrameSource]  # picklable
    agent: ActionSource  # picklable
    seed: int
    longest: int  # steps after which an episode is cut
    planned: tuple[int, ...] = ()  # the episodes of which it is told what the agent imagined


@dataclasses.dataclass(frozen=True)
class Played:
    """One episode, and what the agent thought."""

    number: int  # i; its seeds follow from (seed, i) alone, whoever plays
    episode: Episode
    seconds: float  # in the agent's ``act``, all steps together
    plans: tuple[Plan | None, ...] = ()  # (T - 1,): what was imagined for each action, undrawn; () where it is not told


class Clocked:
    """An agent whose decisions are timed, and whose plans are noted where they are wanted."""

    def __init__(self, agent: ActionSource):
        self.agent, self.seconds = agent, 0.0
        self.noting, self.plans = False, list[Plan | None]()

    def begin(self, action_names: tuple[str, ...], rng: np.random.Generator) -> None:
        self.seconds = 0.0
        self.plans.clear()
        self.agent.begin(action_names, rng)

    def act(self, frame: np.ndarray) -> int:
        started = time.perf_counter()
        action = self.agent.act(frame)
        self.seconds += time.perf_counter() - started
        if self.noting:
            plan = getattr(self.agent, "plan", None)
            self.plans.append(plan and dataclasses.replace(plan, draw=undrawn))
        return action


def undrawn(grids: np.ndarray) -> np.ndarray:
    """Stands for a plan's ``draw``, which holds a world model, where plans go from process to process."""
    raise AssertionError("whoever shows a plan gives it a draw")


def play(match: Match, numbers: Sequence[int], workers: int = 1, watch: Watch = lambda steps: True) -> Iterator[Played]:
    """The episodes of these numbers, as they are finished. ``watch`` is asked about once a second whether to go on.

    With one worker they are played here. Raises :class:`EnvError` when the environment keeps failing or a process
    dies, and what the agent raises on purpose; of another process it is told as a :class:`WorldModelError`.
    """
    if min(workers, len(numbers)) > 1:
        yield from _play_in_processes(match, numbers, min(workers, len(numbers)), watch)
        return
    pace, env, agent = Pace(watch), match.make_env(), Clocked(match.agent)
    try:
        for number in numbers:
            if not watch(0):
                return
            agent.noting = number in match.planned
            recording = _one(match, env, agent, number, pace.step)
            if not pace.go_on and not recording.episode.terminated:  # it was cut
                return
            yield Played(number, recording.episode, agent.seconds, tuple(agent.plans))
    finally:
        env.close()


class Pace:
    """Counts steps, and tells of them every ``SECONDS``."""

    def __init__(self, tell: Watch):
        self._tell, self._steps, self._told_at = tell, 0, time.monotonic()
        self.go_on = True

    def step(self) -> bool:
        """One more was played. Says whether to go on."""
        self._steps += 1
        now = time.monotonic()
        if now - self._told_at >= SECONDS:
            self.go_on = self._tell(self._steps)
            self._steps, self._told_at = 0, now
        return self.go_on


def _one(match: Match, env: FrameSource, agent: Clocked, number: int, tick: Callable[[], bool]) -> Recording:
    """Episode ``number``. An environment that says that a reset helps gets some, under the same seed."""
    reason = ""
    for _ in range(MOST_BROKEN):
        try:
            found = record_episode(env, agent, np.random.default_rng((match.seed, number)), match.longest, tick)
        except EnvError as error:
            reason = str(error)
            continue
        assert found is not None  # told to stop, it ends behind a step
        if found.broken is None:
            return found
        reason = found.broken
    raise EnvError(reason)


def _play_in_processes(match: Match, numbers: Sequence[int], workers: int, watch: Watch) -> Iterator[Played]:
    spawn = multiprocessing.get_context("spawn")  # engines and threads do not survive a fork
    pipes: dict[Connection, Any] = {}
    left = iter(numbers)
    try:
        for _ in range(workers):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_work, args=(match, theirs, workers), daemon=True)
            process.start()
            theirs.close()  # so that its death ends the pipe
            pipes[ours] = process
            ours.send(next(left))
        while pipes:
            ready = wait(list(pipes), 0.5)
            if not ready and not watch(0):
                return
            for pipe in ready:
                assert isinstance(pipe, Connection)
                heard = _heard(pipe, pipes[pipe])
                if isinstance(heard, int):
                    if not watch(heard):
                        return
                    continue
                yield heard
                if (number := next(left, None)) is None:
                    pipe.close()
                    pipes.pop(pipe).join()
                else:
                    pipe.send(number)
    finally:
        for pipe, process in pipes.items():
            process.kill()
            process.join()
            pipe.close()


def _heard(pipe: Connection, process: Any) -> Played | int:
    """The episode that a process sends, or how many steps more it played. Raises what it failed by."""
    try:
        message = pipe.recv()
        if message[0] == "failed":
            raise WorldModelError(message[1])
        if message[0] == "steps":
            return int(message[1])
        number, seconds, plans = message[1:]
        return Played(number, receive(pipe.recv(), pipe).episode, seconds, plans)
    except (EOFError, ConnectionResetError) as error:
        process.join(1)
        raise EnvError(f"a process that plays ended with exit code {process.exitcode}; fewer collect.workers need "
                       "less memory") from error  # fmt: skip


def _work(match: Match, pipe: Connection, workers: int) -> None:
    """Body of the process: plays the episodes whose numbers it is sent, until the pipe ends."""
    os.setpgrp()  # Ctrl-C goes to the one that asked
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "torch" in sys.modules:  # as agents with a network need it: all processes together use the cores once
        sys.modules["torch"].set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    env = None

    def tell(steps: int) -> bool:
        pipe.send(("steps", steps))
        return True

    try:
        pace, env, agent = Pace(tell), match.make_env(), Clocked(match.agent)
        while True:
            number = pipe.recv()
            agent.noting = number in match.planned
            recording = _one(match, env, agent, number, pace.step)
            pipe.send(("played", number, agent.seconds, tuple(agent.plans)))
            send(pipe, recording)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except WorldModelError as error:
        pipe.send(("failed", str(error)))
    except Exception as error:  # of the environment or the agent: told by the process that asked
        pipe.send(("failed", f"an episode failed: {type(error).__name__}: {error}"))
    finally:
        if env is not None:
            env.close()
