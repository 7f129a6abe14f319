"""Evaluation one step ahead, given the true past: reconstruction, codes, likelihood, rewards and ends."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.evaluation.metrics import Interval, bits, decibels, detection, mse, ratio_of_sums, ssim
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.types import Episode
from worldmodel.world import WorldModel


@dataclasses.dataclass(frozen=True)
class OneStep:
    """Scores of n frames in the order of the episodes; index 0 of an episode is the frame of its reset."""

    window: np.ndarray  # (n,) int64: the window in which a frame was scored, the unit of resampling
    step: np.ndarray  # (n,) int64: index of the frame in its episode
    squared_error: np.ndarray  # (n,) of the reconstruction, squared intensity values
    similarity: np.ndarray  # (n,) SSIM of the reconstruction
    nats: np.ndarray  # (n,) -log p(codes | true past, actions)
    nats_shuffled: np.ndarray  # (n,) the same with the episode's actions in another order
    rewards: np.ndarray  # (n,) received on arriving at the frame
    predicted_rewards: np.ndarray  # (n,)
    terminated: np.ndarray  # (n,) bool
    end_probabilities: np.ndarray  # (n,) probability
    truncated: int  # episodes that were cut off instead of ended
    code_counts: np.ndarray  # (K,)


def one_step(
    world: WorldModel,
    episodes: Iterable[Episode],
    context: int,
    length: int,
    total_frames: int,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> OneStep:
    """Score the frames of ``episodes`` until ``total_frames`` are done, each once.

    Episodes are covered by windows of ``length`` frames whose first ``context`` frames are context only, except at the
    start of an episode. Thus all later frames are predicted from at least ``context`` frames.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[dict[str, np.ndarray]] = []
    counts = torch.zeros(world.tokenizer.num_codes, dtype=torch.int64)
    windows = frames_done = truncated = 0
    for episode in episodes:
        if frames_done >= total_frames:
            break
        codes, measured = _tokenize(world, episode)
        counts += torch.bincount(codes.flatten(), minlength=len(counts))
        actions = torch.from_numpy(episode.actions)
        order = 1 + torch.randperm(episode.steps, generator=generator)  # the condition at index 0 stays
        shuffled = torch.cat([actions[:1], actions[order]])
        measured |= _predict(world, codes, actions, shuffled, context, length)
        measured["window"] += windows
        windows = int(measured["window"].max()) + 1
        measured["step"] = steps = np.arange(len(codes))
        measured["rewards"] = episode.rewards.astype(np.float64)
        measured["terminated"] = (steps == episode.steps) & episode.terminated
        truncated += episode.truncated and not episode.terminated
        parts.append(measured)
        frames_done += len(codes)
        progress("one step ahead", min(frames_done, total_frames), total_frames)
    if not parts:
        raise ValueError("no episode to score")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return OneStep(**joined, truncated=truncated, code_counts=counts.numpy())


@torch.inference_mode()
def _tokenize(world: WorldModel, episode: Episode) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Codes (T, *grid) int64 on the host, and the errors of the reconstruction."""
    results = []
    for part in torch.from_numpy(np.array(episode.frames)).split(256):
        grid = world.tokenizer.encode(part.to(world.device))
        pictures = world.tokenizer.decode(grid).cpu()
        results.append((grid.cpu(), mse(pictures, part), ssim(pictures, part)))
    codes, errors, similar = map(torch.cat, zip(*results, strict=True))
    return codes, {"squared_error": errors.numpy(), "similarity": similar.numpy()}


def _tiles(total: int, context: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(start, first scored, end) of windows that score each of ``total`` frames once, as long as possible."""
    done = 0
    while done < total:
        end = min(total, max(done - context, 0) + length)
        yield max(0, end - length), done, end
        done = end


@torch.inference_mode()
def _predict(
    world: WorldModel, codes: Tensor, actions: Tensor, shuffled: Tensor, context: int, length: int
) -> dict[str, np.ndarray]:
    """Scores of each frame of one episode from its codes (T, *grid), under ``actions`` and under ``shuffled``, (T,)."""
    tiles = list(_tiles(len(codes), context, length))
    size = min(length, len(codes))
    names = ("nats", "nats_shuffled", "predicted_rewards", "end_probabilities")
    scores: dict[str, np.ndarray] = {name: np.zeros(len(codes)) for name in names}
    scores["window"] = np.zeros(len(codes), dtype=np.int64)

    def cut(values: Tensor, group: list[tuple[int, int, int]]) -> Tensor:
        return torch.stack([values[start : start + size] for start, _, _ in group]).to(world.device)

    for first in range(0, len(tiles), 16):  # 16 windows at once, to limit the memory of logits
        group = tiles[first : first + 16]
        grids, acts = cut(codes, group), cut(actions, group)
        rewards, ends = world.prior.predict_outcomes(grids, acts)
        nats = (-world.prior.log_likelihood(grids, given) for given in (acts, cut(shuffled, group)))
        for name, value in zip(names, (*nats, rewards, ends), strict=True):
            for row, (start, scored, end) in zip(value.double().cpu().numpy(), group, strict=True):
                scores[name][scored:end] = row[scored - start : end - start]
        for i, (_, scored, end) in enumerate(group):
            scores["window"][scored:end] = first + i
    return scores


def reward_events(rewards: np.ndarray) -> tuple[float, np.ndarray] | None:
    """The usual reward, and a mask of events, which are all other rewards. None when no value makes up half of them.

    Values are compared to a thousandth of their range, for environments with small varying costs.
    """
    unit = max(float(np.ptp(rewards)), 1e-6) * 1e-3
    rounded = np.round(rewards / unit)
    values, counts = np.unique(rounded, return_counts=True)
    if counts.max() < len(rewards) / 2:
        return None
    common = rounded == values[counts.argmax()]
    return float(rewards[common].mean()), ~common


def summary(result: OneStep, context: int, vocabulary: int, positions: int, seed: int = 0) -> dict[str, Any]:
    """Numbers with 95 % intervals (windows resampled). Bits count frames with at least ``context`` frames before them,
    rewards and ends every frame that a step led to."""
    past, reached = result.step >= context, result.step >= 1

    def over(values: np.ndarray, chosen: np.ndarray) -> Interval:
        windows, places = np.unique(result.window[chosen], return_inverse=True)
        sums = np.bincount(places, weights=values[chosen], minlength=len(windows))
        return ratio_of_sums(sums, np.bincount(places, minlength=len(windows)), seed)

    everything = np.ones(len(result.step), dtype=bool)
    error = over(result.squared_error, everything)
    of_mean = Interval(decibels(error.value), decibels(error.high), decibels(error.low), error.samples)
    frame_bits, shuffled_bits = bits(result.nats), bits(result.nats_shuffled)
    return {
        "frames": len(result.step),
        "episodes": int((result.step == 0).sum()),
        "reconstruction": {
            "psnr": over(decibels(result.squared_error), everything).to_json(),
            "psnr_of_mean_mse": of_mean.to_json(),
            "ssim": over(result.similarity, everything).to_json(),
        },
        "prior": {
            "frames": int(past.sum()),
            "bits_per_frame": over(frame_bits, past).to_json(),
            "bits_per_code": over(frame_bits / positions, past).to_json(),
            "bits_per_code_shuffled_actions": over(shuffled_bits / positions, past).to_json(),
            "bits_per_code_actions_are_worth": over((shuffled_bits - frame_bits) / positions, past).to_json(),
            "bits_per_code_uniform": float(np.log2(vocabulary)),
        },
        "rewards": _reward_summary(result.rewards[reached], result.predicted_rewards[reached]),
        "ends": {
            "truncated_episodes": result.truncated,
            "mean_probability": float(result.end_probabilities[reached].mean()),
            **detection(result.end_probabilities[reached], result.terminated[reached], 0.5),
        },
    }


def _reward_summary(true: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    error = np.abs(predicted - true)
    scores: dict[str, Any] = {
        "mean_absolute_error": float(error.mean()),
        "mean_absolute_error_of_a_constant": float(np.abs(true - np.median(true)).mean()),
        "events": None,
    }
    split = reward_events(true)
    if split is None:
        return scores
    usual, events = split
    size = float(np.median(np.abs(true[events] - usual))) if events.any() else 0.0
    return scores | {
        "usual_reward": usual,
        "mean_absolute_error_at_events": float(error[events].mean()) if events.any() else None,
        # Predicted event: nearer to an event of median size than to the usual reward.
        "events": detection(np.abs(predicted - usual), events, size / 2),
    }
