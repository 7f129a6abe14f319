"""Open-loop evaluation: errors of a dream from context frames and recorded actions, compared with baselines.

The competitors predict the same windows of held-out episodes:

==================  ============================================================================================
reconstruction      the reconstruction of the true frame, an upper limit for the dream
dream               the dream at temperature 0
dream_sampled       one sample at temperature 1; its squared error is larger because samples are not averages
dream_mean          the mean of several samples at temperature 1, which estimates the expected frame
shuffled            as ``dream``, but with the actions of another window, to measure the effect of actions
last_frame          the last seen frame, repeated
last_frame_coded    the reconstruction of the last seen frame, repeated
==================  ============================================================================================
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.evaluation.metrics import bootstrap, decibels, mean_interval, mse, ssim
from worldmodel.types import Segment
from worldmodel.world import WorldModel

Progress = Callable[[str, int, int], None]
"""Called with the name of the work, the amount done, and the total."""


def silent(name: str, done: int, total: int) -> None:
    """Ignore progress."""


DREAMS = {"dream": 0.0, "dream_sampled": 1.0, "dream_mean": 1.0, "shuffled": 0.0}  # their temperatures
COMPETITORS = ("reconstruction", *DREAMS, "last_frame", "last_frame_coded")


@dataclasses.dataclass(frozen=True)
class OpenLoop:
    """Errors of each competitor, and the frames of some windows."""

    squared_error: dict[str, np.ndarray]  # (W, H) mean squared error of a frame, in squared intensity values
    similarity: dict[str, np.ndarray]  # (W, H) SSIM
    shown: Tensor  # (P,) int64: the windows whose frames are kept
    seen: Tensor  # (P, T0, C, *size) uint8
    truth: Tensor  # (P, H, C, *size) uint8
    pictures: dict[str, Tensor]  # each (P, H, C, *size) uint8
    actions: Tensor  # (W, H) int64
    shuffled_actions: Tensor  # (W, H) int64


def derangement(count: int, generator: torch.Generator) -> Tensor:
    """A random permutation (count,) without a fixed point: one cycle through all (Sattolo 1986)."""
    order = list(range(count))
    for i in range(count - 1, 0, -1):
        j = int(torch.randint(i, (1,), generator=generator))
        order[i], order[j] = order[j], order[i]
    return torch.tensor(order)


def reconstruct(world: WorldModel, frames: Tensor) -> Tensor:
    """Frames (..., C, *size) uint8 → their reconstructions, of the same shape, uint8 on the host."""
    flat = frames.flatten(0, -len(world.spec.frame_shape) - 1).to(world.device)
    return world.tokenizer.decode(world.tokenizer.encode(flat)).cpu().reshape(frames.shape)


def open_loop(
    world: WorldModel,
    windows: Segment,
    context: int,
    *,
    top_k: int | None = None,
    seed: int = 0,
    samples: int | None = None,
    batch: int = 64,
    pictures: int = 6,
    progress: Progress = silent,
) -> OpenLoop:
    """Compare on ``windows`` (W ≥ 2 windows of context + H valid frames). The first ``context`` frames are seen.

    ``shuffled`` gives every window the future actions of another (a derangement of the windows); the actions of
    the seen frames are not shuffled. ``samples``: number of dreams of which ``dream_mean`` is the mean; None: it is
    left out. ``top_k`` applies to the dreams at temperature 1.
    """
    assert windows.frames is not None
    frames, total = windows.frames, len(windows.actions)
    if total < 2:
        raise ValueError("shuffling actions among windows needs at least two windows")
    future = windows.actions[:, context:]
    shuffled = future[derangement(total, torch.Generator().manual_seed(seed))]
    # The mean has its own noise, so that the other dreams are the same without it.
    noise, noise_of_mean = (torch.Generator(world.device).manual_seed(seed + i) for i in range(2))
    names = [name for name in DREAMS if samples or name != "dream_mean"]
    errors, similar, shown = (collections.defaultdict[str, list[Any]](list) for _ in range(3))
    chosen = torch.linspace(0, total - 1, min(pictures, total)).long()  # spread over all episodes
    for start in range(0, total, batch):
        rows = slice(start, start + batch)
        seen, truth = frames[rows, :context], frames[rows, context:]
        last = seen[:, -1:]
        predictions = {"reconstruction": reconstruct(world, truth), "last_frame": last.expand_as(truth)}
        predictions["last_frame_coded"] = reconstruct(world, last).expand_as(truth)
        for i, name in enumerate(names):
            actions = (shuffled if name == "shuffled" else future)[rows]
            known = seen, actions, windows.actions[rows, :context]
            count, generator = (samples, noise_of_mean) if samples and name == "dream_mean" else (1, noise)
            options = {"temperature": DREAMS[name], "top_k": top_k if DREAMS[name] else None, "generator": generator}
            predictions[name] = _dreamt(world, known, count, batch, options)
            progress("open loop", start * len(names) + (i + 1) * len(seen), total * len(names))
        for name, prediction in predictions.items():
            errors[name].append(mse(prediction, truth).numpy())
            similar[name].append(ssim(prediction, truth).numpy())
            shown[name].append(prediction[chosen[(chosen >= start) & (chosen < start + batch)] - start].clone())
    error, similarity = ({name: np.concatenate(parts) for name, parts in each.items()} for each in (errors, similar))
    kept = {name: torch.cat(parts) for name, parts in shown.items()}
    seen, truth = frames[chosen, :context], frames[chosen, context:]
    return OpenLoop(error, similarity, chosen, seen, truth, kept, future, shuffled)


def _dreamt(
    world: WorldModel, known: tuple[Tensor, Tensor, Tensor], samples: int, batch: int, options: dict[str, Any]
) -> Tensor:
    """The mean frames (B, H, C, *size) uint8 of ``samples`` dreams of each row, at most ``batch`` dreams at a time.

    ``known``: seen frames (B, T0, C, *size), future actions (B, H), actions (B, T0) that led to the seen frames.
    """
    means = []
    for seen, actions, led_by in zip(*(part.split(max(1, batch // samples)) for part in known), strict=True):
        dream = world.imagine(seen, actions, seen_actions=led_by, samples=samples, **options)
        means.append(dream.mean_frames(samples).cpu())
    return torch.cat(means)


def summary(result: OpenLoop, steps: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    """Curves with 95 % intervals over windows, a table at ``steps`` (1-based), and the dream's paired gains there."""
    horizon = result.actions.shape[1]
    at = np.array([step for step in steps if step <= horizon]) - 1
    quality = {name: decibels(error) for name, error in result.squared_error.items()}

    def gain(rival: str, dream: str = "dream") -> dict[str, Any]:
        mine, theirs = result.squared_error[dream][:, at], result.squared_error[rival][:, at]
        of_mean = bootstrap(lambda a, b: decibels(a.mean(0)) - decibels(b.mean(0)), mine, theirs, seed=seed)
        likeness = mean_interval((result.similarity[dream] - result.similarity[rival])[:, at], seed)
        return {
            "psnr": mean_interval((quality[dream] - quality[rival])[:, at], seed).to_json(),
            "psnr_of_mean_mse": of_mean.to_json(),
            "ssim": likeness.to_json(),
        }

    same = (result.actions == result.shuffled_actions).float().mean().item()
    return {
        "windows": len(result.actions),
        "horizon": horizon,
        "steps": (at + 1).tolist(),
        "shuffled_actions_equal_to_true": same,
        "curves": {
            name: {
                "psnr": mean_interval(quality[name], seed).to_json(),
                "psnr_of_mean_mse": bootstrap(lambda e: decibels(e.mean(0)), error, seed=seed).to_json(),
                "ssim": mean_interval(result.similarity[name], seed).to_json(),
            }
            for name, error in result.squared_error.items()
        },
        "gain_over": {rival: gain(rival) for rival in ("last_frame", "last_frame_coded", "shuffled")},
        "mean_gain_over_last_frame": gain("last_frame", "dream_mean") if "dream_mean" in quality else None,
    }
