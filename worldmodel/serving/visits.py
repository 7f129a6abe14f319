"""A visitor's dream: its moments so far, and what the visitor is sent of them."""

import asyncio
import dataclasses
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel import media
from worldmodel.dreaming.videos import Place
from worldmodel.errors import ConfigError
from worldmodel.recording.recorder import ActionSource
from worldmodel.serving import messages
from worldmodel.serving.batching import Batcher, in_background
from worldmodel.serving.dreams import Beginning, Moment, Order, rgba
from worldmodel.serving.messages import ProtocolError, Request, pack
from worldmodel.serving.simulator import Beside
from worldmodel.types import Spec

KEPT_MOMENTS = 1000  # frames that a dream may go back, or that are saved as a file, at most
KEPT_BYTES = 64 * 2**20  # the same in bytes, for large frames
STARTS = 12  # places to choose from at a time


MakeAgent = Callable[[], ActionSource]


class Driver:
    """An agent that sees dreamt frames, one after the other. It begins anew wherever others have acted in between."""

    def __init__(self, make_agent: MakeAgent, action_names: Sequence[str]):
        self._make_agent, self._names = make_agent, tuple(action_names)
        self._agent: ActionSource | None = None
        self._expected: Moment | None = None  # the moment that its last action led to

    def act(self, moment: Moment) -> int:
        """The action to take at a moment. Raises the errors of the agent."""
        if self._agent is None:
            self._agent = self._make_agent()
        if moment is not self._expected:
            self._agent.begin(self._names, np.random.default_rng(moment.noise.numpy()))
        return int(self._agent.act(moment.frame.copy()))  # agents expect an array that may be written to

    def follow(self, moment: Moment) -> None:
        """Record where the action of the agent led, for its next call."""
        self._expected = moment


@dataclasses.dataclass(eq=False)
class Visit:
    """One visitor. ``answer`` is called for one request at a time."""

    spec: Spec
    batcher: Batcher
    beside: Beside | None = None  # the environment, if the server shows it
    driver: Driver | None = None  # the agent, if the server has one
    beginning: Beginning | None = None
    moments: deque[Moment] = dataclasses.field(default_factory=deque)  # the last is the present one

    async def answer(self, request: Request) -> bytes:
        """The reply to a request. Raises :class:`ProtocolError` for one that cannot be answered,
        :class:`DataError` for a damaged episode, :class:`EnvError` for an environment that fails."""
        match request:
            case messages.Begin():
                return await self._begin(request)
            case messages.Environment():
                return await self._begin_beside(request.seed)
            case messages.Step():
                return await self._step(request.action, request.temperature)
            case messages.Drive():
                return await self._drive(request.temperature)
            case messages.Undo():
                return self._undo(request.steps)
            case messages.Starts():
                return await self._starts(request.seed)
            case messages.Save():
                return await self._save(request)

    def close(self) -> None:
        """End what the visitor alone has used."""
        if self.beside is not None:
            self.beside.simulator.close()

    async def _begin(self, request: messages.Begin) -> bytes:
        dreamer, place = self.batcher.dreamer, Place(request.episode, request.frame)
        try:
            beginning = await self.batcher.call(dreamer.read, place)
        except ConfigError as error:
            raise ProtocolError(str(error)) from error
        if self.beside is not None:
            self.beside.active = False
        return await self._begin_at(beginning, request.seed)

    async def _begin_beside(self, seed: int) -> bytes:
        if self.beside is None:
            raise ProtocolError("this server shows no environment; it is started with --beside")
        return await self._begin_at(await self.beside.begin(seed), seed)

    async def _begin_at(self, beginning: Beginning, seed: int) -> bytes:
        first = await self.batcher.call(self.batcher.dreamer.begin, beginning, seed)
        kept = max(2, min(KEPT_MOMENTS, KEPT_BYTES // first.size))
        self.beginning, self.moments = beginning, deque([first], maxlen=kept)
        return self.frame_message(0.0)

    async def _drive(self, temperature: float) -> bytes:
        if self.driver is None:
            raise ProtocolError("this server has no agent")
        if not self.moments:
            raise ProtocolError("drive before begin")
        action = await in_background(self.driver.act, self.moments[-1])
        reply = await self._step(action, temperature)
        self.driver.follow(self.moments[-1])
        return reply

    async def _step(self, action: int, temperature: float) -> bytes:
        if not self.moments:
            raise ProtocolError("step before begin")
        if action >= len(self.spec.action_names):
            raise ProtocolError(f"unknown action {action}; choose 0 to {len(self.spec.action_names) - 1}")
        started = time.perf_counter()
        order = Order(self.moments[-1], action, temperature)
        if self.beside is None or not self.beside.active:
            self.moments.append(await self.batcher.step(order))
        else:
            moment, _ = await asyncio.gather(self.batcher.step(order), self.beside.step(action))
            self.moments.append(moment)
            self.beside.compare(moment.frame)
        return self.frame_message(time.perf_counter() - started)

    def _undo(self, steps: int) -> bytes:
        if len(self.moments) < 2:
            raise ProtocolError("undo without a frame to go back to")
        steps = min(steps, len(self.moments) - 1)
        for _ in range(steps):
            self.moments.pop()
        if self.beside is not None and self.beside.active:
            self.beside.undo(steps)
        return self.frame_message(0.0)

    async def _starts(self, seed: int) -> bytes:
        found = await self.batcher.call(self.batcher.dreamer.starts, STARTS, seed)
        height, width = self.spec.frame_shape[1:]
        places = [[place.episode, place.first] for place, _ in found]
        pixels = b"".join(rgba(frame) for _, frame in found)
        return pack({"type": "starts", "height": height, "width": width, "places": places}, pixels=pixels)

    async def _save(self, request: messages.Save) -> bytes:
        strips = self._strips(request.first)
        if strips is None:
            raise ProtocolError("save before the first dreamt frame")
        data = await in_background(write_file, strips, request.suffix, self.spec)
        return pack({"type": "file", "suffix": request.suffix}, file=data)

    def _strips(self, first: int) -> list[media.Strip] | None:
        """The dream from its frame ``first`` on; with its seen frames, if these are before it."""
        dreamt = [moment for moment in self.moments if moment.step >= max(first, 1)]
        if not dreamt or self.beginning is None:
            return None
        shown = self.beginning.earlier
        seen, led_by = self.beginning.frames[shown:], list(self.beginning.actions[shown:])
        if dreamt[0].step > 1:
            seen, led_by = seen[:0], []
        names = media.action_names([*led_by, *(moment.action for moment in dreamt)], self.spec.action_names)
        frames = np.stack([moment.frame for moment in dreamt])
        dream = media.dream_strip(seen, frames, (None, *names[1:]) if led_by else names)
        if self.beside is None or not self.beside.active:
            return [dream]
        truth = np.concatenate([seen, self.beside.simulator.frames(len(dreamt))])
        return [media.Strip(truth, "environment", dream.actions, seen=dream.seen), dream]

    def frame_message(self, seconds: float) -> bytes:
        """The present frame; ``seconds``: what its computation took, with the wait for the model."""
        moment = self.moments[-1]
        height, width = self.spec.frame_shape[1:]
        header: dict[str, Any] = {
            "type": "frame", "step": moment.step, "action": moment.action, "reward": moment.reward,
            "total": moment.total, "end": moment.end, "height": height, "width": width,
            "undo": len(self.moments) - 1, "milliseconds": round(1e3 * seconds, 2),
            "grid": list(moment.codes.shape), "codes": moment.codes.flatten().tolist(),
        }  # fmt: skip
        parts = {"dream": rgba(moment.frame)}
        if self.beside is not None:
            header["report"] = self.beside.report
            if self.beside.active:
                header |= self.beside.figures()
                parts["truth"] = rgba(self.beside.truth.frame)
        return pack(header, **parts)


def write_file(strips: Sequence[media.Strip], suffix: str, spec: Spec) -> bytes:
    """The bytes of a video or a contact sheet. Raises what :func:`worldmodel.media.save` raises."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"dream.{suffix}"
        media.save(path, strips, spec.rate, title=spec.env_id)
        return path.read_bytes()
