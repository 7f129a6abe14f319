"""DeepMind Lab with a new engine for every episode, in a process of its own.

Observed with the real module: each closed engine leaves 4 open files, up to 2 sockets and 3 MB, so that descriptors run
out after about 250 episodes; and many failures, such as a missing map, end the process.
"""

import os
import signal
import subprocess
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from worldmodel.envs.dmlab_engine import Engine, EngineSettings, missing_programs
from worldmodel.errors import EnvError
from worldmodel.util.processes import Child, start

RENEWED_AFTER = 50  # episodes


class EngineProcess:
    """As :class:`Engine`, but every :meth:`begin` starts a new engine; the end of the process is an EnvError, too."""

    def __init__(self, settings: EngineSettings):
        self._level, self._owner = settings.level, os.getpid()
        self._child: Child | None = start("worldmodel.envs.dmlab_process", "serve", stdout=subprocess.DEVNULL)
        self.running, self.episodes = False, 0
        self._view: tuple[np.ndarray, float | None] | None = None
        self.action_spec: list[dict[str, Any]] = self._ask(settings)

    @property
    def alive(self) -> bool:
        return self._child is not None and self._owner == os.getpid()

    @property
    def spent(self) -> bool:
        """Whether another process must take its place."""
        return self.episodes >= RENEWED_AFTER

    def begin(self, seed: int, frames: int) -> float:
        """Begin an episode in a new engine; see :meth:`Engine.begin`."""
        self.episodes += 1
        return self._go("begin", seed, frames)

    def step(self, action: np.ndarray, frames: int) -> float:
        """See :meth:`Engine.step`."""
        return self._go("step", action, frames)

    def view(self) -> tuple[np.ndarray, float | None]:
        """See :meth:`Engine.view`."""
        assert self._view is not None
        return self._view

    def close(self) -> None:
        """End the process, unless it belongs to the one that this one was forked from."""
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.process.kill()
            child.process.wait()
            child.results.close()
            child.control.close()

    def _go(self, *request: Any) -> float:
        reward, self.running, self._view = self._ask(request)
        return float(reward)

    def _ask(self, request: Any) -> Any:
        if self._child is None:
            raise EnvError("DeepMind Lab's engine is not running; reset starts it")
        process = self._child.process
        try:
            self._child.control.send(request)
            error, answer = self._child.results.recv()
        except (EOFError, OSError):
            code = process.wait()
            self.close()
            reason = f"DeepMind Lab ended its process with exit code {code} in level {self._level!r}"
            raise EnvError(f"{reason}{missing_programs()}; reset starts it again") from None
        except BaseException:  # interrupted between question and answer
            self.close()
            raise
        if error is not None:
            self.close()
            raise EnvError(error)
        return answer


def serve(results: Connection, control: Connection) -> None:
    """Body of the process: receives settings, then requests, until the other process closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = control.recv()
    engine: Engine | None = None
    request: Any = None
    while True:
        answer: Any = None
        error: str | None = None
        try:
            match request:
                case ("step", action, frames) if engine is not None:
                    answer = _state(engine, engine.step(action, frames))
                case ("begin", seed, frames) if engine is not None and engine.alive and not engine.episodes:
                    answer = _state(engine, engine.begin(seed, frames))
                case _:
                    if engine is not None:
                        engine.close()
                    engine = Engine(settings)
                    answer = engine.action_spec if request is None else _state(engine, engine.begin(*request[1:]))
        except EnvError as reason:
            error = str(reason)
        try:
            results.send((error, answer))
            request = control.recv()
        except (EOFError, OSError):
            return


def _state(engine: Engine, reward: float) -> tuple[float, bool, Any]:
    return reward, engine.running, engine.view() if engine.running else None
