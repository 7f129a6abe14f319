"""Long dreams: whether frames far from the last seen one still obey the actions and look like recorded ones.

Dreams start in held-out episodes and continue under recorded and under held actions. Their first and last frames are
compared with each other and with real frames. The last actions repeat the first ones, so that the first and last frames
of a dream are dreamt under the same actions.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation import inverse
from worldmodel.evaluation.inverse import InverseDynamics, Pairs
from worldmodel.evaluation.metrics import jensen_shannon, mean_interval, ratio_of_means
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.world import WorldModel

CELLS = 8  # patches per axis over whose means the contrast of a frame is taken
PLAIN = 0.05  # share of the real frames whose contrast counts as plain
SPLITS = 50  # random halves of the real runs
RUNS = 4  # maximum number of real runs, in multiples of the number of dreams
SHOWN = (1, 10, 100, 1000)  # frames of the picture
KINDS = ("recorded", "held")


@dataclasses.dataclass(frozen=True)
class Extent:
    """Number and length of the dreams. Raises :class:`ConfigError` for values that do not fit together."""

    dreams: int = 8  # under recorded actions, and as many under held actions
    steps: int = 1000
    span: int = 100  # number of frames at each end that are measured
    hold: tuple[int, int] = (4, 16)  # least and greatest number of steps for which a random action is held

    def __post_init__(self) -> None:
        if self.dreams < 1 or not 1 <= self.hold[0] <= self.hold[1]:
            raise ConfigError(f"{self.dreams} dreams, actions held for {self.hold} steps; give at least 1, ascending")
        if not 1 <= self.span <= self.steps // 2:
            ends = f"{self.span} frames at both ends of {self.steps} steps"
            raise ConfigError(f"{ends}; give from 1 to half of the steps")


@dataclasses.dataclass(frozen=True)
class Starts:
    """Where the dreams start, and the recorded steps that follow."""

    seen: Tensor  # (D, T0, C, *size) uint8
    seen_actions: Tensor  # (D, T0) int64
    actions: Tensor  # (D, H) int64: recorded actions, of further held-out episodes behind the end of the first one
    real: Pairs  # (D · span) recorded frames before and after the first actions


@dataclasses.dataclass(frozen=True)
class Real:
    """Runs of consecutive held-out frames."""

    counts: np.ndarray  # (R, K) int64: how often each code occurs in each run
    half: int  # number of runs that have as many frames as the ends of all dreams, at most half of the runs
    frames: int
    threshold: float  # contrast below which a frame counts as plain, in intensity values
    plainer: float  # share of the real frames that are plain: PLAIN, unless many are equal
    plainer_coded: float  # share of the reconstructions of the real frames that are plain

    def halves(self, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """:data:`SPLITS` random pairs of disjoint samples, the counts (K,) of each."""
        rng, half = np.random.default_rng(seed), self.half
        orders = [rng.permutation(len(self.counts)) for _ in range(SPLITS)]
        return [(self.counts[o[:half]].sum(0), self.counts[o[half : 2 * half]].sum(0)) for o in orders]


@dataclasses.dataclass(frozen=True)
class Long:
    """Figures, and the frames for a picture."""

    figures: dict[str, Any]
    shown: tuple[int, ...]  # steps of the frames that are kept; 0 is the last seen frame
    frames: dict[tuple[str, str], Tensor]  # of kind and temperature: (D, len(shown), C, *size) uint8


def contrast(frames: Tensor) -> Tensor:
    """Standard deviation of the means of 8×8 patches, mean over channels.

    (n, C, H, W) uint8 → (n,) in intensity values.
    """
    return F.adaptive_avg_pool2d(frames.float(), CELLS).flatten(2).std(2, correction=0).mean(1)


def recorded_starts(
    store: EpisodeStore, episodes: np.ndarray, context: int, extent: Extent, rng: np.random.Generator
) -> Starts:
    """Random starts spread over the episodes, and the recorded actions from there on, episode after episode.

    Raises :class:`DataError` when no episode has a step after ``context`` frames.
    """
    long_enough = rng.permutation(episodes[store.frame_counts[episodes] > context])
    if not len(long_enough):
        raise DataError(f"no held-out episode in {store.path} has a step after {context} frames")
    seen, actions, pairs = [], [], []
    for dream in range(extent.dreams):
        order = np.roll(long_enough, -(dream % len(long_enough)))
        first = int(rng.integers(store.frame_counts[order[0]] - context))
        frames, records = store.read(int(order[0]), first, first + context)
        seen.append((torch.tensor(frames), torch.tensor(records["action"].astype(np.int64))))
        steps: list[tuple[int, int]] = []  # episode and frame that an action leads to
        while len(steps) < extent.steps:
            for episode in order.tolist():
                begin = first + context if not steps else 1
                steps += [(episode, t) for t in range(begin, int(store.frame_counts[episode]))]
        read = [store.read(episode, t - 1, t + 1) for episode, t in steps[: extent.steps]]
        actions.append([int(records["action"][1]) for _, records in read])
        pairs += [frames for frames, _ in read[: extent.span]]
    acts = _repeat_first(torch.tensor(actions), extent.span)
    before, after = torch.tensor(np.stack(pairs)).unbind(1)
    real = Pairs(before, after, acts[:, : extent.span].flatten())
    first_frames, first_actions = (torch.stack(parts) for parts in zip(*seen, strict=True))
    return Starts(first_frames, first_actions, acts, real)


def held_actions(extent: Extent, present: Sequence[int], rng: np.random.Generator) -> Tensor:
    """(D, H) int64: random actions of ``present``, each held for a random number of steps."""
    rows = []
    for _ in range(extent.dreams):
        row: list[int] = []
        while len(row) < extent.steps:
            row += [int(rng.choice(present))] * int(rng.integers(extent.hold[0], extent.hold[1] + 1))
        rows.append(row[: extent.steps])
    return _repeat_first(torch.tensor(rows), extent.span)


def _repeat_first(actions: Tensor, span: int) -> Tensor:
    """Actions (D, H) whose last ``span`` are the first ones."""
    return torch.cat([actions[:, :-span], actions[:, :span]], 1)


@torch.inference_mode()
def real_frames(
    world: WorldModel, store: EpisodeStore, episodes: np.ndarray, extent: Extent, rng: np.random.Generator
) -> Real:
    """Codes and contrast of random runs of held-out frames that do not overlap, of ``span`` frames each, or of half of
    the longest episode if that is shorter."""
    length = max(1, min(extent.span, int(store.frame_counts[episodes].max()) // 2))
    places = [(int(e), t) for e in episodes for t in range(0, int(store.frame_counts[e]) - length + 1, length)]
    chosen = [places[i] for i in rng.permutation(len(places))[: RUNS * -(-extent.dreams * extent.span // length)]]
    counts, real, coded = [], [], []
    for episode, first in chosen:
        frames = torch.tensor(store.read(episode, first, first + length)[0])
        codes = world.tokenizer.encode(frames.to(world.device))
        counts.append(codes.flatten().bincount(minlength=world.tokenizer.num_codes).cpu().numpy())
        real.append(contrast(frames))
        coded.append(contrast(world.tokenizer.decode(codes).cpu()))
    shades = torch.cat(real)
    threshold = float(np.quantile(shades.numpy(), PLAIN))
    plain = (float((values < threshold).double().mean()) for values in (shades, torch.cat(coded)))
    half = max(1, min(extent.dreams * extent.span // length, len(chosen) // 2))
    return Real(np.stack(counts), half, len(shades), threshold, *plain)


def measure(
    world: WorldModel,
    store: EpisodeStore,
    episodes: np.ndarray,
    context: int,
    extent: Extent,
    temperatures: Sequence[float],
    classifier: InverseDynamics | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Long:
    """Dream from held-out ``episodes`` and compare; without a ``classifier``, not how far actions are obeyed."""
    rng = np.random.default_rng(seed)
    starts = recorded_starts(store, episodes, context, extent, rng)
    actions = torch.cat([starts.actions, held_actions(extent, starts.actions.unique().tolist(), rng)])  # (2 D, H)
    real = real_frames(world, store, episodes, extent, rng)
    halves = real.halves(seed)
    shown = tuple(sorted({0, extent.steps, *(step for step in SHOWN if step <= extent.steps)}))
    dreamt: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    pictures: dict[tuple[str, str], Tensor] = {}
    for number, heat in enumerate(temperatures):
        progress("long dreams", number, len(temperatures))
        chain = _dream(world, starts, actions, heat, seed)
        for kind, codes, given in zip(KINDS, chain.split(extent.dreams), actions.split(extent.dreams), strict=True):
            name = f"{heat:g}"
            dreamt[kind][name] = _compare(world, codes, given, extent, real, halves, classifier, seed)
            pictures[kind, name] = _decode(world, codes[:, list(shown)])
    progress("long dreams", len(temperatures), len(temperatures))
    count = len(world.spec.action_names)
    spread = np.array([jensen_shannon(*pair) for pair in halves])
    low, high = np.quantile(spread, [0.025, 0.975]).tolist()
    figures = {
        **dataclasses.asdict(extent),
        "real": {
            "frames": real.frames,
            "obeyed": float(inverse.read(classifier, starts.real, count).correct.mean()) if classifier else None,
            "distance": {"value": float(spread.mean()), "low": low, "high": high},
            "plainer": real.plainer,
            "plainer_coded": real.plainer_coded,
            "threshold": real.threshold,
        },
        "dreamt": dreamt,
    }
    return Long(figures, shown, pictures)


def _dream(world: WorldModel, starts: Starts, actions: Tensor, temperature: float, seed: int) -> Tensor:
    """Codes (2 D, 1 + H, *grid) of the last seen frames and of dreams from the starts, under recorded actions and then
    under held ones."""
    generator = torch.Generator(world.device).manual_seed(seed)
    seen, seen_actions = (torch.cat([part, part]) for part in (starts.seen, starts.seen_actions))
    dream = world.imagine(seen, actions, seen_actions=seen_actions, temperature=temperature, generator=generator)
    last = world.tokenizer.encode(seen[:, -1].to(world.device))
    return torch.cat([last[:, None], dream.codes], 1)


def _decode(world: WorldModel, codes: Tensor) -> Tensor:
    """Codes (D, n, *grid) → frames (D, n, C, *size) uint8 on the host."""
    return world.tokenizer.decode(codes.flatten(0, 1)).cpu().unflatten(0, codes.shape[:2])


def _compare(
    world: WorldModel,
    codes: Tensor,
    actions: Tensor,
    extent: Extent,
    real: Real,
    halves: Sequence[tuple[np.ndarray, np.ndarray]],
    classifier: InverseDynamics | None,
    seed: int,
) -> dict[str, Any]:
    """Figures of the first and last frames of dreams, codes (D, 1 + H, *grid), under actions (D, H)."""
    span, count, ends, hits = extent.span, len(world.spec.action_names), {}, {}
    for name, part in (("first", slice(None, span)), ("last", slice(-span, None))):
        chosen = codes[:, :-1][:, part], codes[:, 1:][:, part]  # before and after each action, (D, span, *grid)
        before, after = (_decode(world, grids).flatten(0, 1) for grids in chosen)
        plain = (contrast(after) < real.threshold).double().reshape(-1, span).mean(1).numpy()  # (D,) shares
        counts = chosen[1].flatten().bincount(minlength=world.tokenizer.num_codes).cpu().numpy()
        distance = float(np.mean([jensen_shannon(counts, half) for half, _ in halves]))
        ends[name] = {"obeyed": None, "distance": distance, "plainer": mean_interval(plain, seed).to_json()}
        if classifier is not None:
            reading = inverse.read(classifier, Pairs(before, after, actions[:, part].flatten()), count)
            hits[name] = reading.correct.reshape(-1, span).mean(1)  # (D,) shares
            ends[name]["obeyed"] = mean_interval(hits[name], seed).to_json()
    ratio = ratio_of_means(hits["last"], hits["first"], seed=seed).to_json() if hits else None
    return {**ends, "ratio": ratio}
