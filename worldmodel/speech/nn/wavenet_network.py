"""WaveNet: gated dilated causal convolutions over a signal, given a slower map of features (and with it a speaker).

van den Oord et al., *WaveNet: A Generative Model for Raw Audio*, 2016: layers z = tanh(a) ⊙ σ(b) of convolutions of
width 2 whose dilation doubles, with residual and skip connections, the condition added in every layer.

Here the convolutions take steps of ``group`` samples. One step reads the group before as a vector; within the group a
small network, the sample level of SampleRNN (Mehri et al., 2017), draws one sample after the other, given what the
convolutions say of its place and the last ``memory`` samples themselves. A sample then costs a look into a table and
small products, and the convolutions come once in a group: 16 times less often than in a WaveNet, as ``group`` = 1 is.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.likelihoods.base import NUM_VALUES
from worldmodel.nn.modules import module_list
from worldmodel.speech.mulaw import SILENCE
from worldmodel.util.ranges import Count, ShareBelowOne

WAVES = 8  # numbers that a sample is read as


class Gate(nn.Module):
    """One layer: (B, width, M) → what it adds to the stream and what it says to the output, each (B, width, M)."""

    def __init__(self, width: int, features: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.now, self.past = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width, bias=False)
        self.told = nn.Linear(features, 2 * width, bias=False)
        self.out = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, M, width); told (B, M, 2 width), what :attr:`told` made of the features."""
        past = F.pad(self.past(x), (0, 0, self.dilation, 0))[:, : x.shape[1]]
        return self._finish(self.now(x) + past + told)

    def step(self, x: Tensor, queue: Tensor, at: int, told: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, width), told (B, 2 width); ``queue`` (dilation, B, 2 width) holds what the last steps will say, written
        in place at ``at`` modulo its length."""
        slot = at % self.dilation
        mixed = self.now(x) + queue[slot] + told
        queue[slot] = self.past(x)
        return self._finish(mixed)

    def _finish(self, mixed: Tensor) -> tuple[Tensor, Tensor]:
        a, b = mixed.chunk(2, -1)
        more, said = self.out(a.tanh() * b.sigmoid()).chunk(2, -1)
        return more, said


@dataclasses.dataclass
class WaveNetState:
    """What the steps behind have left; lists of one entry a layer."""

    queues: list[Tensor]  # (dilation, B, 2 width)
    told: list[Tensor]  # (B, M, 2 width): what the features say to each layer, of all steps
    heeded: Tensor  # (B, M, width): and to the output
    tables: Tensor  # (memory · 256, hidden): what each level says to the sample level from each of the last places
    at: int = 0  # steps done


class WaveNet(nn.Module):
    """Signal so far and features → parameters of the distribution of each sample, and a linear guess at it.

    The guess is a weighted sum of the last ``memory`` samples, by weights that the convolutions state for each group:
    linear prediction, as in LPCNet (Valin and Skoglund, 2019). What is left to be modelled is its error.

    Args:
        features: channels of the map that conditions it, one column a group.
        parameters: numbers that the distribution of a sample needs.
        group: samples a step of the convolutions; 1 is WaveNet itself.
        width: of the convolutions. layers: their number; dilations 1, 2, 4, … begin anew after ``cycle`` of them.
        hidden: width of the sample level. memory: last samples that it sees one by one.
        forget: share of the training signals in which the convolutions do not hear what was said before. A WaveNet that
            always does learns to go on by that alone, and pays no heed to the features.
    """

    def __init__(
        self,
        features: int,
        parameters: int,
        group: Count = 16,
        width: Count = 96,
        layers: Count = 12,
        cycle: Count = 6,
        hidden: Count = 96,
        memory: Count = 16,
        forget: ShareBelowOne = 0.0,
    ):
        super().__init__()
        self.forget = forget
        self.group, self.memory, self.hidden = group, memory, hidden
        self.enter = nn.Linear(group * WAVES, width)
        self.layers = module_list(Gate(width, features, 2 ** (n % cycle)) for n in range(layers))
        self.heed = nn.Linear(features, width, bias=False)  # what is told need not pass through the gates alone
        self.spread = nn.Linear(width, group * hidden)
        self.recall = nn.Conv1d(WAVES, hidden, memory, bias=False)  # of the last samples, the oldest first
        self.narrow = nn.Linear(hidden, hidden)
        self.leave = nn.Linear(hidden, parameters)
        self.weigh = nn.Linear(width, memory)  # the oldest sample first
        for layer in (self.leave, self.weigh):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.weigh.bias[-1] = 1.0  # to begin with, what comes is what was
        values = torch.linspace(-1, 1, NUM_VALUES)
        numbers = torch.arange(1, WAVES)
        # The value itself, and waves of several lengths, of which near samples get near ones.
        waves = [values[:, None], torch.cos(torch.pi / 2 * (values + 1)[:, None] * numbers) / numbers.sqrt()]
        self.register_buffer("waves", torch.cat(waves, 1), persistent=False)

    waves: Tensor  # (256, WAVES)

    @property
    def reach(self) -> int:
        """Samples that a sample may depend on."""
        return (1 + sum(layer.dilation for layer in self.layers)) * self.group + self.group - 1

    def forward(self, samples: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """samples (B, M · group) int64, features (B, M, features) → parameters (B, M · group, parameters) and guesses
        (B, M · group); those of a sample see the samples before it alone."""
        size = samples.shape[1]
        before = F.pad(samples, (max(self.group, self.memory), 0), value=SILENCE)
        waves = self.waves[before]  # (B, size + padding, WAVES)
        groups = waves[:, -size - self.group : -self.group].unflatten(1, (-1, self.group)).flatten(2)
        if self.training and self.forget:
            heard = torch.rand(len(groups), 1, 1, device=groups.device) >= self.forget
            groups = groups * heard
        x = self.enter(groups)
        said = self.heed(features)
        for layer in self.layers:
            more, part = layer(x, layer.told(features))
            x, said = x + more, said + part
        last = waves[:, -size - self.memory : -1]
        near = self.recall(last.movedim(-1, 1)).movedim(1, -1)
        contexts, weights = self._spread(said)
        values = last[..., 0].unfold(1, self.memory, 1).unflatten(1, (-1, self.group))  # (B, M, group, memory)
        guesses = (values @ weights[..., None])[..., 0].flatten(1)
        return self._sample_level(contexts.flatten(1, 2) + near), guesses

    def begin(self, features: Tensor) -> WaveNetState:
        """features (B, M, features): of the whole signal to come."""
        batch, width = len(features), self.enter.out_features
        queues = [features.new_zeros(layer.dilation, batch, 2 * width) for layer in self.layers]
        told = [layer.told(features) for layer in self.layers]
        tables = torch.einsum("lw,hwm->mlh", self.waves, self.recall.weight).flatten(0, 1)
        return WaveNetState(queues, told, self.heed(features), tables)

    def step(self, state: WaveNetState, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The group before, samples (B, group) → what the convolutions say to each sample of the next one,
        (B, group, hidden), and the weights of its guesses, (B, memory). Advances the state."""
        x = self.enter(self.waves[samples].flatten(1))
        said = state.heeded[:, state.at]
        for layer, queue, told in zip(self.layers, state.queues, state.told, strict=True):
            more, part = layer.step(x, queue, state.at, told[:, state.at])
            x, said = x + more, said + part
        state.at += 1
        return self._spread(said)

    def sample_step(self, state: WaveNetState, context: Tensor, recent: Tensor) -> Tensor:
        """context (B, hidden) of one sample, ``recent`` (B, memory): its last samples, the oldest first, each plus 256
        times its place → parameters (B, parameters)."""
        near = F.embedding_bag(recent, state.tables, mode="sum")
        return self._sample_level(context + near)

    def _spread(self, said: Tensor) -> tuple[Tensor, Tensor]:
        said = F.silu(said)
        return self.spread(said).unflatten(-1, (self.group, self.hidden)), self.weigh(said)

    def _sample_level(self, x: Tensor) -> Tensor:
        return self.leave(F.silu(self.narrow(F.silu(x))))
