"""The panels of an evaluation, which :mod:`worldmodel.media.plots` draws."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from worldmodel.evaluation import long_report
from worldmodel.media.plots import COLOURS, GREY, Bar, Line, Panel, Shares

STYLES = {  # of each competitor: label, colour, and whether it is a reference, which is drawn dashed
    "reconstruction": ("tokenizer's reconstruction", "black", True),
    "dream": ("dream, temperature 0", COLOURS[0], False),
    "dream_sampled": ("dream, temperature 1", COLOURS[4], False),
    "dream_mean": ("mean of dreams, temperature 1", COLOURS[2], False),
    "shuffled": ("dream, shuffled actions", COLOURS[5], False),
    "last_frame": ("last frame repeated", GREY, True),
    "last_frame_coded": ("last frame, coded", "#bbbbbb", True),
}
LABELS = {name: label for name, (label, _, _) in STYLES.items()}
FEW_EVENTS = 10
"""Scores of fewer events are unreliable: the table notes it and the plot leaves them out."""


def panels(figures: dict[str, Any]) -> list[Panel]:
    """The page of plots of one evaluation."""
    loop, one, inverse = figures["open_loop"], figures["one_step"], figures.get("inverse")
    codes = figures["codes"]
    result = [
        _curves(loop, "psnr", f"Open-loop PSNR, dB, {loop['windows']} windows"),
        _curves(loop, "ssim", "Open-loop SSIM"),
        _gains(loop),
        *_events(one),
        _bits(one["prior"]),
        usage_panel(f"Codes: {codes['used']} of {codes['of']} used, perplexity {codes['perplexity']:.0f}", [codes]),
    ]
    result += _loops(figures.get("loops") or {})
    if inverse:
        dreamt, heat = inverse["dreamt"], inverse["headline"]
        result.append(_confusion(inverse["real"], figures["actions"], "Actions read from real pairs"))
        result.append(_confusion(dreamt[heat], figures["actions"], f"From dreams, temperature {heat}"))
    if figures.get("long_dreams"):
        result.extend(long_report.panels(figures["long_dreams"]))
    return result


def _curves(loop: dict[str, Any], figure: str, title: str) -> Panel:
    steps = np.arange(1, loop["horizon"] + 1)
    lines = {}
    for name, (label, colour, reference) in STYLES.items():
        if name not in loop["curves"]:
            continue
        curve = loop["curves"][name][figure]
        lines[label] = Line(steps, curve["value"], curve["low"], curve["high"], reference, colour)
    return Panel(title, lines, "steps dreamt")


def _gains(loop: dict[str, Any]) -> Panel:
    lines = {}
    for rival in ("last_frame", "shuffled"):
        (label, colour, _), gain = STYLES[rival], loop["gain_over"][rival]["psnr"]
        lines[f"over {label}"] = Line(loop["steps"], gain["value"], gain["low"], gain["high"], colour=colour)
    if loop["mean_gain_over_last_frame"]:
        gain, colour = loop["mean_gain_over_last_frame"]["psnr"], STYLES["dream_mean"][1]
        label = f"mean of dreams over {LABELS['last_frame']}"
        lines[label] = Line(loop["steps"], gain["value"], gain["low"], gain["high"], colour=colour)
    return Panel("What the dream gains, dB", lines, "steps dreamt", mark=0)


def loop_label(figures: dict[str, Any], name: str) -> str:
    """What is written of a competitor of a loop."""
    if name in figures["dreams"]:
        dream = figures["dreams"][name]
        return f"dream, temperature {dream['temperature']:g}, {dream['seen']} seen"
    return {"environment": "real environment"}.get(name) or LABELS[name]


def _loops(loops: dict[str, Any]) -> list[Panel]:
    """A panel for each loop, with the dreams after most seen frames, and one for the gains of all."""
    result = []
    for script, loop in loops.items():
        most, lines, colours = max(dream["seen"] for dream in loop["dreams"].values()), {}, iter(COLOURS)
        for name, figures in loop["along"].items():
            curve, dream = figures["psnr"], loop["dreams"].get(name)
            if dream is None or dream["seen"] == most:
                colour = STYLES[name][1] if dream is None else next(colours)
                x, label = np.arange(1, loop["steps"] + 1), loop_label(loop, name)
                lines[label] = Line(x, curve["value"], curve["low"], curve["high"], dream is None, colour)
        result.append(Panel(f"Loop {script}", lines, "steps dreamt", "PSNR, dB"))
    if loops:
        gains = {script.replace(",", ",\n"): Bar.of(loop["revisit"]["gain"]) for script, loop in loops.items()}
        result.append(Panel("Revisit gain, bits per code", gains, mark=0))
    return result


def _events(one: dict[str, Any]) -> list[Panel]:
    """Detection of rare events; empty without enough events."""
    bars, counts = {}, []
    for name, events in (("rewards", one["rewards"]["events"]), ("ends", one["ends"])):
        for label, key, colour in (("AUROC", "auroc", 0), ("avg. prec.", "average_precision", 1)):
            value = events[key] if events and events["positives"] >= FEW_EVENTS else None
            bars[f"{name}\n{label}"] = Bar(float("nan") if value is None else value, colour=COLOURS[colour])
        counts.append(f"{events['positives']:,} {name} in {events['of']:,} steps" if events else f"no usual {name}")
    if all(math.isnan(bar.value) for bar in bars.values()):
        return []
    return [Panel("Rare events predicted one step ahead", bars, ", ".join(counts))]


def _bits(prior: dict[str, Any]) -> Panel:
    bars = {
        "true actions": Bar.of(prior["bits_per_code"], STYLES["dream"][1]),
        "shuffled actions": Bar.of(prior["bits_per_code_shuffled_actions"], STYLES["shuffled"][1]),
    }
    title = f"Prior, bits per code, {prior['frames']:,} held-out frames"
    return Panel(title, bars, mark=prior["bits_per_code_uniform"], mark_name="uniform")


def usage_panel(title: str, books: Sequence[dict[str, Any]]) -> Panel:
    """How often the codes of each codebook occur, the most frequent first: mean, lowest and highest share."""
    shares = np.array([book["counts_sorted"] for book in books], dtype=float)
    shares /= shares.sum(1, keepdims=True).clip(1)
    x = np.arange(shares.shape[1])
    line = Line(x, shares.mean(0), shares.min(0), shares.max(0), colour=COLOURS[0])
    names = "codes, most frequent first", "share of positions"
    return Panel(title, {"": line}, *names, "linear", 1 / len(x), "all equal")


def _confusion(reading: dict[str, Any], names: list[str], title: str) -> Panel:
    counts = np.array(reading["confusion"], dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return Panel(f"{title}: {reading['accuracy']:.0%}", Shares(shares, names, names), "action read", "action given")
