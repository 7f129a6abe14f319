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

from worldmodel.data.recorder import MOST_BROKEN, ActionSource, FrameSource, Recording, receive, record_episode, send
from worldmodel.errors import EnvError, WorldModelError
from worldmodel.types import Episode


@dataclasses.dataclass(frozen=True)
class Match:
    """What is played."""

    make_env: Callable[[], FrameSource]  # picklable
    agent: ActionSource  # picklable
    seed: int
    longest: int  # steps after which an episode is cut


@dataclasses.dataclass(frozen=True)
class Played:
    """One episode, and how long the agent thought."""

    number: int  # i; its seeds follow from (seed, i) alone, whoever plays
    episode: Episode
    seconds: float  # in the agent's ``act``, all steps together


class Clocked:
    """An agent whose decisions are timed."""

    def __init__(self, agent: ActionSource):
        self.agent, self.seconds = agent, 0.0

    def begin(self, action_names: tuple[str, ...], rng: np.random.Generator) -> None:
        self.seconds = 0.0
        self.agent.begin(action_names, rng)

    def act(self, frame: np.ndarray) -> int:
        started = time.perf_counter()
        action = self.agent.act(frame)
        self.seconds += time.perf_counter() - started
        return action


def play(match: Match, episodes: int, workers: int = 1) -> Iterator[Played | None]:
    """The episodes 0 to ``episodes`` − 1 as they are finished, and a None now and then, when nothing is.

    With one worker they are played here. Raises :class:`EnvError` when the environment keeps failing or a process
    dies, and what the agent raises on purpose; of another process it is told as a :class:`WorldModelError`.
    """
    if min(workers, episodes) > 1:
        yield from _play_in_processes(match, episodes, min(workers, episodes))
        return
    env, agent = match.make_env(), Clocked(match.agent)
    try:
        for number in range(episodes):
            yield None
            recording = _one(match, env, agent, number)
            yield Played(number, recording.episode, agent.seconds)
    finally:
        env.close()


def _one(match: Match, env: FrameSource, agent: Clocked, number: int) -> Recording:
    """Episode ``number``. An environment that says that a reset helps gets some, under the same seed."""
    reason = ""
    for _ in range(MOST_BROKEN):
        try:
            found = record_episode(env, agent, np.random.default_rng((match.seed, number)), match.longest, lambda: True)
        except EnvError as error:
            reason = str(error)
            continue
        assert found is not None  # it was not told to stop
        if found.broken is None:
            return found
        reason = found.broken
    raise EnvError(reason)


def _play_in_processes(match: Match, episodes: int, workers: int) -> Iterator[Played | None]:
    spawn = multiprocessing.get_context("spawn")  # engines and threads do not survive a fork
    pipes: dict[Connection, Any] = {}
    left = iter(range(episodes))
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
            if not ready:
                yield None
            for pipe in ready:
                assert isinstance(pipe, Connection)
                yield _heard(pipe, pipes[pipe])
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


def _heard(pipe: Connection, process: Any) -> Played:
    """The episode that a process sends. Raises what it failed by."""
    try:
        message = pipe.recv()
        if message[0] == "failed":
            raise WorldModelError(message[1])
        number, seconds = message[1:]
        return Played(number, receive(pipe.recv(), pipe).episode, seconds)
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
    try:
        env, agent = match.make_env(), Clocked(match.agent)
        while True:
            number = pipe.recv()
            recording = _one(match, env, agent, number)
            pipe.send(("played", number, agent.seconds))
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


def mean_return(played: Sequence[Played]) -> float:
    """Mean of the returns so far, 0 where there is none."""
    return float(np.mean([one.episode.rewards.sum() for one in played])) if played else 0.0
