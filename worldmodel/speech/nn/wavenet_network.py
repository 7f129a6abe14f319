"""WaveNet: gated dilated causal convolutions over a signal, conditioned on features of a lower rate.

van den Oord et al., *WaveNet: A Generative Model for Raw Audio*, 2016: layers z = tanh(a) ⊙ σ(b) of convolutions of
width 2 whose dilation doubles, with residual and skip connections; the condition is added in every layer.

Here a step of the convolutions covers ``group`` samples and reads the previous group as a vector. Within the group, a
small network, the sample level of SampleRNN (Mehri et al., 2017), draws sample by sample, given the output of the
convolutions for its position and the last ``memory`` samples. The convolutions thus run once per group; ``group`` = 1
is the original WaveNet.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.likelihoods.base import NUM_VALUES
from worldmodel.nn.modules import module_list
from worldmodel.speech.sound import SILENCE
from worldmodel.util.ranges import Count, ShareBelowOne

WAVES = 8  # size of the fixed embedding of a sample value


class Gate(nn.Module):
    """One layer: (B, M, width) → its residual and its skip output, each (B, M, width)."""

    def __init__(self, width: int, features: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.now, self.past = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width, bias=False)
        self.told = nn.Linear(features, 2 * width, bias=False)
        self.out = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, M, width); condition (B, M, 2 width), the features projected by :attr:`told`."""
        past = F.pad(self.past(x), (0, 0, self.dilation, 0))[:, : x.shape[1]]
        return self._finish(self.now(x) + past + condition)

    def step(self, x: Tensor, queue: Tensor, at: int, condition: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, width), condition (B, 2 width); ``queue`` (dilation, B, 2 width) is a ring buffer of projected inputs,
        written in place at ``at`` modulo its length."""
        slot = at % self.dilation
        mixed = self.now(x) + queue[slot] + condition
        queue[slot] = self.past(x)
        return self._finish(mixed)

    def _finish(self, mixed: Tensor) -> tuple[Tensor, Tensor]:
        a, b = mixed.chunk(2, -1)
        residual, skip = self.out(a.tanh() * b.sigmoid()).chunk(2, -1)
        return residual, skip


@dataclasses.dataclass
class WaveNetState:
    """The cache of :meth:`WaveNet.step`; lists have one entry per layer."""

    queues: list[Tensor]  # (dilation, B, 2 width)
    conditions: list[Tensor]  # (B, M, 2 width): the features projected for each layer, of all steps
    skip: Tensor  # (B, M, width): the features projected for the output
    at: int = 0  # steps done


class WaveNet(nn.Module):
    """Past samples and features → parameters of the distribution of each sample, and a linear prediction of it.

    The prediction is a weighted sum of the last ``memory`` samples, with weights that the convolutions return for each
    group, as in LPCNet (Valin and Skoglund, 2019). The distribution describes its error.

    Args:
        features: channels of the condition, one column per group.
        parameters: number of parameters of the distribution of a sample.
        group: samples per step of the convolutions; 1 is the original WaveNet.
        width: of the convolutions. layers: their number; dilations 1, 2, 4, … start again after ``cycle`` layers.
        hidden: width of the sample level. memory: number of previous samples that it reads.
        history_dropout: share of the training signals in which the convolutions do not see the past samples. Without
            it, the network learns to ignore the features.
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
        history_dropout: ShareBelowOne = 0.0,
    ):
        super().__init__()
        self.history_dropout = history_dropout
        self.group, self.memory, self.hidden = group, memory, hidden
        self.enter = nn.Linear(group * WAVES, width)
        self.layers = module_list(Gate(width, features, 2 ** (n % cycle)) for n in range(layers))
        self.heed = nn.Linear(features, width, bias=False)  # features reach the output directly, too
        self.spread = nn.Linear(width, group * hidden)
        self.recall = nn.Conv1d(WAVES, hidden, memory, bias=False)  # reads the last samples, oldest first
        self.narrow = nn.Linear(hidden, hidden)
        self.leave = nn.Linear(hidden, parameters)
        self.weigh = nn.Linear(width, memory)  # oldest sample first
        for layer in (self.leave, self.weigh):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.weigh.bias[-1] = 1.0  # initially, the prediction is the previous sample
        values = torch.linspace(-1, 1, NUM_VALUES)
        numbers = torch.arange(1, WAVES)
        # The amplitude, and cosines of several wavelengths: similar amplitudes have similar embeddings.
        waves = [values[:, None], torch.cos(torch.pi / 2 * (values + 1)[:, None] * numbers) / numbers.sqrt()]
        self.register_buffer("waves", torch.cat(waves, 1), persistent=False)

    waves: Tensor  # (256, WAVES)

    def forward(self, samples: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """samples (B, M · group) int64, features (B, M, features) → parameters (B, M · group, parameters) and
        linear predictions (B, M · group); those of a sample depend on earlier samples only."""
        size = samples.shape[1]
        before = F.pad(samples, (max(self.group, self.memory), 0), value=SILENCE)
        waves = self.waves[before]  # (B, size + padding, WAVES)
        groups = waves[:, -size - self.group : -self.group].unflatten(1, (-1, self.group)).flatten(2)
        if self.training and self.history_dropout:
            kept = torch.rand(len(groups), 1, 1, device=groups.device) >= self.history_dropout
            groups = groups * kept
        x = self.enter(groups)
        skip = self.heed(features)
        for layer in self.layers:
            residual, part = layer(x, layer.told(features))
            x, skip = x + residual, skip + part
        last = waves[:, -size - self.memory : -1]
        near = self.recall(last.movedim(-1, 1)).movedim(1, -1)
        contexts, weights = self._spread(skip)
        values = last[..., 0].unfold(1, self.memory, 1).unflatten(1, (-1, self.group))  # (B, M, group, memory)
        predictions = (values @ weights[..., None])[..., 0].flatten(1)
        hidden = self.narrow(F.silu(contexts.flatten(1, 2) + near))
        return self.leave(F.silu(hidden)), predictions

    def begin(self, features: Tensor) -> WaveNetState:
        """The initial state; features (B, M, features) of the whole signal."""
        batch, width = len(features), self.enter.out_features
        queues = [features.new_zeros(layer.dilation, batch, 2 * width) for layer in self.layers]
        conditions = [layer.told(features) for layer in self.layers]
        return WaveNetState(queues, conditions, self.heed(features))

    def step(self, state: WaveNetState, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The previous group, samples (B, group) → contexts of the samples of the next one, (B, group, hidden), and the
        weights of its linear prediction, (B, memory). Advances the state."""
        x = self.enter(self.waves[samples].flatten(1))
        skip = state.skip[:, state.at]
        for layer, queue, condition in zip(self.layers, state.queues, state.conditions, strict=True):
            residual, part = layer.step(x, queue, state.at, condition[:, state.at])
            x, skip = x + residual, skip + part
        state.at += 1
        return self._spread(skip)

    def _spread(self, skip: Tensor) -> tuple[Tensor, Tensor]:
        skip = F.silu(skip)
        return self.spread(skip).unflatten(-1, (self.group, self.hidden)), self.weigh(skip)
