"""What was found of frames on their own, for eyes: a table, a page of plots, rows of pictures, one HTML file."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from worldmodel.evaluation.figures import usage_panel
from worldmodel.evaluation.report import number, write_report
from worldmodel.media import gallery
from worldmodel.media.plots import COLOURS, Bar, Panel

DEFINITIONS = {
    "held out": "Every frame that was never trained on, each scored once; none is left out.",
    "bits/dim": "A bound on -log2 p(frame) over the number of sub-pixels, from exact probabilities of the 256 levels: "
    "the bits of the frame given its latents (reconstruction) plus those of the latents. A VQ-VAE's posterior is a "
    "point of no entropy: N log2 K bits under the uniform prior. A random posterior counts KL(q, prior); with S "
    "samples the bound is the importance-weighted one, -log2 of the mean of p(x, z) / q(z | x) over S draws of z.",
    "learned prior": "An autoregressive prior, fitted to the latents of training frames only, in place of the fixed "
    "one. It is told the class where there are classes; that is worth log2(classes) bits a frame at most.",
    "likeliest codes": "Of a system with a random posterior: a point instead, so that the bound is that of a VQ-VAE.",
    "grid": "Of a second stage: -log2 p(grid of the first | its few codes) plus the bits of these.",
    "class": "Each frame's codes are scored under every class. What its own tells is log2 p(codes | class) minus log2 "
    "of the mean over classes; it is log2(classes) at most. Recognised: no other class makes the codes likelier.",
    "psnr": "10 log10(255² / MSE) of each uint8 frame, then the mean over frames.",
    "factor": "Bits of the raw frame over N log2 K, the bits of its codes under the uniform prior.",
    "codes used": "Share of the codes that occur in the held-out frames, and exp of the entropy of their frequencies; "
    "means over the codebooks where there are several.",
    "intervals": "95 %, percentile bootstrap, 1000 resamples of frames.",
}


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value); an empty value heads a section."""
    told = [
        (f"{found['frames']:,} held-out frames of {found['dimensions']:,} sub-pixels", ""),
        ("reconstruction PSNR (mean over frames)", number(found["psnr"]) + " dB"),
    ]
    if found["ssim"]:
        told.append(("reconstruction SSIM", number(found["ssim"], 3)))
    if grid := found.get("grid"):
        shape = " + ".join("×".join(map(str, level)) for level in grid["levels"])
        told.append(
            ("codes of a frame", f"{shape} of {grid['codes']}: {grid['bits']:,.0f} bits, a factor {grid['factor']:.2f}")
        )
        usage = found["usage"]
        told.append(("codes used", f"{usage['share']:.1%}, perplexity {usage['perplexity']:.0f}"))
    if prior := found.get("prior"):
        told.append(("prior, bits per frame", number(prior["bits_per_frame"], 1)))
        told.append(
            (
                "prior, bits per code",
                f"{prior['bits_per_code']:.3f}, {prior['saved_per_code']:.3f} saved of "
                f"{prior['bits_per_code_uniform']:.2f}",
            )
        )
    if classes := found.get("classes"):
        told.append(("bits of a frame that its class (or caption) tells", number(classes["bits"])))
        told.append(
            (
                "class that makes the codes likeliest is the right one",
                f"{number(classes['recognised'])}, chance {classes['chance']:.2f}",
            )
        )
    if scene := found.get("scene"):
        told.append(
            (
                f"The first stage's grid of {scene['codes']} codes: {scene['bits_uniform']:,.0f} bits if all are equal",
                "",
            )
        )
        for name, what in (("uniform", "few codes at their full price"), ("learned", "few codes under their prior")):
            if name in scene:
                each = scene[name]["value"] / scene["codes"]
                told.append((f"bits of the grid, {what}", f"{number(scene[name], 1)}, {each:.3f} a code"))
    if found["bits_per_dim"]:
        told.append(("Bits per dimension", ""))
        for row in found["bits_per_dim"]:
            parts = f"{row['reconstruction']:.3f} reconstruction + {row['latents']:.3f} latents"
            told.append((row["name"], f"{number(row['total'], 3)} = {parts}"))
    return told


def panels(found: dict[str, Any]) -> list[Panel]:
    """Bars of the bounds and of their parts, use of the codes."""
    drawn = []
    if found["bits_per_dim"]:
        bars: dict[str, Bar] = {}
        parts: dict[str, Bar] = {}
        for row, colour in zip(found["bits_per_dim"], itertools.cycle(COLOURS), strict=False):
            name = row["name"].replace(", ", "\n")
            bars[name] = Bar.of(row["total"], colour)
            parts |= {f"{part}\n{name}": Bar(row[part], colour=colour) for part in ("reconstruction", "latents")}
        drawn += [Panel("Bits per dimension", bars), Panel("Its parts", parts)]
    if prior := found.get("prior"):
        bar = {"learned prior": Bar(prior["bits_per_code"])}
        drawn.append(Panel("Bits per code", bar, mark=prior["bits_per_code_uniform"], mark_name="uniform"))
    if usage := found.get("usage"):
        of = f", {len(usage['books'])} codebooks" if len(usage["books"]) > 1 else ""
        title = f"Codes used: {usage['share']:.0%}{of}, perplexity {usage['perplexity']:.0f}"
        drawn.append(usage_panel(title, usage["books"]))
    return drawn


def save(found: dict[str, Any], rows: Sequence[tuple[str, Tensor]], folder: Path) -> None:
    """Write ``metrics.json``, ``report.png``, ``pictures.png`` and ``report.html``."""
    pictures = {"pictures": gallery(rows, title=f"{found['run']} · {found['environment']}")}
    write_report(folder, {**found, "definitions": DEFINITIONS}, lines(found), panels(found), pictures)
