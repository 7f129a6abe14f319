"""The prior as a model of the codes of a stream: what it expects of the next code is what the code costs.

Context of a window is what the trunk says of the windows before it, and within the window the head goes on one code at
a time, in the very steps in which it draws. So encoder and decoder compute the same, on one thread of a CPU; another
machine may round otherwise, and then the stream cannot be read there (``Codec.read`` notices).
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
    """A stream within one of its windows. It changes with every code."""

    num_codebooks: int  # q
    behind: PriorState  # the windows before, this one's context included
    head: AnyState
    codes: Tensor  # (1, N) int64, those so far
    place: int = 0  # of the next one
    logits: Tensor | None = None  # (K,), of the next one, once asked for


class PriorModel(CodeModel):
    """A prior over windows of n places with Q codes each, for a speaker that nobody names.

    Where a stream uses the first q of Q codebooks, the others stay unsaid. The prior learnt of whole places, and so
    both sides fill in what it finds most probable.

    Raises :class:`ConfigError` for a prior whose head does not go place by place, and codebook by codebook.
    """

    def __init__(self, prior: Prior):
        # A codec may work on a GPU, but one code at a time is work for a CPU.
        self.prior = prior.eval() if next(prior.parameters()).device.type == "cpu" else copy.deepcopy(prior).cpu()
        self.num_codes, positions = prior.num_codes, prior.positions
        self.num_codebooks = prior.grid[-1] if len(prior.grid) > 1 else 1
        if len(prior.grid) > 2 or prior.head.order.tolist() != list(range(positions)):
            raise ConfigError(
                "an entropy model goes place by place, and the head of this prior does not; choose prior=codec"
            )
        self._name = bytes.fromhex(fingerprint(prior))[:8]

    def fingerprint(self) -> bytes:
        return self._name

    def begin(self, num_codebooks: int) -> Window:
        with alone():
            return self._next(self.prior.begin(1), num_codebooks)

    def probabilities(self, state: Window) -> np.ndarray:
        with alone():
            chances: np.ndarray = self._logits(state).double().softmax(-1).numpy()
        return chances

    def observe(self, state: Window, code: int) -> Window:
        with alone():
            self._put(state, code)
            while state.place % self.num_codebooks >= state.num_codebooks:
                self._put(state, int(self._logits(state).argmax()))
            if state.place < self.prior.positions:
                return state
            grid = state.codes.unflatten(1, self.prior.grid)
            return self._next(PriorState(state.behind.trunk, grid), state.num_codebooks)

    def _next(self, behind: PriorState, num_codebooks: int) -> Window:
        """The window behind those."""
        unknown = torch.tensor([NO_ACTION])
        contexts, trunk = self.prior.trunk.step(behind.trunk, behind.previous, unknown)
        head = self.prior.head.begin(contexts.to(self.prior.head_dtype))
        nothing = torch.zeros(1, self.prior.positions, dtype=torch.int64)
        return Window(num_codebooks, PriorState(trunk, behind.previous), head, nothing)

    def _logits(self, state: Window) -> Tensor:
        """(K,) of the next code."""
        if state.logits is None:
            state.logits = self.prior.head.extend(state.head, state.codes, state.place, state.place + 1)[0, 0]
        return state.logits

    def _put(self, state: Window, code: int) -> None:
        self._logits(state)  # what the head keeps is made in this order, whether anyone asked or not
        state.codes[0, state.place] = code
        state.place, state.logits = state.place + 1, None


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One thread: sums of several come in another order, and so small ones are as fast."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)
