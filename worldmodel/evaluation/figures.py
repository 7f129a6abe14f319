"""The panels of an evaluation, which :mod:`worldmodel.media.plots` draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from worldmodel.media.plots import COLOURS, GREY, Bar, Line, Panel, Shares

LABELS = {
    "reconstruction": "tokenizer's reconstruction",
    "dream": "dream, temperature 0",
    "dream_sampled": "dream, temperature 1",
    "shuffled": "dream, shuffled actions",
    "last_frame": "last frame repeated",
    "last_frame_coded": "last frame, coded",
}
SHADES = {
    "reconstruction": "black",
    "dream": COLOURS[0],
    "dream_sampled": COLOURS[4],
    "shuffled": COLOURS[5],
    "last_frame": GREY,
    "last_frame_coded": "#bbbbbb",
}
REFERENCES = ("reconstruction", "last_frame", "last_frame_coded")  # drawn dashed


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
    if inverse:
        dreamt, heat = inverse["dreamt"], inverse["headline"]
        result.append(_confusion(inverse["real"], figures["actions"], "Actions read from real pairs"))
        result.append(_confusion(dreamt[heat], figures["actions"], f"From dreams, temperature {heat}"))
    return result


def _curves(loop: dict[str, Any], figure: str, title: str) -> Panel:
    steps = np.arange(1, loop["horizon"] + 1)
    lines = {}
    for name, label in LABELS.items():
        curve = loop["curves"][name][figure]
        lines[label] = Line(steps, curve["value"], curve["low"], curve["high"], name in REFERENCES, SHADES[name])
    return Panel(title, lines, "steps dreamt")


def _gains(loop: dict[str, Any]) -> Panel:
    lines = {}
    for rival in ("last_frame", "shuffled"):
        gain = loop["gain_over"][rival]["psnr"]
        lines[f"over {LABELS[rival]}"] = Line(
            loop["steps"], gain["value"], gain["low"], gain["high"], colour=SHADES[rival]
        )
    return Panel("What the dream gains, dB", lines, "steps dreamt", mark=0)


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
        "true actions": Bar.of(prior["bits_per_code"], SHADES["dream"]),
        "shuffled actions": Bar.of(prior["bits_per_code_shuffled_actions"], SHADES["shuffled"]),
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
