"""The web application: the files of the page, and one WebSocket connection for each visitor."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar, get_args

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import FileResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from worldmodel.errors import WorldModelError
from worldmodel.serving.batching import Batcher
from worldmodel.serving.guard import Guard
from worldmodel.serving.keys import page_facts
from worldmodel.serving.messages import ProtocolError, Suffix, parse
from worldmodel.serving.simulator import Beside, MakeEnv, Simulator
from worldmodel.serving.visits import Driver, MakeAgent, Visit
from worldmodel.types import Spec

PAGE = Path(__file__).parent / "page"
POLICY_VIOLATION, TRY_AGAIN = 1008, 1013  # codes of RFC 6455 and its registry
Result = TypeVar("Result")

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server."""

    visitors: int = 8  # at the same time
    messages_per_second: float = 120.0  # of one visitor, in the mean
    burst: int = 240  # messages of one visitor that may come at once
    message_bytes: int = 1024
    idle_seconds: float = 600.0  # without a message, or without reading what is sent


@dataclasses.dataclass(eq=False)
class Server:
    """The visitors of one world model, and the application that they connect to."""

    run: str  # its name
    spec: Spec
    batcher: Batcher
    guard: dict[str, Any]  # the arguments of :class:`Guard`
    limits: Limits = Limits()
    make_env: MakeEnv | None = None  # of the environment that is shown beside the dreams
    make_agent: MakeAgent | None = None  # of the agent that may act in the dreams

    def __post_init__(self) -> None:
        self.visits: set[Visit] = set()
        index = Route("/", lambda request: FileResponse(PAGE / "index.html"))
        routes = [index, Mount("/page", StaticFiles(directory=PAGE)), WebSocketRoute("/play", self._connect)]
        self.app = Starlette(routes=routes, middleware=[Middleware(Guard, **self.guard)])

    def hello(self) -> dict[str, Any]:
        """What the page is built from."""
        shows = {"beside": self.make_env is not None, "agent": self.make_agent is not None, "other_starts": True}
        return {"type": "hello", **page_facts(self.run, self.spec, **shows, suffixes=get_args(Suffix))}

    def close(self) -> None:
        """End the processes and the thread of the server."""
        for visit in list(self.visits):
            visit.close()
        self.batcher.close()

    async def _connect(self, socket: WebSocket) -> None:
        """One connection, from its acceptance to its end."""
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect, TimeoutError):
            if len(self.visits) >= self.limits.visitors:
                reason = f"all {self.limits.visitors} places are taken; this page tries again every few seconds"
                await self._end(socket, TRY_AGAIN, "wait", reason)
                return
            visit = Visit(self.spec, self.batcher)
            if self.make_env is not None:
                simulator = Simulator(self.make_env, self.spec.action_names, self.batcher.dreamer.context)
                visit.beside = Beside(simulator)
            if self.make_agent is not None:
                visit.driver = Driver(self.make_agent, self.spec.action_names)
            self.visits.add(visit)
            try:
                await self._serve(socket, visit)
            except ProtocolError as error:
                await self._end(socket, POLICY_VIOLATION, "error", str(error))
            finally:
                self.visits.remove(visit)
                visit.close()

    async def _serve(self, socket: WebSocket, visit: Visit) -> None:
        await self._in_time(socket.send_text(json.dumps(self.hello())))
        credit, last = float(self.limits.burst), time.monotonic()
        while True:
            text = await self._receive(socket)
            now = time.monotonic()
            credit = min(self.limits.burst, credit + (now - last) * self.limits.messages_per_second) - 1
            last = now
            if credit < 0:
                raise ProtocolError(f"more than {self.limits.messages_per_second:g} messages a second")
            request = parse(text)
            try:
                reply = await visit.answer(request)
            except WorldModelError as error:  # such as a damaged episode, or an encoder that is missing
                reply = None
                await self._in_time(socket.send_text(json.dumps({"type": "notice", "reason": str(error)})))
            except (ProtocolError, asyncio.CancelledError):
                raise
            except Exception as error:
                log.exception("a request failed: %s", type(request).__name__)
                raise ProtocolError("the server failed to answer; its terminal shows the error") from error
            if reply is not None:
                await self._in_time(socket.send_bytes(reply))

    async def _receive(self, socket: WebSocket) -> str:
        try:
            message = await self._in_time(socket.receive())
        except TimeoutError:
            raise ProtocolError(f"no message for {self.limits.idle_seconds:g} seconds") from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        text = message.get("text")
        if text is None:
            raise ProtocolError("invalid message: binary")
        if len(text) > self.limits.message_bytes:
            raise ProtocolError(f"a message of more than {self.limits.message_bytes} bytes")
        return str(text)

    async def _in_time(self, action: Awaitable[Result]) -> Result:
        return await asyncio.wait_for(action, self.limits.idle_seconds)

    async def _end(self, socket: WebSocket, code: int, kind: str, reason: str) -> None:
        """Send the reason to the visitor, and close the connection."""
        if socket.application_state is WebSocketState.CONNECTED:
            await self._in_time(socket.send_text(json.dumps({"type": kind, "reason": reason})))
            await self._in_time(socket.close(code, reason[:100]))
