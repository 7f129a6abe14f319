"""What is exported: encoder, decoder and one step of the prior as functions of tensors, without hidden state.

The step of the prior contains the whole loop that draws the codes of a frame: the groups of the head, whose codes do
not depend on each other, follow one after the other. Its noise is an input: ``noise[:, i]`` is the Gumbel noise of the
position that the head draws i-th, as in :mod:`worldmodel.heads.sampling`.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.heads import Head
from worldmodel.priors import Prior, map_state
from worldmodel.priors.base import Trunk
from worldmodel.tokenizers import Tokenizer
from worldmodel.tokenizers.base import as_float
from worldmodel.types import to_uint8
from worldmodel.world import WorldModel

MOST_GROUPS = 100  # groups of a head at most; the graph repeats its operations for each of them
COLDEST = 1e-6  # temperatures above 0 are at least this, so that no logit is divided by 0


@dataclasses.dataclass(frozen=True)
class Graph:
    """A function that becomes one file."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]  # examples of two rows; the temperature is one for all rows
    outputs: tuple[str, ...]
    part: str  # of the model, as messages name it


class Encoding(nn.Module):
    """Frames (B, C, H, W) uint8 → codes (B, *grid) int64."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, frames: Tensor) -> Tensor:
        return self.tokenizer._encode(as_float(frames))


class Decoding(nn.Module):
    """Codes (B, *grid) int64 → the expected frames (B, C, H, W) uint8."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, codes: Tensor) -> Tensor:
        return to_uint8(self.tokenizer.expected_frames(codes))


class Context(nn.Module):
    """The trunk alone: its state, the previous grids and the actions → contexts and the next state."""

    def __init__(self, trunk: Trunk):
        super().__init__()
        self.trunk, self.state = trunk, trunk.begin(1)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        *tensors, previous, actions = inputs
        rest = iter(tensors)
        contexts, after = self.trunk.step(map_state(lambda _: next(rest), self.state), previous, actions)
        return contexts, *leaves(after).values()


class PriorStep(nn.Module):
    """State, actions (B,), noise (B, N, K), temperature () → codes, expected rewards, probabilities of an end, state.

    The previous grid, which is a part of the state, is the output ``codes`` of the step before.
    """

    def __init__(self, prior: Prior):
        super().__init__()
        self.prior, self.context = prior, Context(prior.trunk)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        *known, noise, temperature = inputs
        contexts, *state = self.context(*known)
        codes = draw(self.prior.head, contexts, noise, temperature)
        if self.prior.outcomes is None:
            rewards, ends = torch.zeros(2, codes.shape[0])
        else:
            rewards, ends = self.prior.outcomes.expected(contexts, codes)
        return codes.unflatten(1, self.prior.grid), rewards, ends, *state


def draw(head: Head, contexts: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
    """Ancestral sampling of contexts (B, N, width), group by group → codes (B, N)."""
    contexts = head.in_order(contexts)
    state, drawn, start = head.begin(contexts), list[Tensor](), 0
    codes = torch.zeros(contexts.shape[:2], dtype=torch.int64)
    for size in head.groups:
        logits = head.extend(state, codes, start, start + size)
        warm = noise[:, start : start + size] + logits / temperature.clamp(min=COLDEST)
        expected = logits.softmax(-1) @ head.vectors
        cold = expected @ head.vectors.T - head.vectors.square().sum(-1) / 2
        drawn.append(torch.where(temperature > 0, warm, cold).argmax(-1))
        start += size
        codes = torch.cat([*drawn, codes[:, start:]], 1)
    return head.in_raster(codes)


def leaves(tree: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of a state by their names, such as ``trunk.grids``."""
    if isinstance(tree, Tensor):
        return {name: tree}
    fields = getattr(tree, "_fields", range(len(tree)))
    branches = (leaves(part, f"{name}.{field}".lstrip(".")) for field, part in zip(fields, tree, strict=True))
    return {key: value for branch in branches for key, value in branch.items()}


def graphs_of(world: WorldModel) -> tuple[Graph, ...]:
    """Encoder, decoder and step of a world model in float32 on a CPU; its weights are frozen.

    Raises :class:`ConfigError` for a head that draws too many groups.
    """
    tokenizer, prior = world.tokenizer.requires_grad_(False), world.prior.requires_grad_(False)
    head, groups = prior.head, len(prior.head.groups)
    if groups > MOST_GROUPS:
        fault = f"it draws {groups} groups of codes one after the other, and a graph has at most {MOST_GROUPS}"
        remedy = "train a prior with another head, such as prior=conv"
        raise ConfigError(f"the head {type(head).__name__} cannot be exported: {fault}; {remedy}")
    frames = torch.zeros(2, *world.spec.frame_shape, dtype=torch.uint8)
    codes = torch.zeros(2, *prior.grid, dtype=torch.int64)
    kind = type(tokenizer).__name__
    trunk = trunk_graph(prior)
    noise = torch.zeros(2, math.prod(prior.grid), len(head.vectors))
    inputs = {**trunk.inputs, "noise": noise, "temperature": torch.tensor(1.0)}
    outputs = ("codes", "reward", "end", *trunk.outputs[1:])
    return (
        Graph("encoder", Encoding(tokenizer).eval(), {"frames": frames}, ("codes",), f"encoder of {kind}"),
        Graph("decoder", Decoding(tokenizer).eval(), {"codes": codes}, ("frames",), f"decoder of {kind}"),
        Graph("prior", PriorStep(prior).eval(), inputs, outputs, f"head {type(head).__name__}"),
    )


def trunk_graph(prior: Prior) -> Graph:
    """The trunk alone, to find out whether it is what cannot be exported."""
    # Copies, since torch.export takes two inputs that are the same tensor for one.
    state = {name: tensor.clone() for name, tensor in leaves(prior.trunk.begin(2), "trunk").items()}
    previous = torch.full((2, *prior.grid), -1, dtype=torch.int64)
    inputs = {**state, "previous": previous, "action": torch.zeros(2, dtype=torch.int64)}
    outputs = ("contexts", *(f"next.{name}" for name in state))
    return Graph("trunk", Context(prior.trunk).eval(), inputs, outputs, f"trunk {type(prior.trunk).__name__}")
