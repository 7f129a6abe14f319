"""The sample level of a WaveNet on a CPU: one sample after another in numpy, whose calls cost a third of torch's.

A sample is some thirty operations on a few hundred numbers; what takes time is not the arithmetic but the calls. It is
the same network as :meth:`worldmodel.speech.nn.wavenet_network.WaveNet.sample_step` and the same choice as
:meth:`worldmodel.speech.nn.wavenet.WaveNetLikelihood.choose`; a test draws by both.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from worldmodel.likelihoods.base import NUM_VALUES
from worldmodel.likelihoods.logistic import LogisticMixture


class SampleLevel:
    """Fills in groups of samples. Arrays are in the precision of the model.

    Args:
        tables: (memory · 256, hidden), what each level says from each of the last places.
        narrow, leave: the layers behind it. likelihood: of a sample.
        waves: (256,) the value of each level. temperature: above 0, or 0 for what is expected.
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
        """Writes the samples of one group into ``samples`` (B, T) int64 and ``values`` (B, T), from place ``at`` on.

        ``contexts`` (B, group, hidden); ``weights`` (B, memory) of the linear guess; ``noise`` (B, group, numbers).
        """
        memory = len(self.places)
        if self.mixture is not None:  # uniform noise as that of a standard logistic distribution
            chance = noise[..., 1].clip(1e-6, 1 - 1e-6)
            noise = np.stack([noise[..., 0], np.log(chance / (1 - chance))], -1)
        for n in range(contexts.shape[1]):
            here = slice(at + n - memory, at + n)
            x = self.tables[samples[:, here] + self.places].sum(1)
            x += contexts[:, n]
            x = _silu(x) @ self.narrow
            x += self.narrow_bias
            found = _silu(x) @ self.leave
            found += self.leave_bias
            if self.mixture is None:
                chosen = self._of_softmax(found, noise[:, n])
            else:
                chosen = self._of_mixture(found, (values[:, here] * weights).sum(1), noise[:, n])
            samples[:, at + n] = chosen
            values[:, at + n] = self.waves[chosen]

    def _drawn(self, scores: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Scores (B, K), uniform noise (B,) → places (B,) by the inverse of the cumulative sum."""
        scores = scores / self.temperature
        scores -= scores.max(1, keepdims=True)
        share = np.exp(scores, out=scores).cumsum(1)
        found: np.ndarray = (share <= noise[:, None] * share[:, -1:]).sum(1)
        return np.minimum(found, share.shape[1] - 1)

    def _of_softmax(self, found: np.ndarray, noise: np.ndarray) -> np.ndarray:
        if self.temperature == 0:
            share = np.exp(found - found.max(1, keepdims=True))
            return _nearest(share @ self.waves / share.sum(1))
        return self._drawn(found, noise[:, 0])

    def _of_mixture(self, found: np.ndarray, guess: np.ndarray, noise: np.ndarray) -> np.ndarray:
        assert self.mixture is not None and self.centres is not None
        count, rows = self.mixture.components, np.arange(len(found))
        if self.temperature == 0:
            share = np.exp(found[:, :count] - found[:, :count].max(1, keepdims=True))
            means = found[:, count : 2 * count] + self.centres
            return _nearest((share * means).sum(1) / share.sum(1) + guess)
        which = self._drawn(found[:, :count], noise[:, 0])
        mean = found[rows, count + which] + self.centres[which] + guess
        lowest = self.mixture.narrowest
        scale = lowest + np.logaddexp(0, found[rows, 2 * count + which] + (self.mixture.start - lowest))
        scale = np.exp(np.minimum(scale, self.mixture.widest))
        return _nearest(mean + self.temperature * scale * noise[:, 1])


def _silu(x: np.ndarray) -> np.ndarray:
    y = np.exp(-x)
    y += 1
    return np.divide(x, y, out=y)


def _nearest(values: np.ndarray) -> np.ndarray:
    """Values (B,) about [-1, 1] → the nearest samples (B,) int64."""
    samples = np.rint((values + 1) * 127.5)
    return np.minimum(np.maximum(samples, 0, out=samples), NUM_VALUES - 1, out=samples).astype(np.int64)
