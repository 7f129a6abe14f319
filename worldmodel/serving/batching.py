"""One thread that computes for all visitors: steps that wait at the same time are one pass through the model."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from worldmodel.serving.dreams import Dreamer, Moment, Order

Result = TypeVar("Result")


class Batcher:
    """Steps that are requested during a pass are computed in the next one, so that no visitor waits for a timer."""

    def __init__(self, dreamer: Dreamer):
        self.dreamer = dreamer
        self._thread = ThreadPoolExecutor(1, "model")
        self._waiting: list[tuple[Order, Future[Moment]]] = []
        self._passes: asyncio.Task[None] | None = None

    async def step(self, order: Order) -> Moment:
        """The next moment of a dream."""
        future: Future[Moment] = Future()
        self._waiting.append((order, future))
        if self._passes is None or self._passes.done():
            self._passes = asyncio.create_task(self._run())
        return await asyncio.wrap_future(future)

    async def call(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call a function of the model or of the store in their thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # messages that have arrived already join the pass
            waiting, self._waiting = self._waiting, []
            batch = [each for each in waiting if each[1].set_running_or_notify_cancel()]  # without visitors who left
            try:
                await self.call(self._compute, batch)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)

    def _compute(self, batch: list[tuple[Order, Future[Moment]]]) -> None:
        for index, moment in self.dreamer.step([order for order, _ in batch]):
            batch[index][1].set_result(moment)


async def in_background(function: Callable[..., Result], *args: Any) -> Result:
    """Call a slow function in a thread that does not delay the end of the program."""
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()  # the thread sets its result, also when the visitor has left

    def run() -> None:
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(future)
