"""A trunk of convolutions over the last few grids of codes, with an optional memory of earlier frames."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from worldmodel.heads.base import CodeEmbedding, GridSpec
from worldmodel.nn.convnets import CONV
from worldmodel.nn.modules import module_list, to_channels_last
from worldmodel.priors.base import Sample, Trunk
from worldmodel.priors.frame_transformer import MemoryState, TimeMemory
from worldmodel.priors.pose import FEATURES, PoseMemory
from worldmodel.util.ranges import Count


class ConvTrunkState(NamedTuple):
    grids: Tensor  # (B, kept, *grid) int64, oldest first
    actions: Tensor  # (B, kept) int64
    memory: MemoryState  # caches of the attention over time; empty without a memory
    dreamt: Tensor | tuple[()]  # (B,) int64: how many of the latest frames were dreamt; empty without a pose memory


class FilmBlock(nn.Module):
    """Pre-norm residual block of two convolutions whose normalised input is scaled and shifted by the condition.

    The trunk computes the scales and shifts of all blocks at once, since many small products take longer.
    """

    def __init__(self, rank: int, width: int, condition: int):
        super().__init__()
        self.film = nn.Linear(condition, 2 * width)
        self.first = CONV[rank](width, width, 3, padding=1)
        self.second = CONV[rank](width, width, 3, padding=1)
        for parameter in (*self.film.parameters(), *self.second.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """x (M, width, *grid), scale and shift (M, width) → (M, width, *grid)."""
        scale, shift = (part.view(x.shape[0], *[1] * (x.dim() - 2), -1) for part in (scale, shift))
        y = F.layer_norm(x.movedim(1, -1), x.shape[1:2])
        y = torch.addcmul(shift, y, scale)
        return x + self.second(F.silu(self.first(F.silu(y).movedim(-1, 1))))


class ConvTrunk(Trunk):
    """Convolutions over the last ``history`` grids, conditioned on their actions (FiLM, Perez et al., 2018), with two
    optional memories of the frames so far.

    ``memory`` represents each frame by one vector, which has little detail but depends on the whole frame, and so
    identifies the place. Its output is a part of the condition and, by a linear layer, an input of every position.
    ``pose`` recalls codes of frames that showed the same place, which are an input of every position, too. Vectors of
    the recalled codes, multiplied by gates, are also added to the contexts. In training the latest frames are recorded
    and agree with the recalled codes, so that small gates suffice. In a dream the latest frames contain errors, and the
    recalled codes are more reliable. Therefore :meth:`step` multiplies what is added for codes of older frames by
    ``emphasis`` of the memory once the latest frames were dreamt, and by less before.

    Args:
        spec: of the grids and the actions.
        width: channels, also the width of a context vector. blocks: residual blocks. history: grids seen.
        embed: width of an embedded code. memory: constructor of a memory over time, which is called with the spec.
        spread: width of the part of the memory's output that one position alone receives.
        pose: constructor of a memory of past grids, which is called with the spec.
    """

    def __init__(
        self,
        spec: GridSpec,
        width: Count = 160,
        blocks: Count = 5,
        history: Count = 4,
        embed: Count = 48,
        memory: Callable[..., TimeMemory] | None = None,
        spread: Count = 16,
        pose: Callable[..., PoseMemory] | None = None,
    ):
        super().__init__()
        spec.require_one_grid(self)
        rank = len(spec.grid)
        self.grid, self.width, self.history = spec.grid, width, history
        self.embed = CodeEmbedding(spec.codebook, embed)
        self.act = nn.Embedding(spec.num_actions + 1, 32)
        self.memory = memory(spec) if memory else None
        known = 32 * history + (self.memory.width if self.memory else 0)
        self.condition = nn.Sequential(nn.Linear(known, 128), nn.SiLU())
        if self.memory:
            self.spread = nn.Linear(self.memory.width, spec.positions * spread)
            self.unfold = nn.Linear(spread, width, bias=False)
        self.enter = CONV[rank](history * embed, width, 3, padding=1)
        self.position = nn.Parameter(torch.zeros(width, *spec.grid))
        self.pose = pose(spec) if pose else None
        self.kept = history  # frames in a state
        if self.pose:
            self.lead = self.pose.window
            self.kept = max(history, self.lead)
            recalls = self.pose.recalls
            self.read = CONV[rank](recalls * (embed + FEATURES), width, 1)
            self.copy = CodeEmbedding(spec.codebook, width)
            self.gate = nn.Linear(width + recalls * FEATURES, recalls * width)
        self.blocks = module_list(FilmBlock(rank, width, 128) for _ in range(blocks))
        # Scale and shift that change nothing, to which those of a block are added.
        self.unchanged = nn.Buffer(torch.tensor([[1.0], [0.0]]), persistent=False)
        if rank == 2:
            to_channels_last(self)

    def _contexts(
        self, grids: Tensor, actions: Tensor, remembered: Sequence[Tensor], emphasis: Tensor | None = None
    ) -> Tensor:
        """grids (M, kept, *grid), actions (M, kept), oldest first; remembered: (M, F) or none → (M, N, width).

        ``emphasis`` (M, R) multiplies the vectors of the recalled codes."""
        condition = self.act(actions[:, -self.history :] + 1).flatten(1)
        condition = self.condition(torch.cat([condition, *remembered], -1) if remembered else condition)
        codes = grids[:, -self.history :].movedim(1, -1)
        if self.pose:
            recalled, features = self.pose.recall(grids[:, -self.lead :], actions[:, -self.lead :])
            features = features.flatten(1, 2).movedim(1, -1).to(self.position.dtype)
            codes = torch.cat([codes, recalled.movedim(1, -1)], -1)
        rows = codes + 1  # (M, *grid, history + R), of the tables of all embeddings
        vectors = self.embed.lookup(rows)
        if self.pose:
            vectors, found = vectors.split([self.history, self.pose.recalls], -2)
        x = self.enter(vectors.flatten(-2).movedim(-1, 1)) + self.position
        if self.pose:
            x = x + self.read(torch.cat([found.flatten(-2), features], -1).movedim(-1, 1))
        for vector in remembered:
            x = x + self.unfold(self.spread(vector).view(x.shape[0], *self.grid, -1)).movedim(-1, 1)
        films = self._films(condition)
        for block, scale, shift in zip(self.blocks, films[::2], films[1::2], strict=True):
            x = block(x, scale, shift)
        x = x.movedim(1, -1)
        x = F.layer_norm(x, x.shape[-1:])
        if self.pose:  # recalled codes reach the logits without passing through the blocks
            gates = self.gate(torch.cat([x, features], -1)).sigmoid().unflatten(-1, (-1, self.width))
            if emphasis is not None:
                gates = gates * emphasis.view(x.shape[0], *[1] * len(self.grid), -1, 1).to(gates.dtype)
            x = x + (gates * self.copy.lookup(rows[..., self.history :])).sum(-2)
        return x.reshape(x.shape[0], -1, self.width)

    def _films(self, condition: Tensor) -> Sequence[Tensor]:
        """condition (M, F) → scale and shift (M, width) of each block, in turn."""
        layers = [block.film for block in self.blocks]
        weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        films = F.linear(condition, weight, bias).unflatten(-1, (-1, 2, self.width)) + self.unchanged
        return films.flatten(1, 2).unbind(1)

    def forward(self, previous: Tensor, actions: Tensor, first: int = 0) -> Tensor:
        batch, steps = actions.shape
        remembered = [self.memory(previous, actions, first).flatten(0, 1)] if self.memory else []
        begin = first + 1 - self.kept  # where the window of the first step begins
        if begin < 0:
            state = self.begin(batch)
            previous = torch.cat([state.grids[:, begin:], previous], 1)
            actions = torch.cat([state.actions[:, begin:], actions], 1)
        grids = previous[:, max(begin, 0) :].unfold(1, self.kept, 1).movedim(-1, 2)
        acts = actions[:, max(begin, 0) :].unfold(1, self.kept, 1)
        contexts = self._contexts(grids.flatten(0, 1), acts.flatten(0, 1), remembered)
        return contexts.unflatten(0, (batch, steps - first))

    def prepare(self, sample: Sample, generator: Generator) -> str:
        return self.pose.estimate(sample, generator) if self.pose else ""

    def begin(self, batch: int) -> ConvTrunkState:
        shape, device = (batch, self.kept), self.position.device
        grids = torch.full((*shape, *self.grid), -1, dtype=torch.int64, device=device)
        acts = torch.full(shape, -1, dtype=torch.int64, device=device)
        dreamt = torch.zeros(batch, dtype=torch.int64, device=device) if self.pose else ()
        return ConvTrunkState(grids, acts, self.memory.begin(batch) if self.memory else (), dreamt)

    def step(self, state: ConvTrunkState, previous: Tensor, actions: Tensor) -> tuple[Tensor, ConvTrunkState]:
        grids, acts = self._slide(state, previous, actions)
        remembered, memory = [], state.memory
        if self.memory:
            vector, memory = self.memory.step(memory, previous, actions)
            remembered.append(vector)
        emphasis, dreamt = None, state.dreamt
        if self.pose and isinstance(dreamt, Tensor):
            emphasis, dreamt = self.pose.emphasized(dreamt), dreamt + 1
        return self._contexts(grids, acts, remembered, emphasis), ConvTrunkState(grids, acts, memory, dreamt)

    def observe(self, state: ConvTrunkState, previous: Tensor, actions: Tensor) -> ConvTrunkState:
        memory = self.memory.observe(state.memory, previous, actions) if self.memory else ()
        dreamt = torch.zeros_like(state.dreamt) if isinstance(state.dreamt, Tensor) else ()
        return ConvTrunkState(*self._slide(state, previous, actions), memory, dreamt)

    @staticmethod
    def _slide(state: ConvTrunkState, previous: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        grids = torch.cat([state.grids[:, 1:], previous[:, None]], 1)
        return grids, torch.cat([state.actions[:, 1:], actions[:, None]], 1)
