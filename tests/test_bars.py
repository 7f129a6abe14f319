"""Bars in a log: a line now and then, with what is done of all and the figures behind it."""

from __future__ import annotations

import io

from rich.console import Console

from worldmodel.util.progress import Bars

SHOWN = "mean return 312.4  12,345 steps of a planner that thinks for long"


def test_a_log_has_a_line_now_and_then() -> None:
    file = io.StringIO()
    with Bars(Console(file=file), seconds=0.0) as bars:
        task = bars.add_task("episodes", total=1500)
        bars.update(task, completed=1200, shown=SHOWN)
    lines = file.getvalue().splitlines()
    assert len(lines) == 1  # nothing is new at the end
    for line in lines:
        assert line.startswith("episodes  1,200/1,500  ") and line.endswith(f"left  {SHOWN}")


def test_no_more_lines_than_that() -> None:
    file = io.StringIO()
    with Bars(Console(file=file), seconds=60.0) as bars:
        task = bars.add_task("frames", total=None)
        for i in range(100):
            bars.update(task, completed=i)
    (line,) = file.getvalue().splitlines()
    assert line.startswith("frames  99  ")
    file = io.StringIO()
    with Bars(Console(file=file), transient=True, seconds=60.0) as bars:
        bars.update(bars.add_task("frames", total=2), completed=1)
    assert not file.getvalue()


def test_a_terminal_has_bars() -> None:
    file = io.StringIO()
    with Bars(Console(file=file, force_terminal=True, width=120), seconds=0.0) as bars:
        bars.update(bars.add_task("episodes", total=1500), completed=1200, shown=SHOWN)
    assert "━" in file.getvalue() and "1,200/1,500" in file.getvalue() and SHOWN in file.getvalue()
