"""Frames on their own, without a past: how well they are coded, and what they cost in bits.

For every held-out frame, with D sub-pixels of 8 bits, the bound on −log₂ p(frame) is the bits of the frame given its
latents plus the bits of the latents: under the fixed prior with which the autoencoder was trained (uniform over the
codes, or N(0, 1)), and under the learned prior, which was fitted to training frames only.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import Windows
from worldmodel.dreaming.images import ImageModel
from worldmodel.errors import DataError
from worldmodel.evaluation import stills_report
from worldmodel.evaluation.metrics import SSIM_WINDOW, CodeUsage, decibels, mean_interval, mse, ssim, usage_of
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.evaluation.report import heading
from worldmodel.priors import LatentPrior
from worldmodel.tokenizers import Autoencoder, Bound, Tokenizer
from worldmodel.tokenizers.scene import Stacked
from worldmodel.types import Segment, Spec

MOST_CLASSES = 32  # with more, a frame is not scored under each of them
SAMPLES = (1, 50)  # importance samples of systems with a random posterior


@dataclasses.dataclass(frozen=True)
class Row:
    """One bound, in nats for each of M frames."""

    name: str
    total: np.ndarray  # (M,)
    reconstruction: np.ndarray  # (M,)


@dataclasses.dataclass(frozen=True)
class Stills:
    """What was measured of M held-out frames."""

    squared_error: np.ndarray  # (M,) of the uint8 reconstruction, squared grey levels
    similarity: np.ndarray | None  # (M,) SSIM; None for frames too small for its window
    usage: tuple[CodeUsage, ...]  # of each codebook; none without codes
    rows: tuple[Row, ...]
    prior_nats: np.ndarray | None  # (M,) −log p(codes | condition); None without a prior over codes
    grid_nats: np.ndarray | None = None  # (M,) −log p(grid of the first stage | codes); None without a second stage
    told: np.ndarray | None = (
        None  # (M,) nats by which the class lowers prior_nats: log p(codes | class) − log p(codes)
    )
    recognised: np.ndarray | None = None  # (M,) whether no other class makes the codes as likely


def score(
    model: Autoencoder,
    prior: LatentPrior | None,
    frames: Windows,
    batch: int = 64,
    seed: int = 0,
    progress: Progress = silent,
) -> Stills:
    """Score every frame of ``frames`` (windows of length 1) once; nothing is left out."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    parts: dict[str, list[Tensor]] = {}
    bounds: dict[str, list[tuple[Tensor, Tensor]]] = {}
    usage: list[Tensor] = []

    def keep(**values: Tensor | None) -> None:
        for name, value in values.items():
            if value is not None:
                parts.setdefault(name, []).append(value.double().cpu())

    done = 0
    with torch.inference_mode():
        for segment in frames.cover(batch):
            raw, conditions = _still(segment, device)
            x = raw.to(device)
            latents = model.encode(x)
            codes = latents if isinstance(model, Tokenizer) else None
            pictures = model.decode(latents).cpu()
            keep(squared_error=mse(pictures, raw))
            if min(raw.shape[-2:]) >= SSIM_WINDOW:
                keep(similarity=ssim(pictures, raw))
            nats = None
            if isinstance(model, Tokenizer) and codes is not None:
                found = [torch.bincount(book.flatten(), minlength=model.num_codes).cpu() for book in model.books(codes)]
                usage = [a + b for a, b in zip(usage, found, strict=True)] if usage else found
                if prior is not None:
                    nats = -prior.log_likelihood(codes[:, None], conditions[:, None])[:, 0]
                    if prior.sees_actions and 1 < prior.num_actions <= MOST_CLASSES:
                        keep(**_reading(prior, codes, conditions))
                keep(prior=nats, grid=model.grid_nats(x))
            if model.likelihood.exact:
                for name, bound in _bounds(model, prior, x, conditions, codes, nats, generator):
                    bounds.setdefault(name, []).append(
                        (bound.total.double().cpu(), bound.reconstruction.double().cpu())
                    )
            done += len(raw)
            progress("held-out frames", done, len(frames))
    joined = {name: torch.cat(values).numpy() for name, values in parts.items()}
    rows = [
        Row(name, *(torch.cat(values).numpy() for values in zip(*found, strict=True))) for name, found in bounds.items()
    ]
    return Stills(
        joined["squared_error"],
        joined.get("similarity"),
        tuple(CodeUsage(counts.numpy()) for counts in usage),
        tuple(rows),
        joined.get("prior"),
        joined.get("grid"),
        joined.get("told"),
        joined.get("recognised"),
    )


def _reading(prior: LatentPrior, codes: Tensor, conditions: Tensor) -> dict[str, Tensor]:
    """What classes tell of codes (B, *grid): ``told`` and ``recognised`` of the frames whose class is known."""
    known = conditions >= 0
    each = [
        prior.log_likelihood(codes[known, None], torch.full_like(conditions[known, None], number))[:, 0].double()
        for number in range(prior.num_actions)
    ]
    nats = torch.stack(each)  # (A, B)
    own = nats.gather(0, conditions[None, known])[0]
    return {
        "told": own - (nats.logsumexp(0) - math.log(prior.num_actions)),
        "recognised": nats.argmax(0) == conditions[known],
    }


def _still(segment: Segment, device: torch.device) -> tuple[Tensor, Tensor]:
    """A window of one frame each → frames (B, C, H, W) uint8 on the host, conditions (B,)."""
    assert segment.frames is not None
    return segment.frames[:, 0], segment.actions[:, 0].to(device)


def _bounds(
    model: Autoencoder,
    prior: LatentPrior | None,
    x: Tensor,
    conditions: Tensor,
    codes: Tensor | None,
    code_nats: Tensor | None,
    generator: torch.Generator,
) -> Iterator[tuple[str, Bound]]:
    """Every bound that the model allows, by name; ``code_nats`` (B,): −log of the learned prior of the codes."""
    if not model.certain:
        for samples in SAMPLES:
            found = model.bound(x, generator, samples)
            yield f"fixed prior, {samples} sample{'s' * (samples > 1)}", found
    if codes is None and prior is not None:
        yield "learned prior, 1 sample", prior.bound(model, x, conditions, generator)
    if isinstance(model, Tokenizer) and codes is not None:
        # The most probable codes of a random posterior are a point, too, and so a bound of their own.
        point = "" if model.certain else ", likeliest codes"
        reconstruction = model.given(x, codes)
        yield f"fixed prior{point}", Bound(reconstruction + model.uniform_nats(), reconstruction)
        if code_nats is not None:
            yield f"learned prior{point}", Bound(reconstruction + code_nats, reconstruction)


def summary(found: Stills, model: Autoencoder, seed: int = 0, classes: int = 1) -> dict[str, Any]:
    """The figures as plain numbers, with 95 % intervals (frames resampled); bits/dim are bits per sub-pixel."""
    dimensions = math.prod(model.frame_shape)
    unit = dimensions * math.log(2)
    told: dict[str, Any] = {
        "frames": len(found.squared_error),
        "dimensions": dimensions,
        "psnr": mean_interval(decibels(found.squared_error), seed).to_json(),
        "psnr_of_mean_mse": float(decibels(found.squared_error.mean())),
        "ssim": None if found.similarity is None else mean_interval(found.similarity, seed).to_json(),
        "bits_per_dim": [
            {
                "name": row.name,
                "total": mean_interval(row.total / unit, seed).to_json(),
                "reconstruction": float(row.reconstruction.mean() / unit),
                "latents": float((row.total - row.reconstruction).mean() / unit),
            }
            for row in found.rows
        ],
    }
    if isinstance(model, Tokenizer):
        count, each = math.prod(model.grid), math.log2(model.num_codes)
        told["grid"] = {
            "shape": list(model.grid),
            "levels": [list(level) for level in model.levels],
            "codes": model.num_codes,
            "bits": count * each,
            "factor": 8 * dimensions / (count * each),
        }
        told["usage"] = usage_of(found.usage)
        if found.grid_nats is not None:
            assert isinstance(model, Stacked)
            first = model.first
            told["scene"] = {
                "bits_uniform": math.prod(first.grid) * math.log2(first.num_codes),
                "codes": math.prod(first.grid),
            }
            costs = {"uniform": np.full_like(found.grid_nats, model.uniform_nats()), "learned": found.prior_nats}
            for name, cost in costs.items():
                if cost is not None:
                    bits_of = (found.grid_nats + cost) / math.log(2)
                    told["scene"][name] = mean_interval(bits_of, seed).to_json()
        if found.prior_nats is not None:
            told["prior"] = {
                "bits_per_frame": mean_interval(found.prior_nats / math.log(2), seed).to_json(),
                "bits_per_code": float(found.prior_nats.mean() / math.log(2) / count),
                "saved_per_code": float(each - found.prior_nats.mean() / math.log(2) / count),
                "bits_per_code_uniform": each,
            }
        if found.told is not None and found.recognised is not None and len(found.told):
            told["classes"] = {
                "bits": mean_interval(found.told / math.log(2), seed).to_json(),
                "recognised": mean_interval(found.recognised, seed).to_json(),
                "chance": 1 / classes,
            }
    return told


def triptych(
    spec: Spec, model: Autoencoder, prior: LatentPrior | None, frames: Windows, count: int = 10, seed: int = 0
) -> list[tuple[str, Tensor]]:
    """Rows of pictures for :func:`worldmodel.media.gallery`: originals, reconstructions, samples of the same classes.

    Frames are taken evenly over the held-out ones, not chosen.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    every = max(1, len(frames) // count)
    chosen = list(itertools.islice(frames.cover(1), every // 2, None, every))[:count]
    with torch.inference_mode():
        stills = [_still(segment, device) for segment in chosen]
        raw, conditions = (torch.cat([still[part] for still in stills]) for part in range(2))
        shown = model.reconstructions(raw.to(device), generator)
        rows = [("original", raw), *((name, part.cpu()) for name, part in shown)]
        if prior is not None:
            rows.append(("sample", ImageModel(spec, model, prior).sample(conditions, generator).frames))
    return rows


def evaluate_stills(
    run: Path, images: ImageModel, store: EpisodeStore, seed: int = 0, command: str = "", progress: Progress = silent
) -> dict[str, Any]:
    """Measure a run of images on the held-out ones of ``store``; writes the report to its folder ``evaluation``.

    A model whose prior is not trained yet is measured without one. Raises :class:`DataError` when the data do not fit.
    """
    spec, model, prior = images.spec, images.model, images.prior
    if (store.spec.frame_shape, store.spec.action_names) != (spec.frame_shape, spec.action_names):
        raise DataError(f"{store.path} holds frames or classes of another kind than {run} knows; give another data=…")
    frames = Windows(store, "held_out")
    if not len(frames):
        raise DataError(f"{len(store)} episodes at {store.path}, none of them held out")
    found = {
        **heading(run.name, spec.env_id, images.device, command),
        **summary(score(model, prior, frames, seed=seed, progress=progress), model, seed, len(spec.action_names)),
    }
    stills_report.save(found, triptych(spec, model, prior, frames, seed=seed), run / "evaluation")
    return found
