"""The likelihood of a signal under an autoregressive :class:`WaveNet`."""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.likelihoods import LogisticMixture
from worldmodel.likelihoods.base import NUM_VALUES, Likelihood, LossAndFrames, frames_of, values_of
from worldmodel.nn.modules import uniform
from worldmodel.speech.nn.mel import expanded, log_mels
from worldmodel.speech.nn.wavenet_network import WaveNet
from worldmodel.speech.sound import SILENCE
from worldmodel.util.ranges import Count, PassedTo, Whole

WINDOW, RATE = 400, 16_000  # of the auxiliary spectra


class SampleLevel:
    """Draws groups of samples on the host, in numpy: a sample is some thirty operations on a few hundred numbers, and a
    call of numpy takes a third of the time of a call of torch. Arrays have the precision of the model.

    ``likelihood``: of a sample; ``temperature``: ≥ 0, 0 gives the expected value.
    """

    def __init__(self, model: WaveNet, likelihood: nn.Module, temperature: float):
        # The contribution of each sample value at each of the last positions, (memory · 256, hidden).
        self.tables = _array(torch.einsum("lw,hwm->mlh", model.waves, model.recall.weight).flatten(0, 1))
        self.waves = _array(model.waves[:, 0])  # (256,), the amplitude of each sample value
        (self.narrow, self.narrow_bias), (self.leave, self.leave_bias) = (
            (_array(layer.weight.T), _array(layer.bias)) for layer in (model.narrow, model.leave)
        )
        self.places = NUM_VALUES * np.arange(model.memory)
        self.mixture = likelihood if isinstance(likelihood, LogisticMixture) else None
        # The amplitudes of the logits: of the components of the mixture, or of the sample values.
        self.centres = self.waves if self.mixture is None else _array(self.mixture.places).astype(self.tables.dtype)
        self.temperature = temperature

    def group(
        self, samples: ndarray, values: ndarray, at: int, contexts: ndarray, weights: ndarray, noise: ndarray
    ) -> None:
        """Write the samples of one group into ``samples`` (B, T) int64 and ``values`` (B, T), starting at index ``at``.

        ``contexts`` (B, group, hidden); ``weights`` (B, memory) of the prediction; ``noise`` (B, group, numbers).
        """
        memory = len(self.places)
        if self.mixture is not None:  # uniform noise → standard logistic noise
            chance = noise[..., 1].clip(1e-6, 1 - 1e-6)
            noise = np.stack([noise[..., 0], np.log(chance / (1 - chance))], -1)
        for n in range(contexts.shape[1]):
            here = slice(at + n - memory, at + n)
            x = self.tables[samples[:, here] + self.places].sum(1)
            x += contexts[:, n]
            x = _silu(x) @ self.narrow
            x += self.narrow_bias
            parameters = _silu(x) @ self.leave
            parameters += self.leave_bias
            prediction = 0 if self.mixture is None else (values[:, here] * weights).sum(1)
            chosen = self._draw(parameters, prediction, noise[:, n])
            samples[:, at + n] = chosen
            values[:, at + n] = self.waves[chosen]

    def _draw_index(self, logits: ndarray, noise: ndarray) -> ndarray:
        """Logits (B, K), uniform noise (B,) → indices (B,) by the inverse of the cumulative distribution."""
        logits = logits / self.temperature
        logits -= logits.max(1, keepdims=True)
        share = np.exp(logits, out=logits).cumsum(1)
        indices: ndarray = (share <= noise[:, None] * share[:, -1:]).sum(1)
        return np.minimum(indices, share.shape[1] - 1)

    def _draw(self, parameters: ndarray, prediction: ndarray | int, noise: ndarray) -> ndarray:
        """Parameters (B, parameters) of one sample each, linear predictions (B,), noise (B, numbers) → samples (B,)."""
        rows, count = np.arange(len(parameters)), len(self.centres)
        logits = parameters[:, :count]
        means = self.centres if self.mixture is None else parameters[:, count : 2 * count] + self.centres
        if self.temperature == 0:
            share = np.exp(logits - logits.max(1, keepdims=True))
            return _nearest((share * means).sum(1) / share.sum(1) + prediction)
        which = self._draw_index(logits, noise[:, 0])
        if self.mixture is None:
            return which
        mean = means[rows, which] + prediction
        lowest = self.mixture.narrowest
        scale = lowest + np.logaddexp(0, parameters[rows, 2 * count + which] + (self.mixture.start - lowest))
        scale = np.exp(np.minimum(scale, self.mixture.widest))
        return _nearest(mean + self.temperature * scale * noise[:, 1])


def _array(tensor: Tensor) -> ndarray:
    return tensor.detach().cpu().contiguous().numpy()


def _silu(x: ndarray) -> ndarray:
    y = np.exp(-x)
    y += 1
    return np.divide(x, y, out=y)


def _nearest(values: ndarray) -> ndarray:
    """Amplitudes (B,), about [-1, 1] → the nearest sample values (B,) int64."""
    samples = np.rint((values + 1) * 127.5)
    return np.minimum(np.maximum(samples, 0, out=samples), NUM_VALUES - 1, out=samples).astype(np.int64)


class WaveNetLikelihood(Likelihood):
    """p(signal | features) by a :class:`WaveNet`. Frames are (B, 1, L).

    Args:
        channels: 1. outputs: channels of the features that the decoder returns, one column for ``group`` samples.
        sample_likelihood: constructor of the likelihood of a sample: the discretised logistic mixture, or
            :class:`~worldmodel.likelihoods.Categorical` for the 256-way softmax of the paper.
        bands: if not 0, a linear layer predicts log-mel spectra of so many bands from the features; its mean squared
            error is the loss term ``spectra``, which makes the features useful early in training.
        network: the other settings of :class:`WaveNet`.
    """

    exact = True
    keep_float32 = True  # bfloat16 rounds a mean by up to a quarter of a sample value

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
            raise ConfigError(f"a WaveNet models signals of one channel, not of {channels}")
        self.outputs = outputs
        self.sample_likelihood = sample_likelihood(channels=1)
        if not self.sample_likelihood.exact:
            raise ConfigError("a WaveNet draws sample values; choose LogisticMixture or Categorical for its samples")
        self.model = WaveNet(outputs, self.sample_likelihood.outputs, **network)
        self.stride = self.model.group
        self.read = nn.Conv1d(outputs, bands, 1) if bands else None
        self.shifts_means = isinstance(self.sample_likelihood, LogisticMixture)  # a softmax has no means to shift
        if isinstance(self.sample_likelihood, LogisticMixture):
            with torch.no_grad():  # start with components close to the linear prediction
                self.model.leave.bias.unflatten(0, (3, -1))[1].copy_(-0.8 * self.sample_likelihood.places)

    def log_prob(self, outputs: Tensor, frames: Tensor) -> Tensor:
        """outputs (B, outputs, M), frames (B, 1, M · group) float in [-1, 1] → (B, 1, M · group) nats."""
        return self.sample_likelihood.log_prob(self.distribution(outputs, frames), frames)

    def distribution(self, outputs: Tensor, frames: Tensor) -> Tensor:
        """outputs (B, outputs, M), frames (B, 1, L) → parameters of each sample given those before, (B, ·, L)."""
        parameters, predictions = self.model(values_of(frames)[:, 0], outputs.movedim(1, -1).to(self.model.waves.dtype))
        return self._shifted(parameters, predictions).movedim(-1, 1)

    def auxiliary_losses(self, outputs: Tensor, frames: Tensor) -> dict[str, Tensor]:
        if self.read is None:
            return {}
        wave = expanded(frames[:, 0].float())
        target = log_mels(wave, self.read.out_channels, self.stride, WINDOW, RATE).movedim(1, -1)
        return {"spectra": F.mse_loss(self.read(outputs.to(self.read.weight.dtype)), target)}

    def _shifted(self, parameters: Tensor, predictions: Tensor) -> Tensor:
        """Parameters (..., P) whose means are relative to the linear predictions (...) → absolute ones."""
        if not self.shifts_means:
            return parameters
        weights, means, scales = parameters.chunk(3, -1)
        return torch.cat([weights, means + predictions[..., None], scales], -1)

    def loss_and_frames(self, outputs: Tensor, frames: Tensor) -> LossAndFrames:
        return self.sample_likelihood.loss_and_frames(self.distribution(outputs, frames), frames)

    def mean(self, outputs: Tensor) -> Tensor:
        """The signal in which every sample is its expectation given those before it. It is often silent; use
        :meth:`sample` for listening."""
        return frames_of(self.draw(outputs, temperature=0.0)[0])[:, None]

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        return frames_of(self.draw(outputs, generator, temperature)[0])[:, None]

    @torch.no_grad()
    def draw(
        self, outputs: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """outputs (B, outputs, M) → a signal of L = M · group samples, (B, L) int64, sample by sample, with cached
        convolutions, and the noise that it was drawn with, (B, L, numbers)."""
        model, group, memory = self.model, self.model.group, self.model.memory
        features = outputs.movedim(1, -1).to(model.waves.dtype)
        batch, steps = features.shape[:2]
        numbers = 2 if self.shifts_means else 1  # noise values per sample: two for a mixture of logistics
        noise = uniform((batch, steps * group, numbers), features.device, generator)
        state, level = model.begin(features), SampleLevel(model, self.sample_likelihood, temperature)
        lead, host = max(group, memory), _array(noise)
        samples = torch.full((batch, lead + steps * group), SILENCE)
        sample_array, values = samples.numpy(), level.waves[samples.numpy()]  # the first is a view of the same memory
        for step in range(steps):
            at = lead + step * group
            contexts, weights = model.step(state, samples[:, at - group : at].to(features.device))
            drawn = host[:, at - lead : at - lead + group]
            level.group(sample_array, values, at, _array(contexts), _array(weights), drawn)
        return samples[:, lead:].to(features.device), noise
