"""Plots of panels of lines, bars or shares, drawn by :func:`save_panels`.

They do not use the global state of pyplot and need no display.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldmodel.errors import ConfigError
from worldmodel.util.files import whole

# Different in lightness and hue, for print and colour blindness (Okabe and Ito, 2008).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#5b5b5b", "#b8a900")
GREY = "#8a8f98"
TEXT = "#444444"
STYLE: Any = {  # keys of matplotlib's rcParams
    "text.parse_math": False,  # a name may have dollar signs
    "font.family": "DejaVu Sans",  # shipped with matplotlib
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelcolor": TEXT,
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
    "svg.hashsalt": "worldmodel",  # deterministic files
}
UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # deterministic files
SUFFIXES = (".png", ".svg", ".pdf")
RAW_POINTS = 60  # a noisy line of more points is smoothed
MOST_WRITTEN = 8


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a panel. The band between ``low`` and ``high`` is shaded."""

    x: Sequence[float] | np.ndarray  # (P,)
    y: Sequence[float] | np.ndarray  # (P,); NaN where there is no value
    low: Sequence[float] | np.ndarray | None = None  # (P,)
    high: Sequence[float] | np.ndarray | None = None  # (P,)
    dashed: bool = False  # for baselines and bounds
    colour: str | None = None  # None: the next of COLOURS
    noisy: bool = False  # a line of many points is smoothed, and the raw line is drawn lightly
    points: bool = False  # points instead of a line


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar of a panel, with an optional whisker from ``low`` to ``high``."""

    value: float  # NaN: not measured
    low: float | None = None
    high: float | None = None
    colour: str | None = None  # None: the next of COLOURS

    @classmethod
    def of(cls, interval: Mapping[str, Any], colour: str | None = None) -> Self:
        """The bar of an interval as evaluations write it: value, low, high."""
        return cls(interval["value"], interval["low"], interval["high"], colour)


@dataclasses.dataclass(frozen=True)
class Shares:
    """Shares in [0, 1] as a shaded table; up to :data:`MOST_WRITTEN` rows and columns, values are written, too."""

    values: np.ndarray  # (R, C)
    rows: Sequence[str]
    columns: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot: named lines over x, named bars, or a table of shares."""

    title: str
    content: Mapping[str, Line] | Mapping[str, Bar] | Shares
    xlabel: str = ""
    ylabel: str = ""
    scale: Literal["linear", "log"] = "linear"  # of the y axis
    mark: float | None = None  # a level to compare with: a bar to be reached, chance
    mark_name: str = ""


def save_panels(path: Path, panels: Sequence[Panel], title: str = "", columns: int = 3, width: float = 4.2) -> Path:
    """Draw panels of ``width`` inches as a page, ``columns`` in a row, into a .png, .svg or .pdf; written whole, then
    renamed.

    Where panels show lines of the same names, one legend below the page is for all of them. Raises
    :class:`ConfigError` for another suffix or when there is nothing to draw.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"cannot plot into {str(path)!r}; the name must end in {', '.join(SUFFIXES)}")
    if not panels:
        raise ConfigError(f"nothing to plot into {path}; there are no measurements yet")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    shared = _shared_names(panels)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, 2.9 * rows + (0.4 if title else 0)), layout="constrained")
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, place + 1)
            _draw(axes, panel, shared)
            if shared and not figure.legends and shared == _line_names(panel):
                figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=len(shared))
        with whole(path) as part:
            figure.savefig(part, dpi=130, metadata=UNDATED.get(path.suffix.lower()))
    return path


def _line_names(panel: Panel) -> tuple[str, ...]:
    if isinstance(panel.content, Shares):
        return ()
    return tuple(name for name, value in panel.content.items() if isinstance(value, Line))


def _shared_names(panels: Sequence[Panel]) -> tuple[str, ...]:
    """The names of two lines or more that the first two panels to agree on them have in common; () when none do."""
    seen: set[tuple[str, ...]] = set()
    for names in map(_line_names, panels):
        if len(names) > 1 and names in seen:
            return names
        seen.add(names)
    return ()


def metrics_panels(records: Iterable[Mapping[str, Any]]) -> list[Panel]:
    """A panel for every value that training has logged, by training stage, over its steps; none for the time and the
    learning rate. ``records``: the lines of ``metrics.jsonl``, each with ``stage``, ``step`` and values."""
    curves: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for record in records:
        for name, value in record.items():
            if name not in ("stage", "step", "seconds", "learning_rate") and isinstance(value, int | float):
                steps, values = curves.setdefault((str(record.get("stage", "")), name), ([], []))
                steps.append(record["step"])
                values.append(value)
    stages, names = (dict.fromkeys(key[place] for key in curves) for place in (0, 1))
    keys = [(stage, name) for stage in stages for name in names]
    lines = {key: Line(*curves[key], noisy=True) for key in keys if key in curves}
    return [Panel(f"{stage}: {name}".lstrip(": "), {name: line}, "step") for (stage, name), line in lines.items()]


def smooth(values: Sequence[float] | np.ndarray, width: int) -> np.ndarray:
    """Centred mean over ``width`` neighbours (odd); fewer at the ends. NaNs are ignored."""
    y = np.asarray(values, dtype=float)
    known = np.isfinite(y)
    kernel = np.ones(width)
    pad = width // 2
    total = np.convolve(np.pad(np.where(known, y, 0.0), pad), kernel, "valid")
    count = np.convolve(np.pad(known.astype(float), pad), kernel, "valid")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)


def _draw(axes: Axes, panel: Panel, shared: tuple[str, ...]) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel(panel.xlabel)
    axes.set_ylabel(panel.ylabel)
    if isinstance(panel.content, Shares):
        _shares(axes, panel.content)
        return
    axes.set_yscale(panel.scale)
    lines = {name: value for name, value in panel.content.items() if isinstance(value, Line)}
    bars = {name: value for name, value in panel.content.items() if isinstance(value, Bar)}
    if lines:
        _lines(axes, lines)
    if bars:
        _bars(axes, bars)
    if len(lines) > 1 and _line_names(panel) != shared:
        axes.legend()
    if panel.mark is not None:
        axes.axhline(panel.mark, color=GREY, linestyle=":", linewidth=1.4)
        place = axes.get_yaxis_transform()
        axes.text(1, panel.mark, panel.mark_name, ha="right", va="bottom", fontsize=8, color=TEXT, transform=place)


def _lines(axes: Axes, lines: Mapping[str, Line]) -> None:
    for index, (name, line) in enumerate(lines.items()):
        colour = line.colour or COLOURS[index % len(COLOURS)]
        y = np.asarray(line.y, dtype=float)
        if line.points:
            axes.plot(line.x, y, "o", color=colour, label=name, markersize=3.5, alpha=0.5, markeredgewidth=0)
            continue
        if line.noisy and len(y) > RAW_POINTS:
            axes.plot(line.x, y, color=colour, alpha=0.25, linewidth=0.8)
            y = smooth(y, 2 * (len(y) // RAW_POINTS) + 1)
        marker = "o" if len(y) <= 12 else None
        axes.plot(line.x, y, "--" if line.dashed else "-", color=colour, label=name, marker=marker, markersize=3.5)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    axes.margins(x=0.02)


def _bars(axes: Axes, bars: Mapping[str, Bar]) -> None:
    colours = [bar.colour or COLOURS[index % len(COLOURS)] for index, bar in enumerate(bars.values())]
    values = np.array([bar.value for bar in bars.values()], dtype=float)
    drawn = axes.bar(list(bars), np.nan_to_num(values), color=colours, width=0.65)
    tops = []
    for place, bar in enumerate(bars.values()):
        if bar.low is not None and bar.high is not None:
            axes.errorbar(place, bar.value, [[bar.value - bar.low], [bar.high - bar.value]], color="black", capsize=3)
        tops.append(bar.value if bar.high is None else bar.high)
    for rectangle, value, top in zip(drawn, values, tops, strict=True):
        short = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        label, height = ("none", 0.0) if math.isnan(value) else (short, top)
        place_of = (rectangle.get_x() + rectangle.get_width() / 2, height)
        axes.annotate(label, place_of, (0, 2), textcoords="offset points", ha="center", fontsize=8, color=TEXT)
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.12)
    if sum(len(line) for name in bars for line in name.splitlines()) > 60:
        if len(bars) <= 5:
            axes.tick_params(axis="x", labelrotation=20)
        else:
            names = [name.replace("\n", " ") for name in bars]
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)


def _shares(axes: Axes, table: Shares) -> None:
    axes.imshow(table.values, vmin=0, vmax=1, cmap="Blues")
    axes.grid(visible=False)
    if max(len(table.rows), len(table.columns)) <= MOST_WRITTEN:
        for (row, column), share in np.ndenumerate(table.values):
            axes.text(column, row, f"{share:.0%}", ha="center", va="center", color="white" if share > 0.5 else "black")
    many = len(table.columns) > 4
    axes.set_xticks(range(len(table.columns)), table.columns, rotation=45 * many, ha="right" if many else "center")
    axes.set_yticks(range(len(table.rows)), table.rows)
