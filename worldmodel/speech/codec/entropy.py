"""Entropy coding of codes: arithmetic coding under a model of the next code.

Codes are ordered by position, then by codebook. A :class:`CodeModel` predicts the next code given all earlier ones; a
range coder (the library `constriction`, Bamler, 2022) spends −log₂ p bits on it. Encoder and decoder evaluate the model
in the same order, one code at a time, so that rounding is the same on one machine. The coder rounds probabilities to
integers of 24 bits, at least 1, so that every code can be coded.
"""

import abc
import contextlib
import copy
import functools
import hashlib
import math
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Self

import constriction
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.sparse import csr_array

from worldmodel.data.codes import fingerprint
from worldmodel.errors import ConfigError, DataError
from worldmodel.nn.modules import dtype_of
from worldmodel.priors import Prior
from worldmodel.priors.base import PriorState
from worldmodel.types import NO_ACTION
from worldmodel.util.files import whole


class CodeModel(abc.ABC):
    """p(next code | all codes before it) for streams of the first q of Q codebooks."""

    num_codes: int  # K
    num_codebooks: int  # Q
    fingerprint: bytes  # 8 bytes that identify the model

    @abc.abstractmethod
    def predict(self, num_codebooks: int) -> Generator[np.ndarray, int, None]:
        """Predict a stream of the first ``num_codebooks`` codebooks: the generator yields the probabilities of the next
        code, (K,) float64, not necessarily normalised, and deterministic; it is sent that code."""


def encode(model: CodeModel, codes: np.ndarray) -> tuple[bytes, float]:
    """Codes (n, q) → bytes, and −log₂ p of the codes, which the bytes exceed by up to 5."""
    coder = constriction.stream.queue.RangeEncoder()
    predictions, bits, code = model.predict(codes.shape[1]), 0.0, None
    for following in codes.reshape(-1).tolist():
        probabilities = predictions.send(code)  # type: ignore[arg-type]  # None starts a generator
        code = following
        coder.encode(code, constriction.stream.model.Categorical(probabilities, perfect=False))
        bits -= math.log2(max(probabilities[code] / probabilities.sum(), 2**-24))
    return coder.get_compressed().astype("<u4").tobytes(), bits


def decode(model: CodeModel, data: bytes, positions: int, num_codebooks: int) -> np.ndarray:
    """Bytes → codes (n, q) int64. Raises :class:`DataError` for bytes that :func:`encode` did not return."""
    if len(data) % 4:
        raise DataError(f"entropy-coded codes come in words of 4 bytes, not {len(data):,} bytes")
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
    predictions, codes, code = model.predict(num_codebooks), np.empty((positions, num_codebooks), np.int64), None
    for place in np.ndindex(*codes.shape):
        probabilities = predictions.send(code)  # type: ignore[arg-type]
        try:
            code = int(coder.decode(constriction.stream.model.Categorical(probabilities, perfect=False)))
        except AssertionError:  # raised by the library
            raise DataError("the entropy-coded codes are invalid; the bitstream is of another model") from None
        codes[place] = code
    return codes


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
        self.pairs = []  # (Q (K + 1), K) sparse: row codebook · (K + 1) + context, where K is no context
        for contexts in (earlier, coarser):
            rows = np.arange(self.num_codebooks) * (num_codes + 1) + contexts
            ones, shape = np.ones(joined.size, np.int64), (self.num_codebooks * (num_codes + 1), num_codes)
            self.pairs.append(csr_array((ones, (rows.ravel(), joined.ravel())), shape))
        self.smoothing, self.weights = np.zeros(self.num_codebooks), np.zeros((self.num_codebooks, 3))
        for codebook in range(self.num_codebooks):
            self._fit(codebook, joined[:, codebook], (earlier[:, codebook], coarser[:, codebook]))

    def save(self, path: str | Path) -> None:
        """Write it as safetensors, atomically."""
        with whole(Path(path)) as part:
            save_file(self._arrays(), part, {"fingerprint": self.fingerprint.hex()})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises :class:`DataError` when the file is missing or invalid."""
        model = cls.__new__(cls)
        try:
            with safe_open(path, "np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                facts = file.metadata() or {}
            model.single, model.smoothing, model.weights = (arrays[name] for name in ("single", "smoothing", "weights"))
            model.num_codebooks, model.num_codes = model.single.shape
            shape = model.num_codebooks * (model.num_codes + 1), model.num_codes
            places = [divmod(arrays[f"keys{i}"], model.num_codes) for i in range(2)]
            model.pairs = [csr_array((arrays[f"counts{i}"], places[i]), shape) for i in range(2)]
            if facts.get("fingerprint") not in (None, model.fingerprint.hex()):  # older files lack it
                raise ValueError("wrong checksum")
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None
        except (SafetensorError, KeyError, ValueError):
            raise DataError(f"{path} is no entropy model, or damaged; remove it, and it is made again") from None
        return model

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {"single": self.single, "smoothing": self.smoothing, "weights": self.weights}
        for number, pairs in enumerate(self.pairs):
            rows = np.repeat(np.arange(pairs.shape[0]), np.diff(pairs.indptr))
            arrays |= {f"keys{number}": rows * self.num_codes + pairs.indices, f"counts{number}": pairs.data}
        return arrays

    def predict(self, num_codebooks: int) -> Generator[np.ndarray, int, None]:
        earlier = [self.num_codes] * num_codebooks  # the codes of the previous position
        while True:
            here: list[int] = []
            for codebook in range(num_codebooks):
                coarser = here[-1] if here else self.num_codes
                here.append((yield self.probabilities(codebook, earlier[codebook], coarser)))
            earlier = here

    def probabilities(self, codebook: int, earlier: int, coarser: int) -> np.ndarray:
        """(K,) of a code, given the code of its codebook at the previous position and that of the previous codebook at
        its position; K for none."""
        marginal = (self.single[codebook] + 0.5) / (self.single[codebook].sum() + 0.5 * self.num_codes)
        m = self.smoothing[codebook]
        probabilities = self.weights[codebook, 0] * marginal
        for weight, pairs, context in zip(self.weights[codebook, 1:], self.pairs, (earlier, coarser), strict=True):
            start, end = pairs.indptr[codebook * (self.num_codes + 1) + context :][:2]
            codes, counts = pairs.indices[start:end], pairs.data[start:end]
            scale = weight / (counts.sum() + m)
            probabilities += scale * m * marginal
            probabilities[codes] += scale * counts
        return probabilities

    @functools.cached_property
    def fingerprint(self) -> bytes:  # type: ignore[override]
        return hashlib.sha256(b"".join(array.tobytes() for _, array in sorted(self._arrays().items()))).digest()[:8]

    def _fit(self, codebook: int, codes: np.ndarray, contexts: tuple[np.ndarray, ...]) -> None:
        """Fit m and the weights of a codebook to its training codes (n,) and their contexts."""
        marginal = (self.single[codebook][codes] - 1 + 0.5) / (len(codes) - 1 + 0.5 * self.num_codes)
        best = -math.inf
        for m in self.SMOOTHING:
            columns = [marginal]
            for pairs, context in zip(self.pairs, contexts, strict=True):
                rows = codebook * (self.num_codes + 1) + context
                together, before = pairs[rows, codes], pairs.sum(1)[rows]
                columns.append((together - 1 + m * marginal) / (before - 1 + m))
            probabilities = np.stack(columns, 1)
            weights = np.full(3, 1 / 3)
            for _ in range(50):
                shares = probabilities * weights
                weights = (shares / shares.sum(1, keepdims=True)).mean(0)
            likelihood = np.log(probabilities @ weights).sum()
            if likelihood > best:
                best, self.smoothing[codebook], self.weights[codebook] = likelihood, m, weights


class PriorModel(CodeModel):
    """The probabilities of codes under a run's prior over windows of n positions with Q codes each, without a speaker.

    The trunk reads the earlier windows and the head the earlier codes of the window, one code at a time, as in
    sampling. Encoder and decoder therefore compute the same on one thread of a CPU. Another machine may round
    differently and cannot decode the stream then, which ``Codec.read`` detects.

    The prior is trained with all Q codebooks. When a stream uses the first q, encoder and decoder fill in the most
    probable codes of the others.

    Raises :class:`ConfigError` for a prior whose head does not order codes by position, then by codebook.
    """

    def __init__(self, prior: Prior):
        # On a CPU, which is faster for one code at a time.
        self.prior = prior.eval() if next(prior.parameters()).device.type == "cpu" else copy.deepcopy(prior).cpu()
        self.num_codes, self.num_codebooks = prior.num_codes, prior.grid[-1] if len(prior.grid) > 1 else 1
        if len(prior.grid) > 2 or prior.head.order.tolist() != list(range(prior.positions)):
            raise ConfigError("an entropy model needs a head that orders codes by position; choose prior=codec")
        self.fingerprint = bytes.fromhex(fingerprint(prior))[:8]

    def predict(self, num_codebooks: int) -> Generator[np.ndarray, int, None]:
        prior, unknown = self.prior, torch.tensor([NO_ACTION])
        state = prior.begin(1)
        while True:
            codes = torch.zeros(1, prior.positions, dtype=torch.int64)  # of this window so far
            with _one_thread():
                contexts, trunk = prior.trunk.step(state.trunk, state.previous, unknown)
                head = prior.head.begin(contexts.to(dtype_of(prior.head)))
            for position in range(prior.positions):
                with _one_thread():
                    logits = prior.head.extend(head, codes, position, position + 1)[0, 0]
                    probabilities = logits.double().softmax(-1).numpy()
                used = position % self.num_codebooks < num_codebooks
                codes[0, position] = (yield probabilities) if used else int(logits.argmax())
            state = PriorState(trunk, codes.unflatten(1, prior.grid))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread, so that sums have a fixed order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)
