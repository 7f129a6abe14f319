"""Long dreams in the report: lines of the table, a plot, and a picture."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from worldmodel.evaluation.long import KINDS, Long
from worldmodel.media import gallery
from worldmodel.media.plots import COLOURS, GREY, Bar, Panel

ROWS = 6  # maximum number of dreams in the picture


def lines(long: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The figures as (name, value) lines; the first one heads the section."""
    span, steps, real = long["span"], long["steps"], long["real"]
    ends = f"frames 1–{span} and {steps - span + 1:,}–{steps:,}"
    yield f"Long dreams, {long['dreams']} of {steps:,} steps, {ends}", ""
    if real["obeyed"] is not None:
        yield "classifier on real pairs, recorded", f"{real['obeyed']:.1%}"
        for name, dream in _dreams(long):
            first, last = (_percent(dream[end]["obeyed"]) for end in ("first", "last"))
            ratio = "{value:.2f} [{low:.2f}, {high:.2f}]".format(**dream["ratio"])
            yield f"obeyed, {name}", f"{first}, {last}"
            yield "  last / first", ratio
    yield "distance of codes, real frames", "{value:.3f} [{low:.3f}, {high:.3f}] bits".format(**real["distance"])
    for name, dream in _dreams(long):
        yield f"distance, {name}", f"{dream['first']['distance']:.3f}, {dream['last']['distance']:.3f} bits"
    yield "plainer, real frames (their codes)", f"{real['plainer']:.1%} ({real['plainer_coded']:.1%})"
    for name, dream in _dreams(long):
        yield f"plainer, {name}", ", ".join(_percent(dream[end]["plainer"]) for end in ("first", "last"))


def _dreams(long: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures of each kind of actions and temperature."""
    for kind, dreams in long["dreamt"].items():
        for heat, dream in dreams.items():
            yield f"{kind}, temperature {heat}", dream


def _percent(interval: dict[str, Any]) -> str:
    return "{value:.0%} [{low:.0%}, {high:.0%}]".format(**interval)


def panels(long: dict[str, Any]) -> list[Panel]:
    """Actions obeyed and plain frames at both ends of the dreams, next to real frames."""
    real, result = long["real"], []
    titles = {"obeyed": "Long dreams: actions obeyed", "plainer": "Long dreams: frames plainer than real ones"}
    for figure, title in titles.items():
        if real[figure] is None:
            continue
        bars = {
            f"{kind}\nT {heat}, {end}": Bar.of(dream[end][figure], COLOURS[0 if end == "first" else 5])
            for kind, dreams in long["dreamt"].items()
            for heat, dream in dreams.items()
            for end in ("first", "last")
        }
        span = f"first and last {long['span']} of {long['steps']:,} frames"
        result.append(Panel(title, {"real": Bar(real[figure], colour=GREY), **bars}, span))
    return result


def picture(long: Long) -> np.ndarray:
    """Frames of the dreams, (height, width, 3) uint8: a row for each, a block for each kind of actions and temperature,
    blocks of one kind one below another."""
    steps = ", ".join(f"{step:,}" for step in long.shown)
    columns = []
    for kind in KINDS:
        blocks = []
        for (of, heat), frames in long.frames.items():
            if of == kind:
                rows = [(f"dream {n + 1}", row) for n, row in enumerate(frames[:ROWS])]
                blocks.append(gallery(rows, 64, f"{kind} actions, temperature {heat}: frames {steps}"))
        columns.append(np.concatenate(blocks))
    return np.concatenate(columns, 1)
