"""Plots in the house style: say what is to be seen as panels of lines or bars, and :func:`save_panels` draws the page.

Without the global state of pyplot: nothing here opens a window or needs a display.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldmodel.errors import ConfigError

# Apart in lightness as well as in hue: they stay apart in print and for colour-blind eyes (Okabe and Ito, 2008).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#5b5b5b", "#b8a900")
GREY = "#8a8f98"
STYLE: Any = {  # keys of matplotlib's rcParams
    "font.family": "DejaVu Sans",  # shipped with matplotlib: the same page on every machine
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelcolor": "#444444",
    "axes.edgecolor": "#bbbbbb",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.8,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "svg.hashsalt": "worldmodel",  # the same figure gives the same file
}
UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # a date would make every file differ
SUFFIXES = (".png", ".svg", ".pdf")
RAW_POINTS = 60  # a line of more points is shown smoothed, over its raw self


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a panel. With ``low`` and ``high`` the band between them is shaded."""

    x: Sequence[float] | np.ndarray  # (P,)
    y: Sequence[float] | np.ndarray  # (P,); NaN where there is no value
    low: Sequence[float] | np.ndarray | None = None  # (P,)
    high: Sequence[float] | np.ndarray | None = None  # (P,)
    dashed: bool = False  # for baselines and bounds


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot: named lines over x, or one bar a name."""

    title: str
    content: Mapping[str, Line] | Mapping[str, float]
    xlabel: str = ""
    ylabel: str = ""
    scale: Literal["linear", "log"] = "linear"  # of the y axis
    mark: float | None = None  # a level to compare with: a bar to be reached, chance


def save_panels(path: str | Path, panels: Sequence[Panel], title: str = "", columns: int = 3) -> Path:
    """Draw panels as a page, ``columns`` in a row, into a .png, .svg or .pdf; written whole, then renamed.

    Raises :class:`ConfigError` for another suffix or when there is nothing to draw.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"cannot plot into {str(path)!r}; the name must end in {', '.join(SUFFIXES)}")
    if not panels:
        raise ConfigError(f"nothing to plot into {path}; there are no measurements yet")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * columns, 2.9 * rows + (0.4 if title else 0)), layout="constrained")
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        for place, panel in enumerate(panels):
            _draw(figure.add_subplot(rows, columns, place + 1), panel)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        try:
            figure.savefig(part, dpi=130, metadata=UNDATED.get(path.suffix.lower()))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def metrics_panels(records: Iterable[Mapping[str, Any]], names: Sequence[str] | None = None) -> list[Panel]:
    """A panel for every named value that training has logged, stage by stage, over its steps.

    ``records``: the lines of ``metrics.jsonl``, each with ``stage``, ``step`` and values; ``names`` picks and orders
    the values, by default all but the clock and the learning rate, in the order in which they first occur.
    """
    curves: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for record in records:
        for name, value in record.items():
            if name in ("stage", "step", "seconds", "learning_rate") and name not in (names or ()):
                continue
            if isinstance(value, int | float) and (names is None or name in names):
                steps, values = curves.setdefault((str(record.get("stage", "")), name), ([], []))
                steps.append(record["step"])
                values.append(value)
    stages = list(dict.fromkeys(stage for stage, _ in curves))
    order = list(names) if names is not None else list(dict.fromkeys(name for _, name in curves))
    keys = [(stage, name) for stage in stages for name in order if (stage, name) in curves]
    return [Panel(f"{stage}: {name}".lstrip(": "), {name: Line(*curves[stage, name])}, "step") for stage, name in keys]


def smooth(values: Sequence[float] | np.ndarray, width: int) -> np.ndarray:
    """Centred mean over ``width`` neighbours (odd); at the ends over those that there are. NaNs are left out."""
    y = np.asarray(values, dtype=float)
    known = np.isfinite(y)
    kernel = np.ones(width)
    pad = width // 2
    total = np.convolve(np.pad(np.where(known, y, 0.0), pad), kernel, "valid")
    count = np.convolve(np.pad(known.astype(float), pad), kernel, "valid")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)


def _draw(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel(panel.xlabel)
    axes.set_ylabel(panel.ylabel)
    axes.set_yscale(panel.scale)
    lines = {name: value for name, value in panel.content.items() if isinstance(value, Line)}
    bars = {name: float(value) for name, value in panel.content.items() if not isinstance(value, Line)}
    if lines:
        _lines(axes, lines)
    if bars:
        _bars(axes, bars)
    if panel.mark is not None:
        axes.axhline(panel.mark, color=GREY, linestyle=":", linewidth=1.4)


def _lines(axes: Axes, lines: Mapping[str, Line]) -> None:
    for index, (name, line) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        y = np.asarray(line.y, dtype=float)
        if len(y) > RAW_POINTS:
            axes.plot(line.x, y, color=colour, alpha=0.25, linewidth=0.8)
            y = smooth(y, 2 * (len(y) // RAW_POINTS) + 1)
        marker = "o" if len(y) <= 12 else None
        axes.plot(line.x, y, "--" if line.dashed else "-", color=colour, label=name, marker=marker, markersize=3.5)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    if len(lines) > 1:
        axes.legend()
    axes.margins(x=0.02)


def _bars(axes: Axes, bars: Mapping[str, float]) -> None:
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(bars))]
    drawn = axes.bar(list(bars), list(bars.values()), color=colours, width=0.65)
    axes.bar_label(drawn, fmt="%.3g", padding=2, fontsize=8, color="#444444")
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.12)
    if sum(len(name) for name in bars) > 40:
        axes.tick_params(axis="x", labelrotation=20)
