"""The environment of a run beside its dream: in a process of its own, in step with the dream, compared with it."""

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from worldmodel.errors import EnvError
from worldmodel.evaluation.metrics import psnr
from worldmodel.media.draw import IDLE
from worldmodel.recording.recorder import FrameSource
from worldmodel.runs.data import env_maker, spec_of
from worldmodel.runs.folder import load_config
from worldmodel.serving.batching import in_background
from worldmodel.serving.dreams import Beginning
from worldmodel.types import NO_ACTION, Spec
from worldmodel.util.processes import Child, start

MakeEnv = Callable[[], FrameSource]
START_SECONDS = 120.0  # for a process and its first frames, on a busy machine
STEP_SECONDS = 30.0
MOST_KEPT = 1000  # frames that an undo goes back, at most
MOST_ATTEMPTS = 10  # to begin an episode that is longer than the seen frames
MOST_SEED = 2**31  # some simulators have seeds of 32 bits with a sign


class Truth(NamedTuple):
    """The environment at one frame of the dream."""

    frame: np.ndarray  # (C, H, W) uint8
    reward: float
    total: float  # sum of the rewards
    ended: bool  # whether the episode has ended; the frame then stays


def environment_of(run: Path, spec: Spec) -> MakeEnv:
    """A constructor of the environment of a run, with the frames and the actions of ``spec``.

    Raises :class:`EnvError` if the data were imported, or the environment is not installed or has changed.
    """
    settings = load_config(run)
    if "_target_" in settings.get("source", {}):
        raise EnvError(f"--beside: the episodes of {run.name} were imported, so that there is no environment to show")
    make_env = env_maker(settings)
    own = spec_of(make_env)
    if (own.frame_shape, own.action_names) != (spec.frame_shape, spec.action_names):
        raise EnvError(f"--beside: the environment {own.env_id} now has other frames or actions than {run.name}")
    return make_env


class Simulator:
    """An environment that follows the actions of a dream. Its methods block; a process that dies is replaced once,
    and the new one repeats the actions so far."""

    def __init__(self, make_env: MakeEnv, action_names: Sequence[str], context: int):
        self._make_env, self._names, self._context = make_env, action_names, context
        self._child: Child | None = None
        self._seed = 0
        self._first: list[int] = []  # actions that led to the seen frames
        self._truths: deque[Truth] = deque(maxlen=MOST_KEPT)  # at first that of the last seen frame
        self._actions: list[int] = []  # since then
        self._behind = False  # whether the process has to repeat the actions, after an undo or a failure
        self._closed = False
        self.report = ""  # why the process was replaced since the last step

    def begin(self, seed: int) -> Beginning:
        """Start an episode; returns its first frames, reached without a motion if there is such an action.

        Raises :class:`EnvError` when the environment fails or ends.
        """
        self._actions, self.report = [], ""
        idle = [index for index, name in enumerate(self._names) if name.lower() in IDLE]
        rng = np.random.default_rng(seed)
        for attempt in range(MOST_ATTEMPTS):
            self._seed = (seed + attempt) % MOST_SEED
            self._first = [idle[0] if idle else int(rng.integers(len(self._names))) for _ in range(self._context - 1)]
            frames, ended = self._replay(self._context)
            if not ended:
                break
        else:
            raise EnvError(f"the environment ended {MOST_ATTEMPTS} times within its first {self._context} frames")
        self._truths.clear()
        self._truths.append(Truth(frames[-1], 0.0, 0.0, False))
        return Beginning(np.stack(frames), np.array([NO_ACTION, *self._first], np.int64))

    def step(self, action: int) -> Truth:
        """The next frame, or the last one again after the end. Raises :class:`EnvError` when it fails twice."""
        last = self._truths[-1]
        self.report = ""
        if last.ended:
            truth = last._replace(reward=0.0)
        else:
            try:
                frame, reward, ended = self._step(action)
            except EnvError as error:
                self.report = f"the environment was started again: {error}"
                self._behind = True
                frame, reward, ended = self._step(action)
            truth = Truth(frame, reward, last.total + reward, ended)
        self._actions.append(action)
        self._truths.append(truth)
        return truth

    def undo(self, steps: int) -> Truth:
        """Go back; the process repeats the actions from its start before the next step."""
        del self._actions[len(self._actions) - steps :]
        for _ in range(steps):
            self._truths.pop()
        self._behind = True
        return self._truths[-1]

    def frames(self, count: int) -> np.ndarray:
        """The last frames (count, C, H, W)."""
        return np.stack([truth.frame for truth in self._truths])[-count:]

    def close(self) -> None:
        """End the process; it is not started again."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        """End the process and what it has started."""
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()
            child.results.close()
            child.control.close()

    def _step(self, action: int) -> list[Any]:
        """The next frame, its reward, and whether the episode ended. Raises :class:`EnvError`."""
        if self._behind or self._child is None:
            self._replay(1)
        return self._ask(STEP_SECONDS, "step", action)

    def _replay(self, count: int) -> tuple[list[np.ndarray], bool]:
        """Start the episode again and repeat its actions; returns its last ``count`` frames and whether it ended."""
        if self._closed:
            raise EnvError("the visitor has left")
        if self._child is None:
            self._child = start("worldmodel.serving.environment", "work", own_group=True)
            with contextlib.suppress(OSError):  # it has ended, which the next question shows
                self._child.control.send(self._make_env)
        frames, ended = self._ask(START_SECONDS, "replay", self._seed, [*self._first, *self._actions], count)
        self._behind = False
        return frames, ended

    def _ask(self, seconds: float, *command: Any) -> list[Any]:
        child = self._child
        assert child is not None
        try:
            child.control.send(command)
            if not child.results.poll(seconds):
                raise EnvError(f"the environment did not answer for {seconds:g} s")
            kind, *values = child.results.recv()
            if kind == "failed":
                raise EnvError(values[0])
        except (EOFError, OSError) as error:
            self._end()
            raise EnvError("the process of the environment has ended") from error
        except EnvError:
            self._end()
            raise
        return values


class Beside:
    """The simulator of one visitor, while a dream that began at its start goes on."""

    def __init__(self, simulator: Simulator):
        self.simulator = simulator
        self.active = False  # whether the present dream began at the start of the environment
        self.truth = Truth(np.zeros((1, 1, 1), np.uint8), 0.0, 0.0, False)
        self._decibels: list[float] = []  # of each dreamt frame
        self.report = ""  # a description of a failure, which is sent to the visitor

    async def begin(self, seed: int) -> Beginning:
        """Start an episode. Raises :class:`EnvError`."""
        self.active = False
        beginning = await in_background(self.simulator.begin, seed)
        self.truth = Truth(beginning.frames[-1], 0.0, 0.0, False)
        self._decibels, self.report, self.active = [], "", True
        return beginning

    async def step(self, action: int) -> None:
        """Take an action. When the environment fails twice, the dream goes on without it."""
        try:
            self.truth = await in_background(self.simulator.step, action)
            self.report = self.simulator.report
        except EnvError as error:
            self.active, self.report = False, f"the environment has failed: {error}"

    def compare(self, frame: np.ndarray) -> None:
        """Compare with the dreamt frame (C, H, W) of the same step."""
        if self.active:
            self._decibels.append(float(psnr(torch.from_numpy(frame), torch.from_numpy(self.truth.frame))))

    def undo(self, steps: int) -> None:
        self.truth = self.simulator.undo(steps)
        del self._decibels[len(self._decibels) - steps :]

    def figures(self) -> dict[str, Any]:
        """What a frame's header has of the environment; PSNR in dB, of this frame and the mean since the start."""
        truth, decibels = self.truth, self._decibels
        psnr, mean = (decibels[-1], sum(decibels) / len(decibels)) if decibels else (None, None)
        facts = {"truth_reward": truth.reward, "truth_total": truth.total, "truth_ended": truth.ended}
        return {**facts, "psnr": psnr, "psnr_mean": mean}
