"""Plays episodes of an agent in the real environment, each with its own seed, in one or several processes."""

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
"""Interval of the progress reports; an episode of a planner can take many minutes."""

OnSteps = Callable[[int], bool]
"""A callback that receives the number of steps since the last call and returns whether to continue."""


@dataclasses.dataclass(frozen=True)
class PlaySettings:
    """The environment, the agent and the seed of the episodes."""

    make_env: Callable[[], FrameSource]  # picklable
    agent: ActionSource  # picklable
    seed: int
    longest: int  # steps after which an episode is truncated
    record_plans_of: tuple[int, ...] = ()  # numbers of the episodes whose plans are recorded


@dataclasses.dataclass(frozen=True)
class PlayedEpisode:
    """One episode and the agent's plans."""

    number: int  # i; the seeds of the episode depend only on (seed, i)
    episode: Episode
    seconds: float  # total time in the agent's ``act``
    plans: tuple[Plan | None, ...] = ()  # (T - 1,): the plan of each action; () if not recorded


class RecordingAgent:
    """An agent whose decisions are timed and whose plans can be recorded."""

    def __init__(self, agent: ActionSource):
        self.agent, self.seconds = agent, 0.0
        self.record_plans, self.plans = False, list[Plan | None]()

    def begin(self, action_names: tuple[str, ...], rng: np.random.Generator) -> None:
        self.seconds = 0.0
        self.plans.clear()
        self.agent.begin(action_names, rng)

    def act(self, frame: np.ndarray) -> int:
        started = time.perf_counter()
        action = self.agent.act(frame)
        self.seconds += time.perf_counter() - started
        if self.record_plans:
            plan = getattr(self.agent, "plan", None)
            self.plans.append(plan and dataclasses.replace(plan, decode=no_decoder))
        return action


def no_decoder(grids: np.ndarray) -> np.ndarray:
    """Replaces a plan's ``decode``, which holds a world model, when plans are sent to another process."""
    raise AssertionError("replace the plan's decode before its frames are decoded")


def play(
    settings: PlaySettings, numbers: Sequence[int], workers: int = 1, on_steps: OnSteps = lambda steps: True
) -> Iterator[PlayedEpisode]:
    """The episodes with these numbers, in the order in which they finish; ``on_steps`` is called about once a second.

    One worker plays in this process. Raises :class:`EnvError` if the environment fails repeatedly or a process dies,
    and the errors of the agent; those of another process are raised as :class:`WorldModelError`.
    """
    if min(workers, len(numbers)) > 1:
        yield from _play_in_processes(settings, numbers, min(workers, len(numbers)), on_steps)
        return
    reporter, env, agent = StepReporter(on_steps), settings.make_env(), RecordingAgent(settings.agent)
    try:
        for number in numbers:
            if not on_steps(0):
                return
            agent.record_plans = number in settings.record_plans_of
            recording = _play_one(settings, env, agent, number, reporter.step)
            if not reporter.keep_going and not recording.episode.terminated:  # it was interrupted
                return
            yield PlayedEpisode(number, recording.episode, agent.seconds, tuple(agent.plans))
    finally:
        env.close()


class StepReporter:
    """Counts steps and reports them every ``SECONDS``."""

    def __init__(self, report: OnSteps):
        self._report, self._steps, self._reported_at = report, 0, time.monotonic()
        self.keep_going = True

    def step(self) -> bool:
        """Count one step; returns whether to continue."""
        self._steps += 1
        now = time.monotonic()
        if now - self._reported_at >= SECONDS:
            self.keep_going = self._report(self._steps)
            self._steps, self._reported_at = 0, now
        return self.keep_going


def _play_one(
    settings: PlaySettings, env: FrameSource, agent: RecordingAgent, number: int, tick: Callable[[], bool]
) -> Recording:
    """Play episode ``number``. After an :class:`EnvError` it is repeated a few times with the same seed."""
    reason = ""
    for _ in range(MOST_BROKEN):
        try:
            recording = record_episode(
                env, agent, np.random.default_rng((settings.seed, number)), settings.longest, tick
            )
        except EnvError as error:
            reason = str(error)
            continue
        assert recording is not None  # an interrupted episode ends after a step
        if recording.broken is None:
            return recording
        reason = recording.broken
    raise EnvError(reason)


def _play_in_processes(
    settings: PlaySettings, numbers: Sequence[int], workers: int, on_steps: OnSteps
) -> Iterator[PlayedEpisode]:
    spawn = multiprocessing.get_context("spawn")  # engines and threads do not survive a fork
    pipes: dict[Connection, Any] = {}
    left = iter(numbers)
    try:
        for _ in range(workers):
            parent_end, child_end = spawn.Pipe()
            process = spawn.Process(target=_run_worker, args=(settings, child_end, workers), daemon=True)
            process.start()
            child_end.close()  # so that the pipe closes if the process dies
            pipes[parent_end] = process
            parent_end.send(next(left))
        while pipes:
            ready = wait(list(pipes), 0.5)
            if not ready and not on_steps(0):
                return
            for pipe in ready:
                assert isinstance(pipe, Connection)
                received = _receive(pipe, pipes[pipe])
                if isinstance(received, int):
                    if not on_steps(received):
                        return
                    continue
                yield received
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


def _receive(pipe: Connection, process: Any) -> PlayedEpisode | int:
    """The episode or the number of steps that a process sends. Raises the error that it reports."""
    try:
        message = pipe.recv()
        if message[0] == "failed":
            raise WorldModelError(message[1])
        if message[0] == "steps":
            return int(message[1])
        number, seconds, plans = message[1:]
        return PlayedEpisode(number, receive(pipe.recv(), pipe).episode, seconds, plans)
    except (EOFError, ConnectionResetError) as error:
        process.join(1)
        raise EnvError(f"a worker process ended with exit code {process.exitcode}; fewer collect.workers need "
                       "less memory") from error  # fmt: skip


def _run_worker(settings: PlaySettings, pipe: Connection, workers: int) -> None:
    """Body of a worker process: plays the episodes whose numbers it receives, until the pipe closes."""
    os.setpgrp()  # Ctrl-C goes to the parent process only
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "torch" in sys.modules:  # loaded by agents with a network; the processes share the cores
        sys.modules["torch"].set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    env = None

    def report(steps: int) -> bool:
        pipe.send(("steps", steps))
        return True

    try:
        reporter, env, agent = StepReporter(report), settings.make_env(), RecordingAgent(settings.agent)
        while True:
            number = pipe.recv()
            agent.record_plans = number in settings.record_plans_of
            recording = _play_one(settings, env, agent, number, reporter.step)
            pipe.send(("played", number, agent.seconds, tuple(agent.plans)))
            send(pipe, recording)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except WorldModelError as error:
        pipe.send(("failed", str(error)))
    except Exception as error:  # of the environment or the agent; the parent process reports it
        pipe.send(("failed", f"an episode failed: {type(error).__name__}: {error}"))
    finally:
        if env is not None:
            env.close()
