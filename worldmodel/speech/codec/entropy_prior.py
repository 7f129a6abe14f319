"""The prior of a run as an entropy model of codes.

The trunk reads the earlier windows and the head the earlier codes of the window, one code at a time, as in sampling.
Encoder and decoder therefore compute the same on one thread of a CPU. Another machine may round differently and cannot
decode the stream then, which ``Codec.read`` detects.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.codes import fingerprint
from worldmodel.errors import ConfigError
from worldmodel.heads.base import State as AnyState
from worldmodel.priors import Prior
from worldmodel.priors.base import PriorState
from worldmodel.speech.codec.entropy import CodeModel
from worldmodel.types import NO_ACTION


@dataclasses.dataclass
class Window:
    """The state of a stream within a window, changed in place by every code."""

    num_codebooks: int  # q
    prior: PriorState  # after the trunk has read the windows before
    head: AnyState
    codes: Tensor  # (1, N) int64, of this window so far
    position: int = 0  # of the next code
    logits: Tensor | None = None  # (K,) of the next code, cached


class PriorModel(CodeModel):
    """The probabilities of codes under a prior over windows of n positions with Q codes each, without a speaker.

    The prior is trained with all Q codebooks. When a stream uses the first q, encoder and decoder fill in the most
    probable codes of the others.

    Raises :class:`ConfigError` for a prior whose head does not order codes by position, then by codebook.
    """

    def __init__(self, prior: Prior):
        # On a CPU, which is faster for one code at a time.
        self.prior = prior.eval() if next(prior.parameters()).device.type == "cpu" else copy.deepcopy(prior).cpu()
        self.num_codes, positions = prior.num_codes, prior.positions
        self.num_codebooks = prior.grid[-1] if len(prior.grid) > 1 else 1
        if len(prior.grid) > 2 or prior.head.order.tolist() != list(range(positions)):
            raise ConfigError("an entropy model needs a head that orders codes by position; choose prior=codec")
        self._name = bytes.fromhex(fingerprint(prior))[:8]

    def fingerprint(self) -> bytes:
        return self._name

    def begin(self, num_codebooks: int) -> Window:
        with one_thread():
            return self._next(self.prior.begin(1), num_codebooks)

    def probabilities(self, state: Window) -> np.ndarray:
        with one_thread():
            probabilities: np.ndarray = self._logits(state).double().softmax(-1).numpy()
        return probabilities

    def observe(self, state: Window, code: int) -> Window:
        with one_thread():
            self._put(state, code)
            while state.position % self.num_codebooks >= state.num_codebooks:
                self._put(state, int(self._logits(state).argmax()))
            if state.position < self.prior.positions:
                return state
            grid = state.codes.unflatten(1, self.prior.grid)
            return self._next(PriorState(state.prior.trunk, grid), state.num_codebooks)

    def _next(self, state: PriorState, num_codebooks: int) -> Window:
        """The state at the start of the next window."""
        unknown = torch.tensor([NO_ACTION])
        contexts, trunk = self.prior.trunk.step(state.trunk, state.previous, unknown)
        head = self.prior.head.begin(contexts.to(self.prior.head_dtype))
        nothing = torch.zeros(1, self.prior.positions, dtype=torch.int64)
        return Window(num_codebooks, PriorState(trunk, state.previous), head, nothing)

    def _logits(self, state: Window) -> Tensor:
        """(K,) of the next code."""
        if state.logits is None:
            state.logits = self.prior.head.extend(state.head, state.codes, state.position, state.position + 1)[0, 0]
        return state.logits

    def _put(self, state: Window, code: int) -> None:
        self._logits(state)  # updates the cache of the head, also if the logits are not needed
        state.codes[0, state.position] = code
        state.position, state.logits = state.position + 1, None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that sums have a fixed order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)
