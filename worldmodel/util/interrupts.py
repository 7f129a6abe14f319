"""Ctrl-C and SIGTERM as requests, to be answered at a moment when nothing is half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def deferred(act: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Within it the first SIGINT or SIGTERM is only noted, and the value of the ``with`` says whether it came.

    Every one of them calls ``act``; from the second on, they raise KeyboardInterrupt at once. Outside the main thread,
    the only one that may handle signals, it does nothing.
    """
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        act()
        caught.append(number)
        if len(caught) > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
