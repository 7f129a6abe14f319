"""Return dreamt against return obtained: what a world model expects of the actions that an agent really took."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from worldmodel.agents.returns import reach
from worldmodel.agents.statistics import rank_interval

from worldmodel.types import Episode

DREAMS_AT_ONCE = 32


class Imagines(Protocol):
    """What is asked of a world model: :meth:`worldmodel.world.WorldModel.imagine`."""

    def imagine(
        self,
        frames: Tensor,
        actions: Tensor,
        *,
        seen_actions: Tensor,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Window:
    """Up to H steps of an episode, and what was seen before the first of them."""

    episode: int
    start: int  # number of the last frame that is seen; the first reward is that of the step that leaves it
    seen: np.ndarray  # (T0, C, *size) uint8
    seen_actions: np.ndarray  # (T0,) int64: the action that led to each seen frame
    actions: np.ndarray  # (h,) int64: what was done from the last seen frame on
    obtained: float  # the sum of the rewards of these actions


@dataclasses.dataclass(frozen=True)
class Foresight:
    """Sums of rewards, dreamt and obtained, of n windows."""

    episodes: np.ndarray  # (n,) int64: the episode that each is of
    starts: np.ndarray  # (n,) int64
    lengths: np.ndarray  # (n,) int64: steps
    dreamt: np.ndarray  # (n,) float64
    obtained: np.ndarray  # (n,) float64

    def to_json(self, horizon: int, seed: int = 0) -> dict[str, Any]:
        """Rank correlations with intervals over episodes: of all windows, of those with which episodes begin, and of
        those of full length, which do not agree merely because both sums end where the episode does."""
        kinds = {
            "all": np.ones(len(self.starts), bool),
            "first": self.starts == 0,
            "full_length": self.lengths == horizon,
        }
        found = {}
        for name, rows in kinds.items():
            pairs = self.dreamt[rows], self.obtained[rows], self.episodes[rows]
            rho = rank_interval(*pairs, seed) if rows.any() else None
            found[name] = {"windows": int(rows.sum()), "rank_correlation": None if rho is None else rho.to_json()}
        columns = {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}
        return {"horizon": horizon, **found, "pairs": columns}


def windows(episode: Episode, number: int, context: int, horizon: int, count: int, seed: int) -> list[Window]:
    """``count`` windows of an episode: one at its first frame, the others from frames drawn among all the rest.

    ``context``: most frames that are seen. A window ends with the episode, or after ``horizon`` steps.
    """
    rng = np.random.default_rng((seed, number, 1))
    others = rng.permutation(np.arange(1, episode.steps))[: count - 1]
    found = []
    for start in [0, *sorted(int(start) for start in others)]:
        first, last = max(0, start + 1 - context), min(start + horizon, episode.steps)
        found.append(
            Window(
                episode=number,
                start=start,
                seen=episode.frames[first : start + 1].copy(),
                seen_actions=episode.actions[first : start + 1].copy(),
                actions=episode.actions[start + 1 : last + 1].copy(),
                obtained=float(episode.rewards[start + 1 : last + 1].sum(dtype=np.float64)),
            )
        )
    return found


def foresee(
    world: Imagines,
    given: Sequence[Window],
    temperature: float = 1.0,
    seed: int = 0,
    told: Callable[[int], None] = lambda done: None,
) -> Foresight:
    """Dream every window under its own actions, many at once, and sum up what is expected of them: each reward times
    the probability that none of the frames before it was the end, as planners count it."""
    dreamt = np.zeros(len(given))
    generator = torch.Generator().manual_seed(seed)
    done = 0
    for rows in _alike(given):
        part = [given[row] for row in rows]
        actions = np.zeros((len(part), max(len(window.actions) for window in part)), np.int64)
        taken = np.zeros(actions.shape, bool)
        for row, window in enumerate(part):
            actions[row, : len(window.actions)], taken[row, : len(window.actions)] = window.actions, True
        frames = torch.from_numpy(np.stack([window.seen for window in part]))
        seen_actions = torch.from_numpy(np.stack([window.seen_actions for window in part]))
        dream = world.imagine(
            frames,
            torch.from_numpy(actions),
            seen_actions=seen_actions,
            temperature=temperature,
            generator=generator,
        )
        earned = (dream.rewards.double() * reach(1 - dream.ends.double())).cpu().numpy()
        dreamt[rows] = np.where(taken, earned, 0).sum(1)
        done += len(rows)
        told(done)
    facts = [(window.episode, window.start, len(window.actions)) for window in given]
    episodes, starts, lengths = np.array(facts, np.int64).reshape(-1, 3).T
    return Foresight(episodes, starts, lengths, dreamt, np.array([window.obtained for window in given]))


def _alike(given: Sequence[Window]) -> Iterator[list[int]]:
    """Windows that see the same number of frames, the longest first, in handfuls."""
    order = sorted(range(len(given)), key=lambda row: (len(given[row].seen), -len(given[row].actions)))
    while order:
        seen = len(given[order[0]].seen)
        part = [row for row in order[:DREAMS_AT_ONCE] if len(given[row].seen) == seen]
        yield part
        order = order[len(part) :]
