"""The page of plots of an evaluation, in the house style of :mod:`worldmodel.plots`."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldmodel.plots import GREY, STYLE

LABELS = {
    "reconstruction": "tokenizer's reconstruction",
    "dream": "dream, temperature 0",
    "dream_sampled": "dream, temperature 1",
    "shuffled": "dream, shuffled actions",
    "last_frame": "last frame repeated",
    "last_frame_coded": "last frame, coded",
}
# The dash says what is a reference and not a dream.
STYLES = {
    "reconstruction": ("#000000", ":"),
    "dream": ("#0072B2", "-"),
    "dream_sampled": ("#56B4E9", "-"),
    "shuffled": ("#D55E00", "-"),
    "last_frame": (GREY, "--"),
    "last_frame_coded": ("#BBBBBB", "--"),
}


def _finish(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _draw_curves(axes: Axes, loop: dict[str, Any], figure: str, title: str) -> None:
    steps = np.arange(1, loop["horizon"] + 1)
    for name, (colour, dash) in STYLES.items():
        curve = loop["curves"][name][figure]
        axes.plot(steps, curve["value"], dash, color=colour, label=LABELS[name], linewidth=1.8)
        axes.fill_between(steps, curve["low"], curve["high"], color=colour, alpha=0.13, linewidth=0)
    _finish(axes, title, "steps dreamt")


def _draw_gains(axes: Axes, loop: dict[str, Any]) -> None:
    for offset, rival in ((-0.17, "last_frame"), (0.17, "shuffled")):
        gain = loop["gain_over"][rival]["psnr"]
        value = np.array(gain["value"])
        places = np.arange(len(value)) + offset
        spread = np.abs(np.array([gain["low"], gain["high"]]) - value)
        axes.bar(places, value, 0.32, yerr=spread, color=STYLES[rival][0], label=f"over {LABELS[rival]}", capsize=2)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(np.arange(len(loop["steps"])), [str(step) for step in loop["steps"]])
    axes.margins(y=0.2)
    axes.legend(loc="upper right")
    _finish(axes, "What the dream gains, dB", "steps dreamt")


def _draw_bits(axes: Axes, prior: dict[str, Any]) -> None:
    parts = [prior["bits_per_code"], prior["bits_per_code_shuffled_actions"]]
    values = np.array([part["value"] for part in parts])
    spread = np.abs(np.array([[part["low"] for part in parts], [part["high"] for part in parts]]) - values)
    axes.barh([1, 0], values, xerr=spread, color=[STYLES["dream"][0], STYLES["shuffled"][0]], height=0.6, capsize=3)
    axes.axvline(prior["bits_per_code_uniform"], color="black", linestyle=":")
    axes.text(prior["bits_per_code_uniform"], 1.45, "uniform ", ha="right", va="top", fontsize=9)
    axes.set_yticks([1, 0], ["true\nactions", "shuffled\nactions"])
    for place, value in zip([1, 0], values, strict=True):
        axes.text(0.05, place + 0.32, f"{value:.2f}", color="black", va="bottom")
    _finish(axes, "Prior on held-out frames", "bits per code")


def _draw_usage(axes: Axes, codes: dict[str, Any]) -> None:
    counts = np.array(codes["counts_sorted"], dtype=float)
    axes.fill_between(np.arange(len(counts)), counts / max(1, counts.sum()), step="mid", color=STYLES["dream"][0])
    axes.axhline(1 / len(counts), color="black", linestyle=":", linewidth=1)
    axes.set_ylim(bottom=0)
    title = f"Codes: {codes['used']} of {codes['of']} used, perplexity {codes['perplexity']:.0f}"
    _finish(axes, title, "code, most frequent first (dots: all equal)", "share of positions")


def _draw_confusion(axes: Axes, reading: dict[str, Any], names: list[str], title: str) -> None:
    counts = np.array(reading["confusion"], dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.grid(visible=False)
    if len(names) <= 8:
        for (row, column), share in np.ndenumerate(shares):
            axes.text(column, row, f"{share:.0%}", ha="center", va="center", color="white" if share > 0.5 else "black")
    axes.set_xticks(
        range(len(names)), names, rotation=45 if len(names) > 4 else 0, ha="right" if len(names) > 4 else "center"
    )
    axes.set_yticks(range(len(names)), names)
    axes.set_title(f"{title}: {reading['accuracy']:.0%}")
    axes.set_xlabel("action read")
    axes.set_ylabel("action given")


def _draw_events(axes: Axes, one: dict[str, Any]) -> None:
    found = {"reward\nevents": one["rewards"]["events"], "ends": one["ends"]}
    for place, events in enumerate(found.values()):
        if not events or events["auroc"] is None:
            axes.text(0.02, place, "none held out", va="center", fontsize=9)
            continue
        scores = [events["auroc"], events["average_precision"]]
        axes.barh([place + 0.17, place - 0.17], scores, 0.32, color=["#0072B2", "#E69F00"])
        axes.text(0.02, place + 0.17, f"AUROC {scores[0]:.2f}", va="center", fontsize=9, color="white")
        axes.text(0.02, place - 0.17, f"average precision {scores[1]:.2f}", va="center", fontsize=9)
        axes.text(1.02, place, f"{events['positives']} of\n{events['of']}", va="center", fontsize=8)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlim(0, 1)
    _finish(axes, "Rare events foretold, one step ahead")


def plots(found: dict[str, Any]) -> Figure:
    """The page of plots."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(16, 7.6), dpi=110, layout="constrained")
        axes = figure.subplots(2, 4)
        loop, one = found["open_loop"], found["one_step"]
        _draw_curves(axes[0, 0], loop, "psnr", f"Open-loop PSNR, dB, {loop['windows']} windows")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=len(LABELS))
        _draw_curves(axes[0, 1], loop, "ssim", "Open-loop SSIM")
        _draw_gains(axes[0, 2], loop)
        _draw_events(axes[0, 3], one)
        _draw_bits(axes[1, 0], one["prior"])
        _draw_usage(axes[1, 1], found["codes"])
        if found.get("inverse"):
            inverse = found["inverse"]
            _draw_confusion(axes[1, 2], inverse["real"], found["actions"], "Actions read from real pairs")
            reading = inverse["dreamt"][inverse["headline"]]
            _draw_confusion(axes[1, 3], reading, found["actions"], f"From dreams, temperature {inverse['headline']}")
        else:
            axes[1, 2].set_axis_off()
            axes[1, 3].set_axis_off()
        figure.suptitle(
            f"{found['run']} · {found['environment']} · bands and whiskers: 95 %", x=0.01, ha="left", fontweight="bold"
        )
    return figure
