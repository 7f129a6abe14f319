"""Windows cut from episodes, read from memory maps at the speed that training needs."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.codes import CodeStore
from worldmodel.data.records import STEP
from worldmodel.data.store import EpisodeStore, Split
from worldmodel.errors import DataError
from worldmodel.types import NO_ACTION, Segment

REACH = 20  # steps before a rare reward that count as near it


class Windows:
    """Windows of ``length`` frames over some episodes of a store, or over its cached codes.

    ``episodes``: a split's name or the indices of episodes. ``lead``: number of leading frames that are context only;
    near the beginning of an episode they are padding. ``whole``: windows do not extend beyond an episode, and shorter
    episodes are left out. ``rewarded``: share of the drawn windows that contain, after the lead, a frame at most
    ``REACH`` steps before a rare reward, whose distance from the median is more than half of the maximum. Actions and
    rewards of all frames are held in memory (14 bytes a frame); frames are read when needed.
    """

    def __init__(
        self,
        source: EpisodeStore | CodeStore,
        episodes: Split | Sequence[int] | np.ndarray = "all",
        length: int = 1,
        lead: int = 0,
        whole: bool = False,
        rewarded: float = 0.0,
    ):
        if not 0 <= lead < length:
            raise DataError(f"windows need at least one frame after a lead of {lead}; got length {length}")
        self.source, self.store = source, source if isinstance(source, EpisodeStore) else source.store
        self.length, self.lead, self.whole = length, lead, whole
        self.episodes = self.store.split(episodes) if isinstance(episodes, str) else np.asarray(episodes, np.int64)
        if self.episodes.size and not 0 <= self.episodes.min() <= self.episodes.max() < len(self.store):
            raise DataError(f"there are episodes 0 to {len(self.store) - 1} in {self.store.path}")
        self.sizes = self.store.frame_counts[self.episodes]  # (n,) frames of each episode
        self._first = np.concatenate([[0], np.cumsum(self.sizes)])  # (n + 1,) offset of each in the arrays below
        records = [self.store.records(int(episode)) for episode in self.episodes]
        steps = np.concatenate([np.empty(0, STEP), *records])
        self._actions = torch.from_numpy(steps["action"].astype(np.int64))
        self._rewards = torch.from_numpy(steps["reward"].copy())
        entries = [self.store.entries[episode] for episode in self.episodes]
        self._terminated = self._at_the_end([entry.terminated for entry in entries])
        self._truncated = self._at_the_end([entry.truncated for entry in entries])
        # (n,) windows of each episode that can be drawn: those inside it, or all that have a frame of it after the lead
        self._windows = np.maximum(self.sizes + (1 - length if whole else length - 1 - lead), 0)
        self._rewarded = 0.0 if whole else rewarded
        self._near_rewards = self._rows_near_rewards() if self._rewarded else np.empty(0, np.int64)

    def _rows_near_rewards(self) -> np.ndarray:
        """Rows of the frames near a rare reward, including the frame of the reward."""
        rewards = self._rewards.numpy()
        first = np.zeros(len(self), bool)
        first[self._first[:-1]] = True  # first frames have no reward
        if first.all():
            return np.empty(0, np.int64)
        distance = np.where(first, 0, np.abs(rewards - np.median(rewards[~first])))
        rare = np.flatnonzero((distance > distance.max() / 2) & (distance > 0))
        begins = self._first[np.searchsorted(self._first, rare, side="right") - 1]
        near = [np.arange(max(begin, row - REACH), row + 1) for begin, row in zip(begins, rare, strict=True)]
        return np.unique(np.concatenate([np.empty(0, np.int64), *near]))

    def _at_the_end(self, flags: list[bool]) -> Tensor:
        """Flags of episodes (n,) → flags of frames, false except for the last frame of an episode."""
        frames = np.zeros(len(self), bool)
        frames[self._first[1:] - 1] = flags
        return torch.from_numpy(frames)

    def __len__(self) -> int:
        """Number of frames in all episodes."""
        return int(self._first[-1])

    @property
    def drawable(self) -> bool:
        """Whether there is a window to draw."""
        return bool(self._windows.any())

    def require(self) -> None:
        """Raises :class:`DataError` when there is no episode to draw windows from, or none that is long enough."""
        if not len(self.episodes):
            held_out = f"{len(self.store)}, {len(self.store.split('held_out'))} of them held out"
            reason = f"no episode to take windows from: {self.store.path} has {held_out}"
            raise DataError(f"{reason}; python -m worldmodel.collect records more")
        if not self.drawable:
            longest = int(self.sizes.max(initial=0))
            reason = f"none of these episodes in {self.store.path} has {self.length} frames, the longest has {longest}"
            raise DataError(f"{reason}; choose training.tokenizer.length={longest} or less")

    def sample(self, batch: int, generator: torch.Generator) -> Segment:
        """``batch`` random windows; after the ``lead``, every frame is equally likely at every position.

        For that, windows may extend beyond both ends of an episode, with padding. Those that may not (``whole``) are
        all equally likely. Raises what :meth:`require` raises.
        """
        self.require()
        ends = np.cumsum(self._windows)
        drawn = torch.randint(int(ends[-1]), (batch,), generator=generator).numpy()
        which = np.searchsorted(ends, drawn, side="right")
        start = drawn - (ends - self._windows)[which] - (0 if self.whole else self.length - 1)
        if len(self._near_rewards):
            which, start = self._replace_some(which, start, generator)
        first = np.maximum(start, 0)
        count = np.minimum(start + self.length, self.sizes[which]) - first
        return self._cut(which, first, count, self.length, first - start)

    def _replace_some(
        self, which: np.ndarray, start: np.ndarray, generator: torch.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Episodes and starts of windows, a share of them replaced by windows near rare rewards."""
        batch = len(which)
        instead = torch.rand(batch, generator=generator).numpy() < self._rewarded
        rows = self._near_rewards[torch.randint(len(self._near_rewards), (batch,), generator=generator).numpy()]
        place = torch.randint(self.lead, self.length, (batch,), generator=generator).numpy()
        episode = np.searchsorted(self._first, rows, side="right") - 1
        return np.where(instead, episode, which), np.where(instead, rows - self._first[episode] - place, start)

    def fixed(self, count: int, length: int | None = None, seed: int = 0) -> Segment:
        """The same ``count`` windows for the same ``seed``: without padding, spread evenly over the episodes.

        There are fewer when the episodes contain fewer different windows. Raises :class:`DataError` when no
        episode has ``length`` frames (default: the length of these windows).
        """
        length = self.length if length is None else length
        available = self.sizes - length + 1  # (n,) whole windows in each episode
        eligible = np.flatnonzero(available > 0)
        if not len(eligible):
            longest = int(self.sizes.max(initial=0))
            raise DataError(f"no episode in {self.store.path} has {length} frames; the longest has {longest}")
        rng = np.random.default_rng(seed)
        share = np.zeros(len(self.sizes), np.int64)
        left = min(count, int(available[eligible].sum()))
        while left:  # each pass adds one window to every episode that has more
            for episode in rng.permutation(eligible)[:left]:
                if share[episode] < available[episode]:
                    share[episode] += 1
                    left -= 1
        which = np.repeat(np.arange(len(share)), share)
        starts = [rng.choice(available[episode], share[episode], replace=False) for episode in np.flatnonzero(share)]
        return self._cut(which, np.concatenate(starts).astype(np.int64), np.full(len(which), length), length)

    def cover(self, batch: int) -> Iterator[Segment]:
        """Every frame exactly once, in order: consecutive windows of each episode, the last one padded."""
        which = np.repeat(np.arange(len(self.sizes)), -(-self.sizes // self.length))
        first = np.concatenate([np.empty(0, np.int64), *(np.arange(0, size, self.length) for size in self.sizes)])
        for at in range(0, len(which), batch):
            part = slice(at, at + batch)
            count = np.minimum(self.length, self.sizes[which[part]] - first[part])
            yield self._cut(which[part], first[part], count, self.length)

    def _cut(
        self, which: np.ndarray, first: np.ndarray, count: np.ndarray, length: int, missing: np.ndarray | int = 0
    ) -> Segment:
        """Windows of ``count`` frames from frame ``first`` of the ``which``-th episodes, padded to ``length``.

        The first ``missing`` positions are padding, too.
        """
        place = np.arange(length) - np.broadcast_to(missing, len(which))[:, None]  # (B, T)
        valid = torch.from_numpy((place >= 0) & (place < count[:, None]))
        # Padding refers to the first or last frame of the window and is overwritten below.
        inside = np.clip(place, 0, count[:, None] - 1) + first[:, None]  # (B, T) frames of the episode
        rows = torch.from_numpy(self._first[which][:, None] + inside)
        frames = codes = None
        if isinstance(self.source, EpisodeStore):
            frames = self._frames(which, first, valid)
        else:
            episode_rows = self.source.starts[self.episodes[which]][:, None] + inside
            codes = torch.from_numpy(self.source.codes[episode_rows].astype(np.int64))
            codes *= valid.reshape(*valid.shape, *[1] * (codes.ndim - 2))
        actions = self._actions[rows].masked_fill_(~valid, NO_ACTION)
        rewards = self._rewards[rows].masked_fill_(~valid, 0.0)
        terminated, truncated = self._terminated[rows] & valid, self._truncated[rows] & valid
        return Segment(actions, rewards, terminated, truncated, valid, frames, codes)

    def _frames(self, which: np.ndarray, first: np.ndarray, valid: Tensor) -> Tensor:
        self.store.prefetch(self.episodes[which])
        # One contiguous copy per window is faster than gathering frames.
        frames = np.zeros((*valid.shape, *self.store.spec.frame_shape), np.uint8)
        for row, (episode, begin, mask) in enumerate(zip(self.episodes[which], first, valid.numpy(), strict=True)):
            frames[row, mask] = self.store.read(int(episode), int(begin), int(begin + mask.sum()))[0]
        return torch.from_numpy(frames)
