"""Work that takes long: bars of what is done, the time left and the figures that matter; and interruptions of it."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text


class Count(ProgressColumn):
    """1,200/60,000, or 1,200 of what is not counted beforehand."""

    def render(self, task: Task) -> Text:
        whole = "" if task.total is None else f"/{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}{whole}", style="progress.download")


SHOWN = TextColumn("left  {task.fields[shown]}")
COLUMNS = (TextColumn("{task.description}"), BarColumn(24), Count(), TimeRemainingColumn(), SHOWN)


class Bars(Progress):
    """A bar for each :meth:`add_task`. On a terminal they move; in a log, a line is written now and then instead.

    ``update(task, completed=…, shown="mean return 4")`` moves one and sets the text that is shown behind it.

    Args:
        console: where they are shown; None: standard error.
        transient: whether they vanish when all is done.
        seconds: between two lines in a log.
        columns: of a bar; a line in a log has the texts among them.
    """

    def __init__(
        self,
        console: Console | None = None,
        transient: bool = False,
        seconds: float = 10.0,
        columns: Sequence[ProgressColumn] = COLUMNS,
    ):
        console = console or Console(file=sys.stderr)
        self._log = console if not console.is_terminal else None
        super().__init__(
            *columns,
            console=console,
            transient=transient,
            disable=self._log is not None,
            speed_estimate_period=3600,  # a planner's episode may take minutes, and rich looks back half of one
        )
        self._seconds, self._printed_at = seconds, time.monotonic()
        self._printed: dict[TaskID, float] = {}  # work done when a line of the task was printed last

    def add_task(self, description: str, *args: Any, shown: str = "", **kwargs: Any) -> TaskID:
        return super().add_task(description, *args, shown=shown, **kwargs)

    def update(self, task_id: TaskID, **fields: Any) -> None:  # type: ignore[override]
        super().update(task_id, **fields)
        if self._log is not None and time.monotonic() - self._printed_at >= self._seconds:
            self._printed_at = time.monotonic()
            self._print(self._log, self._tasks[task_id])

    def stop(self) -> None:
        super().stop()
        if self._log is not None and not self.live.transient:
            for task in self.tasks:
                if self._printed.get(task.id) != task.completed:
                    self._print(self._log, task)

    def _print(self, log: Console, task: Task) -> None:
        self._printed[task.id] = task.completed
        texts = [column.render(task) for column in self.columns if isinstance(column, ProgressColumn)]
        log.print("  ".join(str(text) for text in texts if isinstance(text, Text)), highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress_bars(console: Console | None = None, transient: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each work by name, moved by calls with the name, how much is done, and how much there is."""
    with Bars(console, transient) as bars:
        tasks: dict[str, TaskID] = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield report


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Within it, the first SIGINT (Ctrl-C) or SIGTERM is only noted, so that it can be answered at a moment when
    nothing is half done. The value of the ``with`` returns whether it came.

    Every later one raises KeyboardInterrupt at once. Outside the main thread, the only one that may handle signals, it
    does nothing.
    """
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
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
            signal.signal(number, handler or signal.SIG_DFL)  # None: of a program that is not written in Python
