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
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.heads.base import Head

TIE = {torch.float64: 1e-9, torch.float32: 5e-5, torch.bfloat16: 0.0, torch.float16: 0.0}
Randomness = Generator | Sequence[np.random.Generator] | None
"""The source of noise: one for the batch, or one for each row, so that the draws of a row do not depend on others."""
PAYS_OFF = 15  # ancestral passes per trajectory from which on the predictive sampler is faster on a CPU


Function = Callable[..., tuple[Tensor, ...]]
KEPT = 8  # graphs for each module; each of them holds the memory of its intermediate results


class Recording(NamedTuple):
    """A captured CUDA graph and the memory that it reads from and writes to."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class GraphCache:
    """Recordings of functions of tensors that also read the weights of a module: many small kernels that are recorded
    once and then launched as one CUDA graph."""

    def __init__(self) -> None:
        self.recordings: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Recording]] = weakref.WeakKeyDictionary()

    def call(self, module: nn.Module, key: Hashable, function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
        """``function(*inputs)``, by replay if it was called with this module, key and shapes before.

        The function must not synchronise with the host, nor branch on the values of its inputs. A module whose weights
        moved to other memory is recorded again; changes of weights in place take effect.
        """
        known = self.recordings.setdefault(module, {})
        where = tuple(parameter.data_ptr() for parameter in module.parameters())
        full = (key, where, tuple((tuple(x.shape), x.dtype, x.device) for x in inputs))
        if full not in known:
            while len(known) >= KEPT:
                known.pop(next(iter(known)))
            known[full] = record(function, inputs)
        recording = known[full]
        for static, given in zip(recording.inputs, inputs, strict=True):
            static.copy_(given)
        recording.graph.replay()
        return tuple(output.clone() for output in recording.outputs)


def record(function: Function, inputs: tuple[Tensor, ...]) -> Recording:
    """Capture one call, after some calls on another stream, in which libraries initialise, as capturing requires."""
    static = tuple(x.clone() for x in inputs)
    device = inputs[0].device
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(*static)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*static)
    return Recording(graph, static, outputs)


GRAPHS = GraphCache()


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
        if self.temperature == 0:
            return None
        if generator is None or isinstance(generator, Generator):
            device = generator.device if generator is not None else like.device
            uniform = torch.rand(shape, generator=generator, device=device, dtype=torch.float32)
        else:
            rows = np.empty(shape, np.float32)
            for row, source in zip(rows, generator, strict=True):
                source.random(dtype=np.float32, out=row)
            uniform = torch.from_numpy(rows).to(like.device)
        return uniform.clamp_(1e-20, 1 - 6e-8).log_().neg_().log_().neg_().to(like)

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

    def settle(self, head: Head, contexts: Tensor, noise: Tensor | None, codes: Tensor, ambiguous: Tensor) -> None:
        """Decide near ties again, in place, in the same order of summation for all samplers: row by row, whole grids.

        Where that changes a code, those after it are drawn again.
        """
        for row in ambiguous.any(-1).nonzero().flatten().tolist():
            one, changed = slice(row, row + 1), False
            for position in range(codes.shape[1]):
                if changed or ambiguous[row, position]:
                    logits = head.ordered_logits(codes[one], contexts[one])[:, position]
                    code = self.choose(logits, None if noise is None else noise[one, position], head.vectors)[0]
                    changed |= bool(code != codes[row, position])
                    codes[one, position] = code


class Ancestral(Sampler):
    """One position after the other, with the earlier ones in the state of the head: the fewest operations.

    Positions that do not depend on each other (the groups of the head) are drawn in one pass, unless ``together`` is
    false. On a GPU all passes are one CUDA graph.
    """

    def __init__(self, temperature: float = 1.0, top_k: int | None = None, together: bool = True):
        super().__init__(temperature, top_k)
        self.together = together

    def run(self, head: Head, contexts: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        groups = head.groups if self.together else [1] * contexts.shape[1]

        def walk(contexts: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
            codes = torch.zeros(contexts.shape[:2], dtype=torch.int64, device=contexts.device)
            ambiguous = torch.zeros_like(codes, dtype=torch.bool)
            state, start = head.begin(contexts), 0
            for size in groups:
                now = slice(start, start + size)
                logits = head.extend(state, codes, now.start, now.stop)
                drawn = self.choose(logits, noise[0][:, now] if noise else None, head.vectors)
                codes[:, now], ambiguous[:, now] = drawn
                start += size
            return codes, ambiguous

        inputs = (contexts,) if noise is None else (contexts, noise)
        if contexts.device.type == "cuda":
            codes, ambiguous = GRAPHS.call(head, (self.temperature, self.top_k, self.together), walk, *inputs)
        else:
            codes, ambiguous = walk(*inputs)
        return codes, torch.tensor(float(len(groups))), ambiguous


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
        few = contexts.device.type == "cpu" and len(head.groups) >= PAYS_OFF * len(contexts)
        sampler = Predictive if few and not head.stepwise else Ancestral
        return sampler(self.temperature, self.top_k).run(head, contexts, noise)


SAMPLERS: dict[str, type[Sampler]] = {"auto": Automatic, "ancestral": Ancestral, "predictive": Predictive}


def make_sampler(name: str = "auto", temperature: float = 1.0, top_k: int | None = None) -> Sampler:
    """A sampler by name. Raises :class:`ConfigError` for an unknown one."""
    if name not in SAMPLERS:
        raise ConfigError(f"unknown sampler {name!r}; choose {', '.join(SAMPLERS)}")
    return SAMPLERS[name](temperature, top_k)
