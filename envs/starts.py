"""Start positions of dreams in recorded episodes."""

from collections.abc import Sequence

import numpy as np
import torch

from worldmodel.data.store import EpisodeStore, Split
from worldmodel.errors import DataError


class Starts:
    """Start positions of dreams in a store, all equally probable: ``context`` frames followed by at least one recorded
    step, so that no dream starts at the end of an episode.

    Raises :class:`DataError` if no episode of the split is long enough, or for an unknown split.
    """

    def __init__(self, store: EpisodeStore, split: Split, context: int):
        self.store, self.split, self.context = store, split, context
        self._count()

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draw an episode and its first context frame. Damaged episodes are excluded and another one is drawn."""
        while True:
            number = int(rng.integers(self._ends[-1]))
            index = int(np.searchsorted(self._ends, number, side="right"))
            episode, first = int(self._episodes[index]), number - int(self._ends[index] - self._counts[index])
            try:
                self.store.episode(episode)
                return episode, first
            except DataError:
                self.store.verify([episode])
                self._count()

    def read(self, starts: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """→ frames (B, T0, C, H, W) uint8 and the actions that led to them, (B, T0) int64."""
        parts = [self.store.read(episode, first, first + self.context) for episode, first in starts]
        frames, records = (np.stack(part) for part in zip(*parts, strict=True))
        return torch.from_numpy(frames), torch.from_numpy(records["action"].astype(np.int64))

    def _count(self) -> None:
        episodes = self.store.split(self.split)
        counts = self.store.frame_counts[episodes] - self.context
        self._episodes, self._counts = episodes[counts > 0], counts[counts > 0]
        self._ends = self._counts.cumsum()
        if not len(self._ends):
            frames = f"{self.context + 1} frames to start a dream from"
            reason = f"no episode of split={self.split} in {self.store.path} has {frames}"
            raise DataError(f"{reason}; choose another split (train, held_out, all) or a smaller context")
