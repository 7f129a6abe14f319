"""Entropy coding of codes: arithmetic coding under a model of the next code.

Codes are ordered by position, then by codebook. A :class:`CodeModel` returns the distribution of the next code given
all earlier ones; a range coder (the library `constriction`, Bamler, 2022) spends −log₂ p bits on it. Encoder and
decoder evaluate the model in the same order, one code at a time, so that rounding is the same on one machine. The coder
rounds probabilities to integers of 24 bits, at least 1, so that every code can be coded.
"""

from __future__ import annotations

import abc
import hashlib
import math
from pathlib import Path
from typing import Any

import constriction
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from worldmodel.errors import DataError
from worldmodel.util.files import whole

State = Any


class CodeModel(abc.ABC):
    """p(next code | all codes before it) for streams of the first q of Q codebooks."""

    num_codes: int  # K
    num_codebooks: int  # Q

    @abc.abstractmethod
    def begin(self, num_codebooks: int) -> State:
        """The state before the first code of a stream that uses the first ``num_codebooks`` codebooks."""

    @abc.abstractmethod
    def probabilities(self, state: State) -> np.ndarray:
        """(K,) float of the next code, not necessarily normalised, and deterministic."""

    @abc.abstractmethod
    def observe(self, state: State, code: int) -> State:
        """The state after a code. The old state may be changed in place."""

    @abc.abstractmethod
    def fingerprint(self) -> bytes:
        """8 bytes that identify the model."""


class EntropyEncoder:
    """Codes → bytes."""

    def __init__(self, model: CodeModel, num_codebooks: int):
        self._model, self._state = model, model.begin(num_codebooks)
        self._coder = constriction.stream.queue.RangeEncoder()
        self.bits = 0.0  # −log₂ p of the codes so far; finish() adds up to 5 bytes

    def push(self, codes: np.ndarray) -> None:
        """Encode the codes (n, q) of the next n positions."""
        for code in codes.reshape(-1).tolist():
            probabilities = _probabilities(self._model, self._state)
            self._coder.encode(code, _distribution(probabilities))
            self.bits -= math.log2(max(probabilities[code] / probabilities.sum(), 2**-24))
            self._state = self._model.observe(self._state, code)

    def finish(self) -> bytes:
        return self._coder.get_compressed().astype("<u4").tobytes()


class EntropyDecoder:
    """Bytes → codes. Raises :class:`DataError` for bytes that no encoder returned."""

    def __init__(self, model: CodeModel, num_codebooks: int, data: bytes):
        if len(data) % 4:
            raise DataError(f"entropy-coded codes come in words of 4 bytes, not {len(data):,} bytes")
        self._model, self._state, self._num_codebooks = model, model.begin(num_codebooks), num_codebooks
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))

    def pull(self, positions: int) -> np.ndarray:
        """(n, q) int64: the codes of the next n positions."""
        codes = np.empty(positions * self._num_codebooks, np.int64)
        for index in range(len(codes)):
            try:
                code = int(self._coder.decode(_distribution(_probabilities(self._model, self._state))))
            except AssertionError:  # raised by the library
                raise DataError("the entropy-coded codes are invalid; the bitstream is of another model") from None
            codes[index], self._state = code, self._model.observe(self._state, code)
        return codes.reshape(positions, self._num_codebooks)


def _probabilities(model: CodeModel, state: State) -> np.ndarray:
    return np.asarray(model.probabilities(state), np.float64)


def _distribution(probabilities: np.ndarray) -> Any:
    return constriction.stream.model.Categorical(probabilities, perfect=False)


class CountModel(CodeModel):
    """Counts of training codes and of pairs of them, a model without a prior.

    For each codebook, it is a mixture of three distributions: of the code; given the code of the same codebook at the
    previous position; given the code of the previous codebook at the same position (none for codebook 0). The
    conditional ones are smoothed towards the first, p(k | a) = (n(a, k) + m p(k)) / (n(a) + m), and that towards the
    uniform one. The mixture weights and m maximise the leave-one-out likelihood of the training codes (deleted
    interpolation: Jelinek and Mercer, 1980), by expectation maximisation, m from a few values.

    Args:
        streams: training codes, each (n, Q) ints in [0, num_codes).
        num_codes: K.

    Raises :class:`DataError` without any codes.
    """

    SMOOTHING = (2.0, 8.0, 32.0, 128.0, 512.0)  # values of m

    def __init__(self, streams: list[np.ndarray], num_codes: int):
        if not sum(len(stream) for stream in streams):
            raise DataError("an entropy model of counts needs training codes, and there are none")
        self.num_codes, self.num_codebooks = num_codes, streams[0].shape[1]
        joined = np.concatenate([stream.astype(np.int64) for stream in streams])
        earlier = np.concatenate([np.vstack([np.full((1, self.num_codebooks), num_codes), s[:-1]]) for s in streams])
        coarser = np.hstack([np.full((len(joined), 1), num_codes), joined[:, :-1]])
        self.single = np.stack([np.bincount(column, minlength=num_codes) for column in joined.T])  # (Q, K)
        self.pairs = [_Pairs.of_codes(contexts, joined, num_codes) for contexts in (earlier, coarser)]
        self.smoothing, self.weights = np.zeros(self.num_codebooks), np.zeros((self.num_codebooks, 3))
        for codebook in range(self.num_codebooks):
            self._fit(codebook, joined[:, codebook], (earlier[:, codebook], coarser[:, codebook]))

    def save(self, path: str | Path) -> None:
        """Write it as safetensors, atomically."""
        with whole(Path(path)) as part:
            save_file(self._arrays(), part)

    @classmethod
    def load(cls, path: str | Path) -> CountModel:
        """Raises :class:`DataError` when the file is missing or invalid."""
        try:
            arrays = load_file(path)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None
        except SafetensorError:
            raise DataError(f"{path} is no entropy model, or damaged; make it again") from None
        model = cls.__new__(cls)
        try:
            model.single, model.smoothing, model.weights = (arrays[name] for name in ("single", "smoothing", "weights"))
            model.num_codebooks, model.num_codes = model.single.shape
            model.pairs = [_Pairs(arrays[f"keys{i}"], arrays[f"counts{i}"], model.num_codes) for i in range(2)]
        except (KeyError, ValueError):
            raise DataError(f"{path} is no entropy model, or damaged; make it again") from None
        return model

    def _arrays(self) -> dict[str, np.ndarray]:
        pairs = {f"{name}{i}": getattr(p, name) for i, p in enumerate(self.pairs) for name in ("keys", "counts")}
        return {"single": self.single, "smoothing": self.smoothing, "weights": self.weights, **pairs}

    def begin(self, num_codebooks: int) -> State:
        """A state is (next codebook, number of codebooks, codes of the previous position, codes of this position)."""
        return 0, num_codebooks, (self.num_codes,) * num_codebooks, ()

    def observe(self, state: State, code: int) -> State:
        codebook, num_codebooks, earlier, here = state
        here = (*here, code)
        return (
            (0, num_codebooks, here, ())
            if codebook + 1 == num_codebooks
            else (codebook + 1, num_codebooks, earlier, here)
        )

    def probabilities(self, state: State) -> np.ndarray:
        codebook, _, earlier, here = state
        total = self.single[codebook].sum()
        marginal = (self.single[codebook] + 0.5) / (total + 0.5 * self.num_codes)
        m = self.smoothing[codebook]
        probabilities = self.weights[codebook, 0] * marginal
        for weight, pairs, context in zip(
            self.weights[codebook, 1:],
            self.pairs,
            (earlier[codebook], here[-1] if here else self.num_codes),
            strict=True,
        ):
            codes, counts = pairs.row(codebook, context)
            scale = weight / (counts.sum() + m)
            probabilities += scale * m * marginal
            probabilities[codes] += scale * counts
        return probabilities

    def fingerprint(self) -> bytes:
        digest = hashlib.sha256()
        for _, array in sorted(self._arrays().items()):
            digest.update(array.tobytes())
        return digest.digest()[:8]

    def _fit(self, codebook: int, codes: np.ndarray, contexts: tuple[np.ndarray, ...]) -> None:
        """Fit m and the weights of a codebook to its training codes (n,) and their contexts."""
        total = len(codes)
        marginal = (self.single[codebook][codes] - 1 + 0.5) / (total - 1 + 0.5 * self.num_codes)
        best = -math.inf
        for m in self.SMOOTHING:
            columns = [marginal]
            for pairs, context in zip(self.pairs, contexts, strict=True):
                together, before = pairs.of(codebook, context, codes)
                columns.append((together - 1 + m * marginal) / (before - 1 + m))
            probabilities = np.stack(columns, 1)
            weights = np.full(3, 1 / 3)
            for _ in range(50):
                shares = probabilities * weights
                weights = (shares / shares.sum(1, keepdims=True)).mean(0)
            likelihood = np.log(probabilities @ weights).sum()
            if likelihood > best:
                best, self.smoothing[codebook], self.weights[codebook] = likelihood, m, weights


class _Pairs:
    """Counts of pairs of a context and a code for each codebook, without zeros."""

    def __init__(self, keys: np.ndarray, counts: np.ndarray, size: int):
        self.keys, self.counts, self.size = keys, counts, size
        self.sums = np.concatenate([[0], np.cumsum(counts)])

    @classmethod
    def of_codes(cls, contexts: np.ndarray, codes: np.ndarray, size: int) -> _Pairs:
        """Contexts and codes (n, Q); a context is in [0, size], ``size`` for none."""
        keys = _key(np.arange(codes.shape[1]), contexts, codes, size)
        return cls(*np.unique(keys, return_counts=True), size)

    def row(self, codebook: int, context: int) -> tuple[np.ndarray, np.ndarray]:
        """The codes with counts above 0 in a context, and the counts."""
        start, end = np.searchsorted(self.keys, [_key(codebook, context, code, self.size) for code in (0, self.size)])
        return self.keys[start:end] % self.size, self.counts[start:end]

    def of(self, codebook: int, contexts: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts of pairs, (n,), and of their contexts."""
        together = self.counts[np.searchsorted(self.keys, _key(codebook, contexts, codes, self.size))]
        first, last = (np.searchsorted(self.keys, _key(codebook, contexts, code, self.size)) for code in (0, self.size))
        return together, self.sums[last] - self.sums[first]


def _key(codebook: Any, context: Any, code: Any, size: int) -> Any:
    return (codebook * (size + 1) + context) * size + code
