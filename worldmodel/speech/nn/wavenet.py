"""A WaveNet as the likelihood of a signal: every sample is drawn by :class:`WaveNet` after those before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.likelihoods.base import NUM_VALUES, Likelihood, Studied, frames_of, uniform, values_of
from worldmodel.likelihoods.logistic import LogisticMixture
from worldmodel.speech.mulaw import SILENCE
from worldmodel.speech.nn.mel import expanded, log_mels
from worldmodel.speech.nn.sample_level import SampleLevel
from worldmodel.speech.nn.wavenet_network import WaveNet, WaveNetState
from worldmodel.util.ranges import Count, PassedTo, Whole

WINDOW, FFT, RATE = 400, 512, 16_000  # of spectra


class Drawn(NamedTuple):
    """A signal and the noise that it was drawn with."""

    samples: Tensor  # (B, L) int64
    noise: Tensor  # (B, L, numbers a sample)


class WaveNetLikelihood(Likelihood):
    """p(signal | features) by a :class:`WaveNet`: a decoder that hears what it said. Frames are (B, 1, L).

    Args:
        channels: 1. outputs: channels of the map that the decoder has to give, one column for ``group`` samples.
        sample_likelihood: constructor of the likelihood of a sample given the WaveNet's parameters: the discretised
            logistic mixture, or :class:`~worldmodel.likelihoods.Categorical` for the 256-way softmax of the paper.
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
        sample_likelihood: Callable[..., Likelihood] = LogisticMixture,
        bands: Whole = 0,
        **network: Annotated[Any, PassedTo(WaveNet)],
    ):
        super().__init__(channels)
        if channels != 1:
            raise ConfigError(f"a WaveNet draws signals of one channel, not of {channels}")
        self.outputs = outputs
        self.sample_likelihood = sample_likelihood(channels=1)
        if not self.sample_likelihood.exact:
            raise ConfigError("a WaveNet draws sample values; choose LogisticMixture or Categorical for its samples")
        self.model = WaveNet(outputs, self.sample_likelihood.outputs, **network)
        self.stride = self.model.group
        self.read = nn.Conv1d(outputs, bands, 1) if bands else None
        self.guesses = isinstance(self.sample_likelihood, LogisticMixture)  # a softmax has no place that could be moved
        if isinstance(self.sample_likelihood, LogisticMixture):
            with torch.no_grad():  # components close to the guess to begin with
                self.model.leave.bias.unflatten(0, (3, -1))[1].copy_(-0.8 * self.sample_likelihood.places)

    def log_prob(self, outputs: Tensor, frames: Tensor) -> Tensor:
        """outputs (B, outputs, M), frames (B, 1, M · group) float in [-1, 1] → (B, 1, M · group) nats."""
        return self.sample_likelihood.log_prob(self.distribution(outputs, frames), frames)

    def distribution(self, outputs: Tensor, frames: Tensor) -> Tensor:
        """outputs (B, outputs, M), frames (B, 1, L) → parameters of each sample given those before, (B, ·, L)."""
        found, guesses = self.model(values_of(frames)[:, 0], outputs.movedim(1, -1).to(self.model.waves.dtype))
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
        return self.sample_likelihood.study(self.distribution(outputs, frames), frames)

    def mean(self, outputs: Tensor) -> Tensor:
        """The signal in which every sample is the one expected after those before it. A WaveNet that is never surprised
        often falls silent: to be listened to, :meth:`sample`."""
        return frames_of(self.draw(outputs, temperature=0.0).samples)[:, None]

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        return frames_of(self.draw(outputs, generator, temperature).samples)[:, None]

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
        samples = torch.full((batch, lead + steps * group), SILENCE, device=features.device)
        values = model.waves[samples, 0]
        fast = None
        if samples.device.type == "cpu":
            parts = state.tables, model.narrow, model.leave, self.sample_likelihood, model.waves[:, 0].contiguous()
            fast, heard, seen = SampleLevel(*parts, temperature), samples.numpy(), values.numpy()  # the same memory
        every = max(1, steps // 100)
        for step in range(steps):
            at = lead + step * group
            contexts, weights = model.step(state, samples[:, at - group : at])
            drawn = noise[:, at - lead : at - lead + group]
            if fast is not None:
                fast.group(heard, seen, at, contexts.numpy(), weights.numpy(), drawn.numpy())
            else:
                self._draw_group(state, samples, values, at, contexts, weights, drawn, temperature)
            if step % every == 0:
                progress(step, steps)
        progress(steps, steps)
        return Drawn(samples[:, lead:], noise)

    def _draw_group(
        self,
        state: WaveNetState,
        samples: Tensor,
        values: Tensor,
        at: int,
        contexts: Tensor,
        weights: Tensor,
        noise: Tensor,
        temperature: float,
    ) -> None:
        """As :meth:`worldmodel.speech.nn.sample_level.SampleLevel.group`, on any device."""
        memory = self.model.memory
        places = NUM_VALUES * torch.arange(memory, device=samples.device)
        for n in range(at, at + self.model.group):
            found = self.model.sample_step(state, contexts[:, n - at], samples[:, n - memory : n] + places)
            if self.guesses:
                found = self._moved(found, torch.linalg.vecdot(values[:, n - memory : n], weights))
            chosen = self.choose(found, noise[:, n - at], temperature)
            samples[:, n] = chosen
            values[:, n] = self.model.waves[chosen, 0]

    @property
    def numbers(self) -> int:
        """Numbers of noise a sample: one for a softmax, two for a mixture of logistics."""
        return 1 if not isinstance(self.sample_likelihood, LogisticMixture) else 2

    def choose(self, parameters: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Parameters (B, parameters) of one sample each and uniform noise (B, numbers) → samples (B,) int64."""
        if isinstance(self.sample_likelihood, LogisticMixture):
            weights, means, scales = self.sample_likelihood.mixture(parameters)
            if temperature == 0:
                return values_of((weights.exp() * means).sum(-1))
            share = (weights / temperature).softmax(-1).cumsum(-1)
            chosen = torch.searchsorted(share, noise[:, :1] * share[:, -1:], right=True).clamp_(max=share.shape[1] - 1)
            mean, scale = means.gather(1, chosen)[:, 0], scales.gather(1, chosen)[:, 0].exp()
            return values_of(mean + temperature * scale * torch.logit(noise[:, 1], eps=1e-6))
        if temperature == 0:
            return values_of(parameters.softmax(-1) @ self.model.waves[:, 0])
        share = (parameters / temperature).softmax(-1).cumsum(-1)
        found = torch.searchsorted(share, noise * share[:, -1:], right=True)
        return found[:, 0].clamp_(max=NUM_VALUES - 1)
