"""Memory over time: one vector per frame that summarises the last frames and actions, as an input of a trunk."""

from __future__ import annotations

from torch import Tensor, nn

from worldmodel.heads.base import GridSpec, embedding
from worldmodel.nn.attention import AttentionCache, TimeTransformer
from worldmodel.util.ranges import Count

MemoryState = tuple[AttentionCache, ...]  # one cache a block, the batch first in every tensor


class TimeMemory(nn.Module):
    """Every frame is summed up in one vector (all of its codes, and the action); attention over time runs on those.

    ``forward`` over T steps equals T calls of ``step``. No later step looks at one that saw no codes: what precedes
    the first frame, or was hidden in training, is as if it had never been.

    Args:
        spec: of the grids and the actions.
        width: of the vectors. blocks, heads, window: of the transformer. embed: width of an embedded code.
    """

    def __init__(
        self,
        spec: GridSpec,
        width: Count = 128,
        blocks: Count = 1,
        heads: Count = 4,
        window: Count = 16,
        embed: Count = 16,
    ):
        super().__init__()
        self.width = width
        self.embed = embedding(spec, embed)
        self.act = nn.Embedding(spec.num_actions + 1, width)
        self.enter = nn.Linear(spec.positions * embed, width)
        self.time = TimeTransformer(width, blocks, heads, window)

    def forward(self, previous: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        """previous (B, T, *grid) int64 in [−1, K), actions (B, T) int64 in [−1, A) → (B, T − first, width)."""
        frames, seen = self._frames(previous, actions, 2)
        return self.time(frames, first, seen)

    def begin(self, batch: int) -> MemoryState:
        """The state before anything was seen."""
        return self.time.begin(batch)

    def step(self, state: MemoryState, previous: Tensor, actions: Tensor) -> tuple[Tensor, MemoryState]:
        """previous (B, *grid), actions (B,) → (B, width) and the state behind this frame."""
        frames, seen = self._frames(previous, actions, 1)
        return self.time.step(frames, state, seen)

    def observe(self, state: MemoryState, previous: Tensor, actions: Tensor) -> MemoryState:
        """The state that :meth:`step` would return."""
        frames, seen = self._frames(previous, actions, 1)
        return self.time.observe(frames, state, seen)

    def _frames(self, previous: Tensor, actions: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """→ a vector of every frame (…, width) and whether its codes were seen (…); ``batch`` dimensions lead."""
        seen = (previous.flatten(batch) >= 0).any(-1)
        return self.enter(self.embed(previous).flatten(batch)) + self.act(actions + 1), seen
