"""Bars in a log: a line now and then, with what is done of all and the figures behind it."""

from __future__ import annotations

import io

from rich.console import Console

from worldmodel.bars import Bars


def test_a_log_has_a_line_now_and_then() -> None:
    file = io.StringIO()
    with Bars(Console(file=file, width=100), seconds=0.0) as bars:
        task = bars.add_task("episodes", total=1500)
        bars.update(task, completed=1200, shown="mean return 4.2")
    lines = file.getvalue().splitlines()
    assert len(lines) == 2  # one while it goes, and one at the end
    for line in lines:
        assert (
            line.startswith("episodes ") and "1,200/1,500" in line and line.rstrip().endswith("left  mean return 4.2")
        )


def test_no_more_lines_than_that() -> None:
    file = io.StringIO()
    with Bars(Console(file=file, width=100), seconds=60.0) as bars:
        task = bars.add_task("frames", total=None)
        for i in range(100):
            bars.update(task, completed=i)
    (line,) = file.getvalue().splitlines()
    assert "99 " in line
    file = io.StringIO()
    with Bars(Console(file=file, width=100), transient=True, seconds=60.0) as bars:
        bars.update(bars.add_task("frames", total=2), completed=1)
    assert not file.getvalue().strip()
