"""Compares dreamt returns, which a world model predicts for the actions of recorded episodes, with obtained returns."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from worldmodel.agents.actor_critic import reach
from worldmodel.evaluation.metrics import Interval, resampled
from worldmodel.types import Episode
from worldmodel.world import WorldModel

DREAMS_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Window:
    """Up to H steps of an episode, and the context frames before them."""

    episode: int
    start: int  # index of the last context frame; the first reward is that of the frame after it
    seen: np.ndarray  # (T0, C, *size) uint8
    seen_actions: np.ndarray  # (T0,) int64: the action that led to each context frame
    actions: np.ndarray  # (h,) int64: the actions after the last context frame
    obtained: float  # sum of the rewards of these actions


@dataclasses.dataclass(frozen=True)
class ReturnPairs:
    """Dreamt and obtained sums of rewards of n windows."""

    episodes: np.ndarray  # (n,) int64: the episode of each window
    starts: np.ndarray  # (n,) int64
    lengths: np.ndarray  # (n,) int64: steps
    dreamt: np.ndarray  # (n,) float64
    obtained: np.ndarray  # (n,) float64

    def to_json(self, horizon: int, seed: int = 0) -> dict[str, Any]:
        """Rank correlations with intervals over episodes, for all windows, those at the start of an episode, and those
        of full length, for which a common end of the episode cannot cause the correlation."""
        first, full_length = self.starts == 0, self.lengths == horizon
        kinds = {"all": np.ones(len(self.starts), bool), "first": first, "full_length": full_length}
        results = {}
        for name, rows in kinds.items():
            pairs = self.dreamt[rows], self.obtained[rows], self.episodes[rows]
            rho = rank_interval(*pairs, seed) if rows.any() else None
            results[name] = {"windows": int(rows.sum()), "rank_correlation": None if rho is None else rho.to_json()}
        columns = {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}
        return {"horizon": horizon, **results, "pairs": columns}


def episode_windows(episode: Episode, number: int, context: int, horizon: int, count: int, seed: int) -> list[Window]:
    """``count`` windows of an episode: one at its first frame, the others at random frames.

    ``context``: largest number of context frames. A window ends with the episode or after ``horizon`` steps.
    """
    rng = np.random.default_rng((seed, number, 1))
    others = rng.permutation(np.arange(1, episode.steps))[: count - 1]
    windows = []
    for start in [0, *sorted(int(start) for start in others)]:
        first, last = max(0, start + 1 - context), min(start + horizon, episode.steps)
        known, future = slice(first, start + 1), slice(start + 1, last + 1)
        seen, seen_actions = episode.frames[known].copy(), episode.actions[known].copy()
        obtained = float(episode.rewards[future].sum(dtype=np.float64))
        windows.append(Window(number, start, seen, seen_actions, episode.actions[future].copy(), obtained))
    return windows


def dream_returns(
    world: WorldModel,
    windows: Sequence[Window],
    temperature: float = 1.0,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> ReturnPairs:
    """Dream every window under its recorded actions, in batches. The dreamt return is the sum of the expected rewards,
    each weighted by the probability that no earlier frame was the end, as in planning."""
    dreamt = np.zeros(len(windows))
    generator = torch.Generator().manual_seed(seed)
    done = 0
    for rows in _batches(windows):
        part = [windows[row] for row in rows]
        actions = pad_sequence([torch.from_numpy(window.actions) for window in part], batch_first=True)
        taken = np.arange(actions.shape[1]) < np.array([[len(window.actions)] for window in part])
        frames = torch.from_numpy(np.stack([window.seen for window in part]))
        seen_actions = torch.from_numpy(np.stack([window.seen_actions for window in part]))
        dream = world.imagine(frames, actions, seen_actions=seen_actions, temperature=temperature, generator=generator)
        earned = (dream.rewards.double() * reach(1 - dream.ends.double())).cpu().numpy()
        dreamt[rows] = np.where(taken, earned, 0).sum(1)
        done += len(rows)
        on_progress(done)
    origins = [(window.episode, window.start, len(window.actions)) for window in windows]
    episodes, starts, lengths = np.array(origins, np.int64).reshape(-1, 3).T
    return ReturnPairs(episodes, starts, lengths, dreamt, np.array([window.obtained for window in windows]))


def _batches(windows: Sequence[Window]) -> Iterator[list[int]]:
    """Indices of windows in batches of equally many context frames, the longest windows first."""
    order = sorted(range(len(windows)), key=lambda row: (len(windows[row].seen), -len(windows[row].actions)))
    for _, group in itertools.groupby(order, key=lambda row: len(windows[row].seen)):
        rows = list(group)
        yield from (rows[at : at + DREAMS_AT_ONCE] for at in range(0, len(rows), DREAMS_AT_ONCE))


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's ρ: the correlation of the ranks; NaN if all values of one of them are equal."""
    from scipy.stats import rankdata  # takes a second to import

    x, y = (rankdata(values) - (len(values) + 1) / 2 for values in (one, other))
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else float("nan")


def rank_interval(one: np.ndarray, other: np.ndarray, clusters: np.ndarray, seed: int = 0) -> Interval | None:
    """Spearman's ρ of pairs (n,) with a bootstrap interval over clusters (n,), such as the episodes of the pairs.

    None if all values of one of them are equal.
    """
    value = rank_correlation(one, other)
    if np.isnan(value):
        return None
    members = [np.flatnonzero(clusters == cluster) for cluster in np.unique(clusters)]

    def draw(rng: np.random.Generator) -> float:
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        return rank_correlation(one[rows], other[rows])

    return resampled(draw, value, len(members), seed)
