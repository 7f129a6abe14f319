"""Evaluation of images runs: reconstruction and bits per sub-pixel.

For every held-out frame, with D sub-pixels of 8 bits, the bound on −log₂ p(frame) is the bits of the frame given its
latents plus the bits of the latents: under the fixed prior with which the autoencoder was trained (uniform over the
codes, or N(0, 1)), and under the learned prior, which was fitted to training frames only.
"""

import collections
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
from worldmodel.dreaming.models import ImageModel
from worldmodel.errors import DataError
from worldmodel.evaluation import images_report
from worldmodel.evaluation.metrics import CodeUsage, decibels, mean_interval, mse, ssim, usage_of
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.evaluation.report import heading
from worldmodel.priors import LatentPrior
from worldmodel.tokenizers import Autoencoder, Bound, Tokenizer
from worldmodel.tokenizers.scene import Stacked
from worldmodel.types import Segment, Spec

MAX_CLASSES = 32  # with more classes, frames are not scored under each of them
SAMPLES = (1, 50)  # importance samples of systems with a random posterior


@dataclasses.dataclass(frozen=True)
class Row:
    """One bound, in nats for each of M frames."""

    name: str
    total: np.ndarray  # (M,)
    reconstruction: np.ndarray  # (M,)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of M held-out frames."""

    rows: tuple[Row, ...]
    usage: tuple[CodeUsage, ...]  # of each codebook; none without codes
    squared_error: np.ndarray  # (M,) of the uint8 reconstruction, squared intensity values
    similarity: np.ndarray  # (M,) SSIM
    prior_nats: np.ndarray | None = None  # (M,) −log p(codes | condition); None without a prior over codes
    grid_nats: np.ndarray | None = None  # (M,) −log p(grid of the first tokenizer | codes); None without a second one
    class_nats: np.ndarray | None = None  # log p(codes | class) − log p(codes): by how much the class lowers prior_nats
    recognised: np.ndarray | None = None  # whether no other class makes the codes as likely


def score(
    model: Autoencoder, prior: LatentPrior | None, frames: Windows, seed: int, progress: Progress, batch: int = 64
) -> Scores:
    """Score every frame of ``frames`` (windows of length 1) once; nothing is left out."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    values, bounds = (collections.defaultdict[str, list[Any]](list) for _ in range(2))
    usage: Any = 0  # (codebooks, K) counts
    done = 0
    with torch.inference_mode():
        for segment in frames.cover(batch):
            raw, conditions = _frames(segment, device)
            x = raw.to(device)
            latents = model.encode(x)
            pictures = model.decode(latents).cpu()
            scores = {"squared_error": mse(pictures, raw), "similarity": ssim(pictures, raw)}
            if isinstance(model, Tokenizer):
                books = model.books(latents)
                usage += torch.stack([torch.bincount(book.flatten(), minlength=model.num_codes) for book in books])
                scores |= _code_scores(model, prior, x, latents, conditions)
            for name, value in scores.items():
                values[name].append(value.double().cpu())
            if model.likelihood.exact:
                for name, bound in _bounds(model, prior, x, conditions, latents, scores.get("prior_nats"), generator):
                    bounds[name].append(bound)
            done += len(raw)
            progress("held-out frames", done, len(frames))
    rows = [
        Row(name, *(torch.cat(parts).double().cpu().numpy() for parts in zip(*of, strict=True)))
        for name, of in bounds.items()
    ]
    used = map(CodeUsage, usage.cpu().numpy()) if isinstance(model, Tokenizer) else ()
    return Scores(tuple(rows), tuple(used), **{name: torch.cat(parts).numpy() for name, parts in values.items()})


def _code_scores(
    model: Tokenizer, prior: LatentPrior | None, x: Tensor, codes: Tensor, conditions: Tensor
) -> dict[str, Tensor]:
    """The scores of codes (B, *grid) by their names in :class:`Scores`, as far as model and prior have them."""
    grid_nats = model.grid_nats(x)
    scores = {} if grid_nats is None else {"grid_nats": grid_nats}
    if prior is not None:
        scores["prior_nats"] = -prior.log_likelihood(codes[:, None], conditions[:, None])[:, 0]
        if prior.sees_actions and 1 < prior.num_actions <= MAX_CLASSES:
            known = conditions >= 0
            codes, classes = codes[known, None], conditions[known, None]
            each = [prior.log_likelihood(codes, torch.full_like(classes, n))[:, 0] for n in range(prior.num_actions)]
            nats = torch.stack(each).double()  # (A, B)
            mean = nats.logsumexp(0) - math.log(prior.num_actions)
            scores["class_nats"] = nats.gather(0, classes.T)[0] - mean
            scores["recognised"] = nats.argmax(0) == classes[:, 0]
    return scores


def _frames(segment: Segment, device: torch.device) -> tuple[Tensor, Tensor]:
    """A window of one frame each → frames (B, C, H, W) uint8 on the host, conditions (B,)."""
    assert segment.frames is not None
    return segment.frames[:, 0], segment.actions[:, 0].to(device)


def _bounds(
    model: Autoencoder,
    prior: LatentPrior | None,
    x: Tensor,
    conditions: Tensor,
    latents: Tensor,
    code_nats: Tensor | None,
    generator: torch.Generator,
) -> Iterator[tuple[str, Bound]]:
    """Every bound that the model allows, by name; ``code_nats`` (B,): −log of the learned prior of the codes."""
    if not model.certain:
        for samples in SAMPLES:
            yield f"fixed prior, {samples} sample{'s' * (samples > 1)}", model.bound(x, generator, samples)
    if isinstance(model, Tokenizer):
        # The most probable codes of a random posterior give another valid bound.
        point = "" if model.certain else ", likeliest codes"
        reconstruction = model.given(x, latents)
        yield f"fixed prior{point}", Bound(reconstruction + model.uniform_nats(), reconstruction)
        if code_nats is not None:
            yield f"learned prior{point}", Bound(reconstruction + code_nats, reconstruction)
    elif prior is not None:
        yield "learned prior, 1 sample", prior.bound(model, x, conditions, generator)


def summary(scores: Scores, model: Autoencoder, seed: int = 0, classes: int = 1) -> dict[str, Any]:
    """The figures as plain numbers, with 95 % intervals (frames resampled); bits/dim are bits per sub-pixel."""
    dimensions = math.prod(model.frame_shape)
    unit = dimensions * math.log(2)
    figures: dict[str, Any] = {
        "frames": len(scores.squared_error),
        "dimensions": dimensions,
        "psnr": mean_interval(decibels(scores.squared_error), seed).to_json(),
        "psnr_of_mean_mse": float(decibels(scores.squared_error.mean())),
        "ssim": mean_interval(scores.similarity, seed).to_json(),
        "bits_per_dim": [
            {
                "name": row.name,
                "total": mean_interval(row.total / unit, seed).to_json(),
                "reconstruction": float(row.reconstruction.mean() / unit),
                "latents": float((row.total - row.reconstruction).mean() / unit),
            }
            for row in scores.rows
        ],
    }
    return figures | (_code_figures(scores, model, seed, classes) if isinstance(model, Tokenizer) else {})


def _code_figures(scores: Scores, model: Tokenizer, seed: int, classes: int) -> dict[str, Any]:
    """The figures of :func:`summary` for tokenizers."""
    count, each = math.prod(model.grid), math.log2(model.num_codes)
    figures: dict[str, Any] = {
        "grid": {
            "shape": list(model.grid),
            "levels": [list(level) for level in model.levels],
            "codes": model.num_codes,
            "bits": count * each,
            "factor": 8 * math.prod(model.frame_shape) / (count * each),
        },
        "usage": usage_of(scores.usage),
    }
    if scores.grid_nats is not None:
        assert isinstance(model, Stacked)
        positions = math.prod(model.first.grid)
        figures["scene"] = {"bits_uniform": positions * math.log2(model.first.num_codes), "codes": positions}
        costs = {"uniform": np.full_like(scores.grid_nats, model.uniform_nats()), "learned": scores.prior_nats}
        for name, cost in costs.items():
            if cost is not None:
                figures["scene"][name] = mean_interval((scores.grid_nats + cost) / math.log(2), seed).to_json()
    if scores.prior_nats is not None:
        per_code = scores.prior_nats.mean() / math.log(2) / count
        figures["prior"] = {
            "bits_per_frame": mean_interval(scores.prior_nats / math.log(2), seed).to_json(),
            "bits_per_code": float(per_code),
            "saved_per_code": float(each - per_code),
            "bits_per_code_uniform": each,
        }
    if scores.class_nats is not None and scores.recognised is not None and len(scores.class_nats):
        figures["classes"] = {
            "bits": mean_interval(scores.class_nats / math.log(2), seed).to_json(),
            "recognised": mean_interval(scores.recognised, seed).to_json(),
            "chance": 1 / classes,
        }
    return figures


def triptych(
    spec: Spec, model: Autoencoder, prior: LatentPrior | None, frames: Windows, count: int = 10, seed: int = 0
) -> list[tuple[str, Tensor]]:
    """Rows of pictures for :func:`worldmodel.media.gallery`: originals, reconstructions, samples of the same classes.

    Frames are evenly spaced among the held-out ones.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    every = max(1, len(frames) // count)
    chosen = list(itertools.islice(frames.cover(1), every // 2, None, every))[:count]
    with torch.inference_mode():
        raw, conditions = map(torch.cat, zip(*(_frames(segment, device) for segment in chosen), strict=True))
        shown = model.reconstructions(raw.to(device), generator)
        rows = [("original", raw), *((name, part.cpu()) for name, part in shown)]
        if prior is not None:
            rows.append(("sample", ImageModel(spec, model, prior).sample(conditions, generator).frames))
    return rows


def evaluate_images(
    run: Path, images: ImageModel, store: EpisodeStore, seed: int = 0, command: str = "", progress: Progress = silent
) -> dict[str, Any]:
    """Evaluate an images run on the held-out frames of ``store`` and write the report to its folder ``evaluation``.

    A model without a trained prior is evaluated without one. Raises :class:`DataError` when the data do not fit.
    """
    spec, model, prior = images.spec, images.model, images.prior
    if (store.spec.frame_shape, store.spec.action_names) != (spec.frame_shape, spec.action_names):
        raise DataError(f"{store.path} has other frames or classes than {run}; give another data=…")
    frames = Windows(store, store.require("held_out"))
    scores = score(model, prior, frames, seed, progress)
    figures = heading(run.name, spec.env_id, images.device, command)
    figures |= summary(scores, model, seed, len(spec.action_names))
    images_report.save(figures, triptych(spec, model, prior, frames, seed=seed), run / "evaluation")
    return figures
