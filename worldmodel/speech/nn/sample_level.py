"""The sample level of a WaveNet on a CPU, in numpy: a sample is some thirty operations on a few hundred numbers, and
a call of numpy takes a third of the time of a call of torch.

It computes the same as :meth:`worldmodel.speech.nn.wavenet_network.WaveNet.sample_step` and
:meth:`worldmodel.speech.nn.wavenet.WaveNetLikelihood.choose`; a test compares them.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from worldmodel.likelihoods import LogisticMixture
from worldmodel.likelihoods.base import NUM_VALUES


class SampleLevel:
    """Draws groups of samples. Arrays have the precision of the model.

    Args:
        tables: (memory · 256, hidden), the contribution of each sample value at each of the last positions.
        narrow, leave: the layers after it. likelihood: of a sample.
        waves: (256,) the amplitude of each sample value. temperature: ≥ 0; 0 gives the expected value.
    """

    def __init__(
        self,
        tables: Tensor,
        narrow: nn.Linear,
        leave: nn.Linear,
        likelihood: nn.Module,
        waves: Tensor,
        temperature: float,
    ):
        self.tables, self.waves = tables.numpy(), waves.numpy()
        (self.narrow, self.narrow_bias), (self.leave, self.leave_bias) = (
            (np.ascontiguousarray(layer.weight.detach().numpy().T), layer.bias.detach().numpy())
            for layer in (narrow, leave)
        )
        self.places = NUM_VALUES * np.arange(len(self.tables) // NUM_VALUES)
        self.mixture = likelihood if isinstance(likelihood, LogisticMixture) else None
        self.centres = None if self.mixture is None else self.mixture.places.numpy().astype(self.tables.dtype)
        self.temperature = temperature

    def group(
        self,
        samples: np.ndarray,
        values: np.ndarray,
        at: int,
        contexts: np.ndarray,
        weights: np.ndarray,
        noise: np.ndarray,
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
            if self.mixture is None:
                chosen = self._draw_softmax(parameters, noise[:, n])
            else:
                chosen = self._draw_mixture(parameters, (values[:, here] * weights).sum(1), noise[:, n])
            samples[:, at + n] = chosen
            values[:, at + n] = self.waves[chosen]

    def _draw_index(self, logits: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Logits (B, K), uniform noise (B,) → indices (B,) by the inverse of the cumulative distribution."""
        logits = logits / self.temperature
        logits -= logits.max(1, keepdims=True)
        share = np.exp(logits, out=logits).cumsum(1)
        indices: np.ndarray = (share <= noise[:, None] * share[:, -1:]).sum(1)
        return np.minimum(indices, share.shape[1] - 1)

    def _draw_softmax(self, parameters: np.ndarray, noise: np.ndarray) -> np.ndarray:
        if self.temperature == 0:
            share = np.exp(parameters - parameters.max(1, keepdims=True))
            return _nearest(share @ self.waves / share.sum(1))
        return self._draw_index(parameters, noise[:, 0])

    def _draw_mixture(self, parameters: np.ndarray, prediction: np.ndarray, noise: np.ndarray) -> np.ndarray:
        assert self.mixture is not None and self.centres is not None
        count, rows = self.mixture.components, np.arange(len(parameters))
        if self.temperature == 0:
            share = np.exp(parameters[:, :count] - parameters[:, :count].max(1, keepdims=True))
            means = parameters[:, count : 2 * count] + self.centres
            return _nearest((share * means).sum(1) / share.sum(1) + prediction)
        which = self._draw_index(parameters[:, :count], noise[:, 0])
        mean = parameters[rows, count + which] + self.centres[which] + prediction
        lowest = self.mixture.narrowest
        scale = lowest + np.logaddexp(0, parameters[rows, 2 * count + which] + (self.mixture.start - lowest))
        scale = np.exp(np.minimum(scale, self.mixture.widest))
        return _nearest(mean + self.temperature * scale * noise[:, 1])


def _silu(x: np.ndarray) -> np.ndarray:
    y = np.exp(-x)
    y += 1
    return np.divide(x, y, out=y)


def _nearest(values: np.ndarray) -> np.ndarray:
    """Amplitudes (B,), about [-1, 1] → the nearest sample values (B,) int64."""
    samples = np.rint((values + 1) * 127.5)
    return np.minimum(np.maximum(samples, 0, out=samples), NUM_VALUES - 1, out=samples).astype(np.int64)
