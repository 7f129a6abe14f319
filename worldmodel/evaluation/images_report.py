"""The report of an images run: a table, plots, rows of pictures and one HTML page; comparison of several runs."""

import itertools
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from worldmodel.errors import RunError
from worldmodel.evaluation.figures import usage_panel
from worldmodel.evaluation.report import number, write_report
from worldmodel.media import gallery
from worldmodel.media.plots import COLOURS, Bar, Panel, save_panels

Table = dict[str, list[dict[str, Any]]]  # stem → the rows of its runs, flat

DEFINITIONS = {
    "held out": "All frames that are not used for training, each scored once.",
    "bits/dim": "A bound on -log2 p(frame) over the number of sub-pixels, from exact probabilities of the 256 values: "
    "the bits of the frame given its latents (reconstruction) plus those of the latents. The posterior of "
    "a VQ-VAE is deterministic: N log2 K bits under the uniform prior. A random posterior counts KL(q, prior); with S "
    "samples the bound is the importance-weighted one, -log2 of the mean of p(x, z) / q(z | x) over S draws of z.",
    "learned prior": "An autoregressive prior, fitted to the latents of training frames only, in place of the fixed "
    "one. It is conditioned on the class, if any, which saves at most log2(classes) bits a frame.",
    "likeliest codes": "The most probable codes instead of a random posterior; the bound is that of a VQ-VAE.",
    "grid": "With a second tokenizer: -log2 p(grid of the first | codes of the second) plus the bits of these.",
    "class": "The codes of each frame are scored under every class. The information of its class is "
    "log2 p(codes | class) minus log2 of the mean over classes, at most log2(classes). Recognised: its class has the "
    "highest likelihood.",
    "psnr": "10 log10(255² / MSE) of each uint8 frame, then the mean over frames.",
    "factor": "Bits of the raw frame over N log2 K, the bits of its codes under the uniform prior.",
    "codes used": "Share of the codes that occur in the held-out frames, and exp of the entropy of their frequencies; "
    "means over the codebooks where there are several.",
    "intervals": "95 %, percentile bootstrap, 1000 resamples of frames.",
}


def lines(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value); an empty value heads a section."""
    result = [
        (f"{figures['frames']:,} held-out frames of {figures['dimensions']:,} sub-pixels", ""),
        ("reconstruction PSNR (mean over frames)", number(figures["psnr"]) + " dB"),
        ("reconstruction SSIM", number(figures["ssim"], 3)),
    ]
    if grid := figures.get("grid"):
        shape = " + ".join("×".join(map(str, level)) for level in grid["levels"])
        bits, usage = f"{grid['bits']:,.0f} bits, a factor {grid['factor']:.2f}", figures["usage"]
        result.append(("codes of a frame", f"{shape} of {grid['codes']}: {bits}"))
        result.append(("codes used", f"{usage['share']:.1%}, perplexity {usage['perplexity']:.0f}"))
    if prior := figures.get("prior"):
        result.append(("prior, bits per frame", number(prior["bits_per_frame"], 1)))
        saved = f"{prior['saved_per_code']:.3f} saved of {prior['bits_per_code_uniform']:.2f}"
        result.append(("prior, bits per code", f"{prior['bits_per_code']:.3f}, {saved}"))
    if classes := figures.get("classes"):
        result.append(("information of the class (or caption), bits a frame", number(classes["bits"])))
        correct = f"{number(classes['recognised'])}, chance {classes['chance']:.2f}"
        result.append(("class with the highest likelihood is correct", correct))
    if scene := figures.get("scene"):
        uniform = f"{scene['bits_uniform']:,.0f} bits uniform"
        result.append((f"Grid of the first tokenizer, {scene['codes']} codes: {uniform}", ""))
        for name, what in (("uniform", "fixed prior"), ("learned", "learned prior")):
            if name in scene:
                each = scene[name]["value"] / scene["codes"]
                result.append((f"bits of the grid, {what}", f"{number(scene[name], 1)}, {each:.3f} a code"))
    if figures["bits_per_dim"]:
        result.append(("Bits per dimension", ""))
        for row in figures["bits_per_dim"]:
            parts = f"{row['reconstruction']:.3f} reconstruction + {row['latents']:.3f} latents"
            result.append((row["name"], f"{number(row['total'], 3)} = {parts}"))
    return result


def panels(figures: dict[str, Any]) -> list[Panel]:
    """Bars of the bounds and of their parts, use of the codes."""
    result = []
    if figures["bits_per_dim"]:
        bars: dict[str, Bar] = {}
        parts: dict[str, Bar] = {}
        for row, colour in zip(figures["bits_per_dim"], itertools.cycle(COLOURS), strict=False):
            name = row["name"].replace(", ", "\n")
            bars[name] = Bar.of(row["total"], colour)
            parts |= {f"{part}\n{name}": Bar(row[part], colour=colour) for part in ("reconstruction", "latents")}
        result += [Panel("Bits per dimension", bars), Panel("Its parts", parts)]
    if prior := figures.get("prior"):
        bar = {"learned prior": Bar(prior["bits_per_code"])}
        result.append(Panel("Bits per code", bar, mark=prior["bits_per_code_uniform"], mark_name="uniform"))
    if usage := figures.get("usage"):
        of = f", {len(usage['books'])} codebooks" if len(usage["books"]) > 1 else ""
        title = f"Codes used: {usage['share']:.0%}{of}, perplexity {usage['perplexity']:.0f}"
        result.append(usage_panel(title, usage["books"]))
    return result


def save(figures: dict[str, Any], rows: Sequence[tuple[str, Tensor]], folder: Path) -> None:
    """Write ``metrics.json``, ``report.png``, ``pictures.png`` and ``report.html``."""
    pictures = {"pictures": gallery(rows, title=f"{figures['run']} · {figures['environment']}")}
    write_report(folder, {**figures, "definitions": DEFINITIONS}, lines(figures), panels(figures), pictures)


def read_bounds(runs: Sequence[Path]) -> Table:
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
            remedy = f"measure the run: python -m worldmodel.evaluate run={run.name}"
            raise RunError(f"{path} cannot be read; {remedy}") from error
        if not figures.get("bits_per_dim"):
            raise RunError(f"{run.name} has no bits per dimension, because its decoder has no exact likelihood")
        mine = tuple(figures.get(name) for name in ("environment", "frames", "dimensions"))
        if facts not in (None, mine):
            raise RunError(f"{run.name} was measured on other frames than {runs[0].name}: {mine}, not {facts}")
        facts = mine
        table.setdefault(re.sub(r"-\d+$", "", run.name), []).extend(figures["bits_per_dim"])
    return table


def _bounds(table: Table) -> list[tuple[str, str, list[float], list[float]]]:
    """(system, bound, total of each run, reconstruction of each run) in the order of the runs."""
    result = []
    for stem, figures in table.items():
        for name in dict.fromkeys(row["name"] for row in figures):
            same = [row for row in figures if row["name"] == name]
            totals, parts = [row["total"]["value"] for row in same], [row["reconstruction"] for row in same]
            result.append((stem, name, totals, parts))
    return result


def compared_lines(table: Table) -> list[tuple[str, str]]:
    """Lines for :func:`worldmodel.evaluation.report.table`; ± is the standard deviation over runs."""
    result = [("Bits per dimension, held out", "")]
    for stem, name, totals, parts in _bounds(table):
        spread = f" ± {statistics.stdev(totals):.3f}" if len(totals) > 1 else ""
        mean, part = statistics.mean(totals), statistics.mean(parts)
        runs = f" ({len(totals)} runs)" if len(totals) > 1 else ""
        result.append((f"{stem}, {name}", f"{mean:.3f}{spread} = {part:.3f} + {mean - part:.3f} latents{runs}"))
    return result


def save_chart(table: Table, path: Path) -> Path:
    """The bar chart; whiskers reach from the lowest to the highest run."""
    bars = {}
    stems = list(table)
    for stem, name, totals, _ in _bounds(table):
        if "likeliest" in name:  # too loose a bound for the scale of the chart
            continue
        label = f"{stem}\n{name.replace(', ', chr(10))}"
        low, high = (min(totals), max(totals)) if len(totals) > 1 else (None, None)
        bars[label] = Bar(statistics.mean(totals), low, high, COLOURS[stems.index(stem) % len(COLOURS)])
    panel = Panel("Bits per dimension of held-out images (lower is better)", bars)
    return save_panels(path, [panel], columns=1, width=max(4.2, 1.15 * len(bars)))
