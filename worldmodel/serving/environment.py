"""Body of the process of the environment beside a dream. It does not import torch, which takes two seconds."""

import contextlib
import signal
from multiprocessing.connection import Connection
from typing import Any

from worldmodel.errors import WorldModelError
from worldmodel.recording.recorder import FrameSource


def work(results: Connection, control: Connection) -> None:
    """Body of the process: receives a constructor, then commands, until the other process closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            with contextlib.closing(control.recv()()) as env:
                while True:
                    results.send(("frames", *_act(env, *control.recv())))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # an environment may raise anything
            own = isinstance(error, WorldModelError)
            results.send(("failed", str(error) if own else f"{type(error).__name__}: {error}"))


def _act(env: FrameSource, command: str, *arguments: Any) -> tuple[Any, ...]:
    if command == "step":
        frame, reward, terminated, truncated, _ = env.step(*arguments)
        return frame, float(reward), bool(terminated or truncated)
    seed, actions, count = arguments
    frames, ended = [env.reset(seed=seed)[0].copy()], False
    for action in actions:
        if ended:
            break
        frame, _, terminated, truncated, _ = env.step(action)
        ended = bool(terminated or truncated)
        frames = [*frames, frame.copy()][-count:]
    return frames, ended
