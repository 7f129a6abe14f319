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
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.likelihoods.base import LEVELS, Likelihood, Studied, frames_of, levels_of, uniform
from worldmodel.likelihoods.logistic import LogisticMixture
from worldmodel.nn.modules import module_list
from worldmodel.speech.mulaw import SILENCE
from worldmodel.speech.nn.mel import expanded, log_mels
from worldmodel.speech.nn.sample_level import SampleLevel
from worldmodel.util.ranges import Count, PassedTo, ShareBelowOne, Whole

WAVES = 8  # numbers that a sample is read as
WINDOW, FFT, RATE = 400, 512, 16_000  # of spectra


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
        values = torch.linspace(-1, 1, LEVELS)
        numbers = torch.arange(1, WAVES)
        # The value itself, and waves of several lengths, of which near levels get near ones.
        waves = [values[:, None], torch.cos(torch.pi / 2 * (values + 1)[:, None] * numbers) / numbers.sqrt()]
        self.register_buffer("waves", torch.cat(waves, 1), persistent=False)

    waves: Tensor  # (256, WAVES)

    @property
    def reach(self) -> int:
        """Samples that a sample may depend on."""
        return (1 + sum(layer.dilation for layer in self.layers)) * self.group + self.group - 1

    def forward(self, levels: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """levels (B, M · group) int64, features (B, M, features) → parameters (B, M · group, parameters) and guesses
        (B, M · group); those of a sample see the levels before it alone."""
        size = levels.shape[1]
        before = F.pad(levels, (max(self.group, self.memory), 0), value=SILENCE)
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

    def step(self, state: WaveNetState, levels: Tensor) -> tuple[Tensor, Tensor]:
        """The group before, levels (B, group) → what the convolutions say to each sample of the next one,
        (B, group, hidden), and the weights of its guesses, (B, memory). Advances the state."""
        x = self.enter(self.waves[levels].flatten(1))
        said = state.heeded[:, state.at]
        for layer, queue, told in zip(self.layers, state.queues, state.told, strict=True):
            more, part = layer.step(x, queue, state.at, told[:, state.at])
            x, said = x + more, said + part
        state.at += 1
        return self._spread(said)

    def sample_step(self, state: WaveNetState, context: Tensor, recent: Tensor) -> Tensor:
        """context (B, hidden) of one sample, ``recent`` (B, memory): its last levels, the oldest first, each plus 256
        times its place → parameters (B, parameters)."""
        near = F.embedding_bag(recent, state.tables, mode="sum")
        return self._sample_level(context + near)

    def _spread(self, said: Tensor) -> tuple[Tensor, Tensor]:
        said = F.silu(said)
        return self.spread(said).unflatten(-1, (self.group, self.hidden)), self.weigh(said)

    def _sample_level(self, x: Tensor) -> Tensor:
        return self.leave(F.silu(self.narrow(F.silu(x))))


class Drawn(NamedTuple):
    """A signal and the noise that it was drawn with."""

    levels: Tensor  # (B, L) int64
    noise: Tensor  # (B, L, numbers a sample)


class WaveNetLikelihood(Likelihood):
    """p(signal | features) by a :class:`WaveNet`: a decoder that hears what it said. Frames are (B, 1, L).

    Args:
        channels: 1. outputs: channels of the map that the decoder has to give, one column for ``group`` samples.
        levels: constructor of the likelihood of a sample given the WaveNet's parameters: the discretised logistic
            mixture, or :class:`~worldmodel.likelihoods.Categorical` for the 256-way softmax of the paper.
        bands: of the log-mel spectra that the map is taught to tell (term ``spectra``, the mean squared error of a
            linear reading of it), so that from the start it says what is to be heard; 0: it finds out by itself.
        network: the other settings of :class:`WaveNet`.
    """

    exact = True
    keep_float32 = True  # a mean in bfloat16 is off by as much as a quarter of a level

    def __init__(
        self,
        channels: int,
        outputs: Count = 64,
        levels: Callable[..., Likelihood] = LogisticMixture,
        bands: Whole = 0,
        **network: Annotated[Any, PassedTo(WaveNet)],
    ):
        super().__init__(channels)
        if channels != 1:
            raise ConfigError(f"a WaveNet draws signals of one channel, not of {channels}")
        self.outputs = outputs
        self.levels = levels(channels=1)
        if not self.levels.exact:
            raise ConfigError("a WaveNet draws levels; choose LogisticMixture or Categorical for its samples")
        self.model = WaveNet(outputs, self.levels.outputs, **network)
        self.stride = self.model.group
        self.read = nn.Conv1d(outputs, bands, 1) if bands else None
        self.guesses = isinstance(self.levels, LogisticMixture)  # a softmax has no place that could be moved
        if isinstance(self.levels, LogisticMixture):
            with torch.no_grad():  # components close to the guess to begin with
                self.model.leave.bias.unflatten(0, (3, -1))[1].copy_(-0.8 * self.levels.places)

    def log_prob(self, outputs: Tensor, frames: Tensor) -> Tensor:
        """outputs (B, outputs, M), frames (B, 1, M · group) float in [-1, 1] → (B, 1, M · group) nats."""
        return self.levels.log_prob(self.distribution(outputs, frames), frames)

    def distribution(self, outputs: Tensor, frames: Tensor) -> Tensor:
        """outputs (B, outputs, M), frames (B, 1, L) → parameters of each sample given those before, (B, ·, L)."""
        found, guesses = self.model(levels_of(frames)[:, 0], outputs.movedim(1, -1).to(self.model.waves.dtype))
        return self._moved(found, guesses).movedim(-1, 1)

    def guides(self, outputs: Tensor, frames: Tensor) -> dict[str, Tensor]:
        if self.read is None:
            return {}
        wave = expanded(frames[:, 0].float())
        meant = log_mels(wave, self.read.out_channels, self.stride, WINDOW, FFT, RATE).movedim(1, -1)
        return {"spectra": F.mse_loss(self.read(outputs.to(self.read.weight.dtype)), meant)}

    def _moved(self, parameters: Tensor, guesses: Tensor) -> Tensor:
        """Parameters (..., P) whose means count from the guesses (...) → those of the distribution."""
        if not self.guesses:
            return parameters
        weights, means, scales = parameters.chunk(3, -1)
        return torch.cat([weights, means + guesses[..., None], scales], -1)

    def study(self, outputs: Tensor, frames: Tensor) -> Studied:
        return self.levels.study(self.distribution(outputs, frames), frames)

    def mean(self, outputs: Tensor) -> Tensor:
        """The signal in which every sample is the one expected after those before it. A WaveNet that is never surprised
        often falls silent: to be listened to, :meth:`sample`."""
        return frames_of(self.draw(outputs, temperature=0.0).levels)[:, None]

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        return frames_of(self.draw(outputs, generator, temperature).levels)[:, None]

    @torch.no_grad()
    def draw(
        self,
        outputs: Tensor,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Drawn:
        """outputs (B, outputs, M) → a signal of M · group samples, one after the other, from queues.

        ``progress(groups done, groups)`` is called a hundred times. The noise is drawn beforehand; by :meth:`choose`
        it decides on every sample alike, whether its parameters come from queues or from :meth:`log_prob`'s pass.
        """
        model, group, memory = self.model, self.model.group, self.model.memory
        features = outputs.movedim(1, -1).to(model.waves.dtype)
        batch, steps = features.shape[:2]
        noise = uniform((batch, steps * group, self.numbers), features.device, generator)
        state = model.begin(features)
        lead = max(group, memory)
        levels = torch.full((batch, lead + steps * group), SILENCE, device=features.device)
        values = model.waves[levels, 0]
        fast = None
        if levels.device.type == "cpu":
            parts = state.tables, model.narrow, model.leave, self.levels, model.waves[:, 0].contiguous()
            fast, heard, seen = SampleLevel(*parts, temperature), levels.numpy(), values.numpy()  # the same memory
        every = max(1, steps // 100)
        for step in range(steps):
            at = lead + step * group
            contexts, weights = model.step(state, levels[:, at - group : at])
            drawn = noise[:, at - lead : at - lead + group]
            if fast is not None:
                fast.group(heard, seen, at, contexts.numpy(), weights.numpy(), drawn.numpy())
            else:
                self._draw_group(state, levels, values, at, contexts, weights, drawn, temperature)
            if step % every == 0:
                progress(step, steps)
        progress(steps, steps)
        return Drawn(levels[:, lead:], noise)

    def _draw_group(
        self,
        state: WaveNetState,
        levels: Tensor,
        values: Tensor,
        at: int,
        contexts: Tensor,
        weights: Tensor,
        noise: Tensor,
        temperature: float,
    ) -> None:
        """As :meth:`worldmodel.speech.nn.sample_level.SampleLevel.group`, on any device."""
        memory = self.model.memory
        places = LEVELS * torch.arange(memory, device=levels.device)
        for n in range(at, at + self.model.group):
            found = self.model.sample_step(state, contexts[:, n - at], levels[:, n - memory : n] + places)
            if self.guesses:
                found = self._moved(found, torch.linalg.vecdot(values[:, n - memory : n], weights))
            chosen = self.choose(found, noise[:, n - at], temperature)
            levels[:, n] = chosen
            values[:, n] = self.model.waves[chosen, 0]

    @property
    def numbers(self) -> int:
        """Numbers of noise a sample: one for a softmax, two for a mixture of logistics."""
        return 1 if not isinstance(self.levels, LogisticMixture) else 2

    def choose(self, parameters: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Parameters (B, parameters) of one sample each and uniform noise (B, numbers) → levels (B,) int64."""
        if isinstance(self.levels, LogisticMixture):
            weights, means, scales = self.levels.mixture(parameters)
            if temperature == 0:
                return levels_of((weights.exp() * means).sum(-1))
            share = (weights / temperature).softmax(-1).cumsum(-1)
            chosen = torch.searchsorted(share, noise[:, :1] * share[:, -1:], right=True).clamp_(max=share.shape[1] - 1)
            mean, scale = means.gather(1, chosen)[:, 0], scales.gather(1, chosen)[:, 0].exp()
            return levels_of(mean + temperature * scale * torch.logit(noise[:, 1], eps=1e-6))
        if temperature == 0:
            return levels_of(parameters.softmax(-1) @ self.model.waves[:, 0])
        share = (parameters / temperature).softmax(-1).cumsum(-1)
        found = torch.searchsorted(share, noise * share[:, -1:], right=True)
        return found[:, 0].clamp_(max=LEVELS - 1)
