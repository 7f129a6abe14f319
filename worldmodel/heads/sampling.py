"""Samplers: from a head's logits and noise drawn beforehand to the codes of a grid.

All samplers compute the same function. With Gumbel noise g the sample of position i is

    code[i] = argmax_k  logits[i, k] / temperature + g[i, k],      logits[i] = head(codes[< i], context),

which is an exact draw from the autoregressive distribution (Gumbel-max). At temperature 0 it is the code with the least
expected squared distance to a draw (minimum Bayes risk; Bickel & Doksum, *Mathematical Statistics*, 2015, ch. 3), that
is the one whose vector e lies nearest to the expected vector:

    code[i] = argmin_k  ‖e[k] − Σ_j p[i, j] e[j]‖²,               p[i] = softmax(logits[i]).

With the most probable code (``top_k`` 1), moving objects often stop: their probability is spread over many similar
codes, none of which is probable on its own (docs/experiments.md has figures).

*Ancestral* sampling evaluates the head position by position. *Predictive* sampling (Wiggers & Hoogeboom, *Predictive
Sampling with Forecasting Autoregressive Models*, ICML 2020; Song et al., *Accelerating Feedforward Computation via
Parallel Nonlinear Equation Solving*, ICML 2021) guesses the whole grid, evaluates every position at once and repeats
until nothing changes: the only fixed point is the ancestral sample, and each pass makes at least one more position
right.

In floating point, two orders of summation may disagree when the best two scores of a position are nearly equal. Such
a near tie (closer than ``TIE``, far above the rounding error) is decided by ``settle``, which evaluates the head in one
fixed way, row by row. So the samples of all samplers are always equal.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.heads.base import Head
from worldmodel.heads.noise import Randomness, uniform_noise
from worldmodel.nn.float32 import full_float32
from worldmodel.nn.graphs import GRAPHS, Outputs

TIE = {torch.float64: 1e-9, torch.float32: 5e-5, torch.bfloat16: 0.0, torch.float16: 0.0}
PAYS_OFF = 15  # ancestral passes per trajectory from which on the predictive sampler is faster on a CPU
MOST_PASSES = 1024  # of a CUDA graph. One of an image of 128×128×3 values would have two million kernels


class Sampler(abc.ABC):
    """Draws grids from a head.

    Args:
        temperature: divides the logits; 0 takes the code nearest to the expected vector of every position.
        top_k: draw from the k most probable codes of a position only; None: from all.
    """

    def __init__(self, temperature: float = 1.0, top_k: int | None = None):
        if not 0 <= temperature < float("inf"):
            raise ConfigError(f"temperature {temperature:g} is no finite number from 0 on; 0 takes what is expected")
        if top_k is not None and top_k < 1:
            raise ConfigError(f"top_k {top_k} leaves no code to draw; choose 1 or more")
        self.temperature, self.top_k = temperature, top_k

    @torch.no_grad()
    def sample(self, head: Head, contexts: Tensor, generator: Randomness = None) -> tuple[Tensor, Tensor]:
        """contexts (B, N, width) → codes (B, N) int64, both in raster order, and mean passes of the head, ().

        One pass is one evaluation of the head, of one position or of many.
        """
        with full_float32(contexts.device):
            contexts = head.in_order(contexts)
            noise = self.noise((*contexts.shape[:2], len(head.vectors)), contexts, generator)
            codes, passes, ambiguous = self.run(head, contexts, noise)
            self.settle(head, contexts, noise, codes, ambiguous)
        return head.in_raster(codes), passes

    @abc.abstractmethod
    def run(self, head: Head, contexts: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """→ codes (B, N), mean passes (), and which positions were near ties (B, N) bool; all in the head's order."""

    def noise(self, shape: tuple[int, ...], like: Tensor, generator: Randomness) -> Tensor | None:
        """Gumbel noise of a shape (B, N, K), on the device and of the type of ``like``; none at temperature 0."""
        return None if self.temperature == 0 else gumbel(uniform_noise(shape, like.device, generator)).to(like)

    def scores(self, logits: Tensor, noise: Tensor | None, vectors: Tensor) -> Tensor:
        """(..., K) logits and noise, (K, D) vectors of the codes → what the drawn code maximises."""
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, -1).values[..., -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if noise is not None:
            return torch.add(noise, logits, alpha=1 / self.temperature)
        vectors = vectors.to(logits.dtype)
        expected = logits.softmax(-1) @ vectors
        return expected @ vectors.T - vectors.square().sum(-1) / 2

    def choose(self, logits: Tensor, noise: Tensor | None, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """→ codes (...) and near ties (...) bool."""
        tie = TIE[logits.dtype] * max(1.0, 1 / (self.temperature or 1.0))
        scores = self.scores(logits, noise, vectors)
        best, codes = scores.max(-1)
        # The second best by a second maximum: several times faster than sorting by topk.
        second = scores.scatter_(-1, codes[..., None], float("-inf")).amax(-1)
        near = best - second < tie
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            # Which codes are the k best may be a near tie, too.
            edge = logits.topk(self.top_k + 1, -1).values
            near |= edge[..., -2] - edge[..., -1] < tie
        return codes, near

    def fastest(self, head: Head, device: torch.device, batch: int) -> Sampler:
        """The sampler that draws for a batch: this one, unless it chooses among others."""
        return self

    def settle(self, head: Head, contexts: Tensor, noise: Tensor | None, codes: Tensor, ambiguous: Tensor) -> bool:
        """Decide near ties again, in place, in the same order of summation for all samplers: row by row, whole grids.

        Where that changes a code, those after it are drawn again. Returns whether there are near ties. The host waits
        for the device once, and where a row has near ties, once more for each of them.
        """
        near = ambiguous.cpu()
        waiting = {row: near[row].nonzero().flatten().tolist() for row in near.any(-1).nonzero().flatten().tolist()}
        settled = bool(waiting)
        while waiting:
            before = {row: codes[row, positions[0]].clone() for row, positions in waiting.items()}
            for row, positions in waiting.items():
                self._decide(head, contexts, noise, codes, row, positions[0])
            changed = torch.stack([codes[row, waiting[row][0]] != code for row, code in before.items()]).tolist()
            for (row, positions), differs in zip(list(waiting.items()), changed, strict=True):
                waiting[row] = positions[1:]
                if differs:
                    for position in range(positions[0] + 1, codes.shape[1]):
                        self._decide(head, contexts, noise, codes, row, position)
                if differs or len(positions) == 1:
                    del waiting[row]
        return settled

    def _decide(self, head: Head, contexts: Tensor, noise: Tensor | None, codes: Tensor, row: int, place: int) -> None:
        one = slice(row, row + 1)
        logits = head.ordered_logits(codes[one], contexts[one])[:, place]
        codes[one, place] = self.choose(logits, None if noise is None else noise[one, place], head.vectors)[0]


def gumbel(uniform: Tensor) -> Tensor:
    """Uniform noise → standard Gumbel noise, in place."""
    return uniform.clamp_(1e-20, 1 - 6e-8).log_().neg_().log_().neg_()


class Ancestral(Sampler):
    """One position after the other, with the earlier ones in the state of the head: the fewest operations.

    Positions that do not depend on each other (the groups of the head) are drawn in one pass, unless ``together`` is
    false. On a GPU all passes are one CUDA graph.
    """

    def __init__(self, temperature: float = 1.0, top_k: int | None = None, together: bool = True):
        super().__init__(temperature, top_k)
        self.together = together

    def run(self, head: Head, contexts: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        passes = torch.tensor(float(len(self.groups(head))))
        if not self.recordable(head, contexts.device):
            codes, ambiguous = self.walk(head, contexts, noise)
            return codes, passes, ambiguous

        def walk(contexts: Tensor, *noise: Tensor) -> Outputs:
            return Outputs(self.walk(head, contexts, noise[0] if noise else None), ())

        inputs = [contexts] if noise is None else [contexts, noise]
        (codes, ambiguous), _ = GRAPHS.call(head, self.key, walk, inputs)
        return codes, passes, ambiguous

    @property
    def key(self) -> tuple[float, int | None, bool]:
        """The settings that determine the samples and how they are computed."""
        return self.temperature, self.top_k, self.together

    def groups(self, head: Head) -> list[int]:
        """Sizes of the groups of positions that are drawn in one pass each."""
        return head.groups if self.together else [1] * len(head.order)

    def recordable(self, head: Head, device: torch.device) -> bool:
        """Whether all passes are one CUDA graph."""
        return device.type == "cuda" and len(self.groups(head)) <= MOST_PASSES

    def walk(self, head: Head, contexts: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes (B, N) and near ties (B, N), both in the head's order, as are the arguments."""
        codes = torch.zeros(contexts.shape[:2], dtype=torch.int64, device=contexts.device)
        ambiguous = torch.zeros_like(codes, dtype=torch.bool)
        state, start = head.begin(contexts), 0
        for size in self.groups(head):
            now = slice(start, start + size)
            logits = head.extend(state, codes, now.start, now.stop)
            drawn = self.choose(logits, None if noise is None else noise[:, now], head.vectors)
            codes[:, now], ambiguous[:, now] = drawn
            start += size
        return codes, ambiguous


class Predictive(Sampler):
    """Fixed-point iteration from a guess: the head's own forecast of each code, under the same noise.

    A pass computes only the positions after the groups that every row has verified; converged rows leave the batch.
    """

    def run(self, head: Head, contexts: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        batch, positions = contexts.shape[:2]
        sizes = torch.tensor(head.groups, device=contexts.device)
        ends = sizes.cumsum(0).repeat_interleave(sizes)  # (N,) where the group of each position ends
        codes = self.scores(head.forecast(contexts), noise, head.vectors).argmax(-1)
        result, ambiguous = torch.empty_like(codes), torch.zeros_like(codes, dtype=torch.bool)
        rows = torch.arange(batch, device=codes.device)
        state = head.begin(contexts)
        verified = torch.zeros(batch, dtype=torch.int64, device=codes.device)
        total = 0
        tie = ambiguous.clone()
        while len(rows):
            start = int(verified.min())
            logits = head.extend(state, codes, start, positions)
            new, tie[:, start:] = self.choose(logits, None if noise is None else noise[:, start:], head.vectors)
            total += len(rows)
            # All positions before the first difference, and its group, were computed from right codes.
            first = torch.where(new == codes[:, start:], positions, ends[start:]).amin(1)
            codes[:, start:] = new
            verified = torch.maximum(verified, first)
            done = verified >= positions
            if done.any():
                result[rows[done]], ambiguous[rows[done]] = codes[done], tie[done]
                keep = (~done).nonzero().flatten()
                rows, codes, verified, tie = rows[keep], codes[keep], verified[keep], tie[keep]
                noise = None if noise is None else noise[keep]
                state = state.select(keep)
        return result, torch.tensor(total / batch), ambiguous


class Automatic(Sampler):
    """The faster sampler: predictive for small batches on a CPU, unless single steps of the head are cheap (its
    ``stepwise``); else ancestral. The samples are the same."""

    def run(self, head: Head, contexts: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return self.fastest(head, contexts.device, len(contexts)).run(head, contexts, noise)

    def fastest(self, head: Head, device: torch.device, batch: int) -> Sampler:
        few = device.type == "cpu" and len(head.groups) >= PAYS_OFF * batch
        sampler = Predictive if few and not head.stepwise else Ancestral
        return sampler(self.temperature, self.top_k)


SAMPLERS: dict[str, type[Sampler]] = {"auto": Automatic, "ancestral": Ancestral, "predictive": Predictive}


def make_sampler(name: str = "auto", temperature: float = 1.0, top_k: int | None = None) -> Sampler:
    """A sampler by name. Raises :class:`ConfigError` for an unknown one."""
    if name not in SAMPLERS:
        raise ConfigError(f"unknown sampler {name!r}; choose {', '.join(SAMPLERS)}")
    return SAMPLERS[name](temperature, top_k)
