"""Recordings through a pipe: their arrays as bytes behind a message."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from worldmodel.recording.recorder import Recording
from worldmodel.types import Episode


def send(results: Connection, recording: Recording) -> None:
    """Send one episode; :func:`receive` is the other end."""
    episode, others = recording.episode, {name: value for name, value in vars(recording).items() if name != "episode"}
    results.send(("episode", episode.frames.shape, (episode.terminated, episode.truncated), others))
    for array in (episode.frames, episode.actions, episode.rewards):
        _write(results.fileno(), array.reshape(-1).view(np.uint8).data)


def receive(message: tuple[Any, ...], results: Connection) -> Recording:
    """The episode that an ``episode`` message announces. Raises EOFError when the sender died in the middle."""
    _, shape, (terminated, truncated), others = message
    episode = Episode(
        frames=np.empty(shape, np.uint8),
        actions=np.empty(shape[0], np.int64),
        rewards=np.empty(shape[0], np.float32),
        terminated=terminated,
        truncated=truncated,
    )
    for array in (episode.frames, episode.actions, episode.rewards):
        _read(results.fileno(), array.reshape(-1).view(np.uint8).data)
    return Recording(episode, **others)


# Connection.send_bytes and recv_bytes would copy the frames three times.
def _write(pipe: int, data: memoryview) -> None:
    while data:
        data = data[os.write(pipe, data) :]


def _read(pipe: int, data: memoryview) -> None:
    while data:
        if not (count := os.readv(pipe, [data])):
            raise EOFError
        data = data[count:]
