"""The report of an evaluation: a table for the terminal, plots, strips of frames and one HTML page."""

import base64
import datetime
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from worldmodel.evaluation import long_report
from worldmodel.evaluation.figures import FEW_EVENTS, LABELS, loop_label
from worldmodel.evaluation.openloop import DREAMS, OpenLoop
from worldmodel.media import Strip, action_names, contact_sheet, save_png
from worldmodel.media.plots import Panel, save_panels
from worldmodel.util.files import replace_text

STRIP_ROWS = ("reconstruction", "dream", "dream_sampled", "dream_mean", "shuffled")


def number(interval: dict[str, Any], digits: int = 2, index: int | None = None) -> str:
    """``value [low, high]`` of an interval, or of one entry of a curve."""
    parts = [interval[key] if index is None else interval[key][index] for key in ("value", "low", "high")]
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*parts, d=digits)


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of one evaluation as (name, value) lines; an empty value heads a section."""
    one, codes = figures["one_step"], figures["codes"]
    picture, prior = one["reconstruction"], one["prior"]
    error, constant = (one["rewards"][f"mean_absolute_error{of}"] for of in ("", "_of_a_constant"))
    lines = [
        (f"One step, {one['frames']} held-out frames of {one['episodes']} episodes", ""),
        ("reconstruction PSNR (mean over frames)", number(picture["psnr"]) + " dB"),
        ("reconstruction PSNR (of the mean error)", number(picture["psnr_of_mean_mse"]) + " dB"),
        ("reconstruction SSIM", number(picture["ssim"], 3)),
        (
            "codes used",
            f"{codes['used']} of {codes['of']} ({codes['share']:.0%}), perplexity {codes['perplexity']:.0f}",
        ),
        ("prior, bits per frame", number(prior["bits_per_frame"], 1)),
        ("prior, bits per code", f"{number(prior['bits_per_code'])} (uniform {prior['bits_per_code_uniform']:.2f})"),
        ("prior, bits per code, shuffled actions", number(prior["bits_per_code_shuffled_actions"])),
        ("reward, mean absolute error", f"{error:.4g} (always the median: {constant:.4g})"),
        ("reward events", _events_line(one["rewards"]["events"])),
        ("ends", _events_line(one["ends"])),
    ]
    loop = figures["open_loop"]
    lines.append((f"Open loop, {loop['windows']} held-out windows, PSNR in dB at step", ""))
    lines.append(("step", _cells(str(step) for step in loop["steps"])))
    for name, label in LABELS.items():
        if name in loop["curves"]:
            curve = loop["curves"][name]["psnr"]["value"]
            lines.append((label, _cells(f"{curve[step - 1]:.1f}" for step in loop["steps"])))
    gains = {f"dream over {rival.replace('_', ' ')}": loop["gain_over"][rival] for rival in ("last_frame", "shuffled")}
    if loop["mean_gain_over_last_frame"]:
        gains["mean of dreams over last frame"] = loop["mean_gain_over_last_frame"]
    for label, measures in gains.items():
        gain = measures["psnr"]
        spread = _cells(f"{low:.1f}…{high:.1f}" for low, high in zip(gain["low"], gain["high"], strict=True))
        lines.append((label, _cells(f"{value:+.1f}" for value in gain["value"])))
        lines.append(("  95 %", spread))
    for script, loop_figures in (figures.get("loops") or {}).items():
        lines += _loop_lines(script, loop_figures)
    if figures.get("inverse"):
        lines += _obeyed_lines(figures["inverse"], figures["actions"])
    if figures.get("long_dreams"):
        lines.extend(long_report.lines(figures["long_dreams"]))
    return lines


def _loop_lines(script: str, loop: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of one loop."""

    def line(name: str, psnr: str, ssim: float) -> tuple[str, str]:
        return f"  {loop_label(loop, name)}", f"{psnr} dB, SSIM {ssim:.3f}"

    lines = [(f"Loop {script}, {loop['episodes']} episodes", ""), ("last frame against the loop's start", " ")]
    lines += [line(name, number(end["psnr"]), end["ssim"]["value"]) for name, end in loop["end"].items()]
    along, revisit = loop["along"].items(), loop["revisit"]
    lines.append(("last frame against the recorded one", " "))
    lines += [line(name, number(of["psnr"], index=-1), of["ssim"]["value"][-1]) for name, of in along]
    lines.append(("mean along the loop", " "))
    lines += [line(name, number(of["mean_psnr"]), of["mean_ssim"]["value"]) for name, of in along]
    value = f"{number(revisit['gain'], 3)}, {revisit['few']} seen: {revisit['bits_per_code_few_seen']['value']:.2f}"
    return [*lines, ("revisit gain, bits per code", value)]


def _obeyed_lines(inverse: dict[str, Any], actions: Sequence[str]) -> list[tuple[str, str]]:
    """What the classifier of actions reads from pairs of frames."""
    title = f"Actions obeyed, {inverse['starts']} starts × {inverse['steps']} steps"
    lines = [(f"{title}, chance {inverse['chance']:.0%}", "")]
    lines.append(("classifier on real pairs", f"{inverse['real']['accuracy']:.1%}"))
    lines.append(("classifier on real pairs, coded", f"{inverse['real_coded']['accuracy']:.1%}"))
    for name, reading in inverse["dreamt"].items():
        value = f"{reading['accuracy']:.1%}, dreamt / real {number(reading['ratio_to_real'])}"
        lines.append((f"dreamt pairs, temperature {name}", value))
    readings = {"real": inverse["real"], "coded": inverse["real_coded"]}
    readings |= {f"dream, {name}": reading for name, reading in inverse["dreamt"].items()}
    lines.append(("accuracy by action", _cells(readings)))
    for action, label in enumerate(actions):
        shares = (reading["accuracy_by_action"][action] for reading in readings.values())
        lines.append((f"  {label}", _cells(_percent(share) for share in shares)))
    return lines


def _cells(values: Iterable[str]) -> str:
    return "".join(f" {value:>9}" for value in values)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _events_line(events: dict[str, Any] | None) -> str:
    if events is None:
        return "there is no usual reward"
    if not events["positives"]:
        return f"none in {events['of']} steps"
    few = ", too few to trust" if events["positives"] < FEW_EVENTS else ""
    return (
        f"AUROC {events['auroc']:.3f}, average precision {events['average_precision']:.2f}, "
        f"precision {_percent(events['precision'])}, recall {_percent(events['recall'])} "
        f"({events['positives']} of {events['of']} steps{few})"
        if events["auroc"] is not None
        else f"all {events['of']} steps"
    )


def table(figures: dict[str, Any], lines: Sequence[tuple[str, str]]) -> Group:
    """Lines as a table without borders for each section. In a narrow terminal, names and values are wrapped."""
    parts: list[Table] = []
    for name, value in lines:
        if not value:
            title = Text(name, style="bold")
            parts.append(Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False))
            parts[-1].add_column(overflow="fold")
            parts[-1].add_column(overflow="fold")
        else:
            parts[-1].add_row(Text(name), Text(value))
    spaced = [part for table in parts for part in (Text(""), table)]
    return Group(Text(f"{figures['run']} · {figures['environment']}", style="bold"), *spaced)


def strips(result: OpenLoop, names: Sequence[str], windows: int = 4) -> np.ndarray:
    """An image (height, width, 3) uint8: rows of the truth, its reconstruction and the dreams of some windows."""

    def strip(window: int, name: str, frames: Tensor) -> Strip:
        given = result.shuffled_actions if name == "shuffled" else result.actions
        actions = action_names(given[result.shown[window]], names)
        both = torch.cat([result.seen[window, -1:], frames[window]]).numpy()
        return Strip(both, LABELS.get(name, name), (None, *actions), seen=1, dreamt=name in DREAMS)

    sheets = []
    for window, number_of in enumerate(result.shown[:windows].tolist()):
        lines = [strip(window, "truth", result.truth)]
        lines += [strip(window, name, result.pictures[name]) for name in STRIP_ROWS if name in result.pictures]
        sheets.append(contact_sheet(lines, size=64, title=f"held-out window {number_of + 1}", columns=24))
    return np.concatenate(sheets)


def plain(value: Any) -> Any:
    """A copy in which inf and nan, which JSON lacks, are None."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)


def page(figures: dict[str, Any], pictures: dict[str, Path], lines: Sequence[tuple[str, str]]) -> str:
    """A self-contained HTML page: the table, the pictures, the definitions."""
    line, section = "<tr><td>{}</td><td>{}</td></tr>", '<tr><th colspan="2">{}</th></tr>'
    cells = "".join((line if value else section).format(escape(name), escape(value)) for name, value in lines)
    images = "".join(
        f'<h2>{escape(title)}</h2><img alt="{escape(title)}" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for title, path in pictures.items()
    )
    terms = figures["definitions"].items()
    meaning = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in terms)
    title = escape(f"{figures['run']} · {figures['environment']}")
    about = escape(f"{figures['date']} · {figures['machine']} · {figures['command']}")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222 }}
img {{ max-width: 100%; height: auto }}
table {{ border-collapse: collapse }} td, th {{ padding: .15rem .8rem .15rem 0; text-align: left }}
th {{ padding-top: .8rem }} td + td {{ font-family: ui-monospace, monospace; white-space: pre-wrap }}
dt {{ font-weight: 600 }} .about {{ color: #666 }}
</style>
<h1>{title}</h1><p class="about">{about}</p>
<table>{cells}</table>{images}<h2>What the figures mean</h2><dl>{meaning}</dl></html>
"""


def heading(run: str, environment: str, device: torch.device, command: str) -> dict[str, Any]:
    """The first entries of ``metrics.json``: run, environment, date, command and machine."""
    processor = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else processor
    return {
        "run": run,
        "environment": environment,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": f"{machine}, torch {torch.__version__}",
    }


def write_report(
    folder: Path,
    figures: dict[str, Any],
    lines: Sequence[tuple[str, str]],
    plots: Sequence[Panel],
    pictures: Mapping[str, np.ndarray],
    note: str = "",
    columns: int = 3,
) -> None:
    """Write ``metrics.json``, the plots to ``report.png``, each of ``pictures`` (height, width, 3) to a PNG, and all of
    them to ``report.html``."""
    replace_text(folder / "metrics.json", json.dumps(plain(figures), indent=1, allow_nan=False))
    title = f"{figures['run']} · {figures['environment']}"
    shown = {name.replace("_", " ").capitalize(): folder / f"{name}.png" for name in pictures}
    for path, picture in zip(shown.values(), pictures.values(), strict=True):
        save_png(path, picture)
    if plots:
        shown["Plots"] = save_panels(folder / "report.png", plots, title + note, columns=columns)
    replace_text(folder / "report.html", page(figures, shown, lines))
