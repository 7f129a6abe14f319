"""One thread that computes for all visitors: steps that wait at the same time are one pass through the model."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from worldmodel.serving.dreams import Dreamer, Moment, Order

Result = TypeVar("Result")


class Batcher:
    """Steps that are requested during a pass are computed in the next one, so that no visitor waits for a timer."""

    def __init__(self, dreamer: Dreamer):
        self.dreamer = dreamer
        self.largest = 0  # orders in one pass so far
        self._thread = ThreadPoolExecutor(1, "model")
        self._waiting: list[tuple[Order, asyncio.Future[Moment]]] = []
        self._passes: asyncio.Task[None] | None = None

    async def step(self, order: Order) -> Moment:
        """The next moment of a dream."""
        future: asyncio.Future[Moment] = asyncio.get_running_loop().create_future()
        self._waiting.append((order, future))
        if self._passes is None or self._passes.done():
            self._passes = asyncio.create_task(self._run())
        return await future

    async def call(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call a function of the model or of the store in their thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # messages that have arrived already join the pass
            batch, self._waiting = self._waiting, []
            batch = [(order, future) for order, future in batch if not future.done()]  # its visitor has left
            self.largest = max(self.largest, len(batch))
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(self._thread, self._compute, batch, loop)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)

    def _compute(self, batch: list[tuple[Order, asyncio.Future[Moment]]], loop: asyncio.AbstractEventLoop) -> None:
        for index, moment in self.dreamer.step([order for order, _ in batch]):
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(_resolve, batch[index][1], moment)


def _resolve(future: asyncio.Future[Moment], moment: Moment) -> None:
    if not future.done():
        future.set_result(moment)


async def in_background(function: Callable[..., Result], *args: Any) -> Result:
    """Call a slow function in a thread that does not delay the end of the program."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def finish(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = function(*args)
        except Exception as failure:
            error = failure
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await future
