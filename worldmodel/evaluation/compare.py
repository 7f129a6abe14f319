"""Comparison of the bits per dimension of several evaluated runs: a table and a bar chart."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worldmodel.errors import RunError
from worldmodel.media.plots import COLOURS, Bar, Panel, save_panels

Table = dict[str, list[dict[str, Any]]]  # stem → the rows of its runs, flat


def read(runs: Sequence[Path]) -> Table:
    """The bounds of evaluated runs; runs whose names differ only in their number (seeds) are grouped.

    Raises :class:`RunError` for a run that was not evaluated, or that has no exact likelihood.
    """
    table: Table = {}
    facts: tuple[Any, ...] | None = None
    for run in runs:
        path = run / "evaluation" / "metrics.json"
        try:
            figures = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path} cannot be read; measure the run: python -m worldmodel.evaluate run={run.name}"
            ) from error
        if not figures.get("bits_per_dim"):
            raise RunError(f"{run.name} has no bits per dimension, because its decoder has no exact likelihood")
        mine = tuple(figures.get(name) for name in ("environment", "frames", "dimensions"))
        if facts not in (None, mine):
            raise RunError(f"{run.name} was measured on other frames than {runs[0].name}: {mine}, not {facts}")
        facts = mine
        stem = re.sub(r"-\d+$", "", run.name)
        table.setdefault(stem, []).extend(figures["bits_per_dim"])
    return table


def rows(table: Table) -> list[tuple[str, str, list[float], list[float]]]:
    """(system, bound, total of each run, reconstruction of each run) in the order of the runs."""
    result = []
    for stem, figures in table.items():
        for name in dict.fromkeys(row["name"] for row in figures):
            same = [row for row in figures if row["name"] == name]
            totals, parts = [row["total"]["value"] for row in same], [row["reconstruction"] for row in same]
            result.append((stem, name, totals, parts))
    return result


def lines(table: Table) -> list[tuple[str, str]]:
    """Lines for :func:`worldmodel.evaluation.report.table`; ± is the standard deviation over runs."""
    result = [("Bits per dimension, held out", "")]
    for stem, name, totals, parts in rows(table):
        spread = f" ± {statistics.stdev(totals):.3f}" if len(totals) > 1 else ""
        mean, part = statistics.mean(totals), statistics.mean(parts)
        runs = f" ({len(totals)} runs)" if len(totals) > 1 else ""
        result.append((f"{stem}, {name}", f"{mean:.3f}{spread} = {part:.3f} + {mean - part:.3f} latents{runs}"))
    return result


def save_chart(table: Table, path: Path) -> Path:
    """The bar chart; whiskers reach from the lowest to the highest run."""
    bars = {}
    stems = list(table)
    for stem, name, totals, _ in rows(table):
        if "likeliest" in name:  # too loose a bound for the scale of the chart
            continue
        label = f"{stem}\n{name.replace(', ', chr(10))}"
        low, high = (min(totals), max(totals)) if len(totals) > 1 else (None, None)
        bars[label] = Bar(statistics.mean(totals), low, high, COLOURS[stems.index(stem) % len(COLOURS)])
    panel = Panel("Bits per dimension of held-out images (lower is better)", bars)
    return save_panels(path, [panel], columns=1, width=max(4.2, 1.15 * len(bars)))
