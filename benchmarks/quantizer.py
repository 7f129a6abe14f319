"""Compare time and memory of worldmodel's vector quantizer with those of vector-quantize-pytorch.

Both have the same codebook and vectors. Measured are a training step (forward, moving averages,
commitment term, backward) and encoding, in turn in one process; ratios are computed per round.
Memory is the growth of a separate process during three calls. The exit code is 1 if the two choose
different codes. Needs the extra .[benchmarks].
"""

import argparse
import dataclasses
import multiprocessing
import sys
from collections.abc import Callable

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.run import add_report, heading, machine, table, write_report
from benchmarks.timing import Contender, Figure, peak_memory, reset_peak, rounds, seconds
from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import add_number
from worldmodel.errors import ConfigError
from worldmodel.quantizers import VectorQuantizer
from worldmodel.util.ranges import Count

OURS, THEIRS = "worldmodel", "vector-quantize-pytorch"
DEVICE = torch.device("cpu")
DECAY, BETA = 0.99, 0.25


@dataclasses.dataclass(frozen=True)
class Problem:
    """Shape of the vectors and of the codebook."""

    batch: int
    length: int
    width: int  # D
    num_codes: int  # K
    threads: int

    def vectors(self) -> Tensor:
        """(batch, length, D) standard normal, requiring a gradient."""
        shape = (self.batch, self.length, self.width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


Step = Callable[[nn.Module, Tensor], Tensor]  # one call of a quantizer, which returns the codes


def contenders(problem: Problem, vectors: Tensor) -> dict[str, nn.Module]:
    """Both quantizers with the same codebook, initialised from these vectors. Raises :class:`ConfigError`."""
    ours = VectorQuantizer(problem.num_codes, problem.width, decay=DECAY)
    with torch.no_grad():
        ours(vectors, torch.Generator().manual_seed(1))
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError as error:
        remedy = "install it with pip install -e '.[benchmarks]'"
        raise ConfigError(f"{THEIRS} cannot be imported ({error}); {remedy}") from None
    # Its defaults, except for the straight-through gradient as in the paper. It does not restart codes.
    theirs = VectorQuantize(
        dim=problem.width, codebook_size=problem.num_codes, decay=DECAY, commitment_weight=BETA, rotation_trick=False
    )
    state = theirs._codebook
    for target, source in ((state.embed, ours.table), (state.embed_avg, ours.sums), (state.cluster_size, ours.counts)):
        target.data.copy_(source[None])
    return {OURS: ours, THEIRS: theirs}


def train_step(quantizer: nn.Module, vectors: Tensor) -> Tensor:
    """Forward and backward in training mode."""
    quantizer.train()
    vectors.grad = None
    if isinstance(quantizer, VectorQuantizer):
        result = quantizer(vectors)
        out, codes, loss = result.vectors, result.codes, BETA * result.losses["commitment"]
    else:
        out, codes, loss = quantizer(vectors)
    (out.sum() + loss.sum()).backward()
    return codes


@torch.no_grad()
def encode(quantizer: nn.Module, vectors: Tensor) -> Tensor:
    """Codes in evaluation mode."""
    quantizer.eval()
    return quantizer.encode(vectors) if isinstance(quantizer, VectorQuantizer) else quantizer(vectors)[1]


STEPS: dict[str, Step] = {"step": train_step, "encode": encode}


def different_codes(problem: Problem) -> dict[str, int]:
    """Number of codes that differ, in encoding and in a training step."""
    vectors = problem.vectors()
    both = contenders(problem, vectors)
    counts = {}
    for what in reversed(STEPS):  # encoding first, because a training step changes the codebooks
        ours, theirs = (STEPS[what](quantizer, vectors) for quantizer in both.values())
        counts[what] = int((ours != theirs).sum())
    return counts


def speeds(problem: Problem, repeat: int) -> list[Figure]:
    """Milliseconds of each contender, and the ratio of theirs to ours."""
    vectors = problem.vectors()
    both = contenders(problem, vectors)

    def contender(step: Step, quantizer: nn.Module) -> Contender:
        return lambda number: seconds(lambda: step(quantizer, vectors), DEVICE)

    turns = {(what, name): contender(step, both[name]) for what, step in STEPS.items() for name in both}
    spent = rounds(turns, repeat)
    figures = [Figure.of(f"{what}, {name}", [1e3 * t for t in times], "ms") for (what, name), times in spent.items()]
    for what in STEPS:
        figures.append(Figure.ratio(f"{what}, times as fast", spent[what, THEIRS], spent[what, OURS]))
    return figures


def memory_growth(problem: Problem, what: str, name: str) -> float:
    """MiB by which this process, a new one, grows at most in three calls."""
    torch.set_num_threads(problem.threads)
    vectors = problem.vectors()
    few = vectors[:1, :8].detach().clone().requires_grad_()
    quantizer = contenders(problem, few)[name]
    STEPS[what](quantizer, few)  # excludes the initialisation of libraries
    reset_peak(DEVICE)
    before = peak_memory(DEVICE).value
    for _ in range(3):
        STEPS[what](quantizer, vectors)
    return peak_memory(DEVICE).value - before


def memory(problem: Problem) -> list[Figure]:
    """Memory growth of each contender in a separate process, and the ratio of ours to theirs."""
    figures = []
    for what in STEPS:
        sizes = {}
        for name in (OURS, THEIRS):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                sizes[name] = pool.apply(memory_growth, (problem, what, name))
            figures.append(Figure.of(f"{what}, {name}", [sizes[name]], "MiB"))
        figures.append(Figure.of(f"{what}, share of memory", [sizes[OURS] / max(sizes[THEIRS], 1 / 256)], ""))
    return figures


def add_flags(parser: argparse.ArgumentParser) -> None:
    for flag, default in (("batch", 64), ("length", 1024), ("width", 64), ("codes", 512), ("threads", 2)):
        add_number(parser, f"--{flag}", Count, f"({default})", default)
    add_report(parser, 11)


@entry_point("benchmarks.quantizer", __doc__, add_flags)
def main(args: argparse.Namespace, config: Config) -> None:
    problem = Problem(args.batch, args.length, args.width, args.codes, args.threads)
    torch.set_num_threads(problem.threads)
    console, where, different = Console(), machine(DEVICE), different_codes(problem)
    differences = ", ".join(f"{count} codes differ ({what})" for what, count in different.items())
    sizes = f"{problem.batch}×{problem.length} vectors of {problem.width}, {problem.num_codes} codes"
    console.print(f"{heading(where)}\n{sizes}; {differences}", highlight=False, soft_wrap=True)
    figures = {"time": speeds(problem, args.repeat), "memory": memory(problem)}
    for name, group in figures.items():
        console.print(table(name, group))
    write_report(args.out, {"machine": where, "problem": problem, "different": different, "figures": figures})
    if any(different.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
