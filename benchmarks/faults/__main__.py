"""Inject faults and count what was lost: SIGKILL, damaged files, wrong settings, wrong calls of
environments, exhausted resources, malicious files, growing memory. Prints a table; the exit code is
1 if anything was lost. docs/reliability.md explains the tests.
"""

import argparse
import collections
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.faults import damage, environments, kills, malicious, resources, settings
from benchmarks.faults.judge import Outcome, Result
from benchmarks.run import heading, listed, machine, write_report
from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import add_number
from worldmodel.errors import ConfigError
from worldmodel.util.ranges import Count, Positive

HANG = 300.0  # seconds without a result
EXIT_LOST = 1
Inject = Callable[[Path, random.Random], Iterator[Result]]

TESTS: dict[str, tuple[Inject, int]] = {
    "kill": (kills.inject, 200),
    "bytes": (damage.inject, 10_000),
    "settings": (settings.inject, 5_000),
    "env": (environments.inject, 5_000),
    "resources": (resources.inject, 100),
    "malicious": (malicious.inject, 100),
    "memory": (resources.inject_growth, 100),
}
"""How faults are injected, and how many unless the flag says otherwise; fewer where there are no more."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", type=listed(TESTS), metavar="A,B", help=f"of {', '.join(TESTS)}")
    usual = ", ".join(f"{test} {count}" for test, (_, count) in TESTS.items())
    add_number(parser, "--count", Count, f"faults of each test ({usual})")
    add_number(parser, "--seconds", Positive, "seconds after which a test ends (3600)", 3600.0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures and the machine as JSON")


@entry_point("benchmarks.faults", __doc__, add_flags)
def main(args: argparse.Namespace, config: Config) -> None:
    """Run the tests and print what the faults did. Exits when something was lost."""
    if args.out is not None and not args.out.parent.is_dir():
        raise ConfigError(f"--out {args.out}: there is no folder {args.out.parent}")
    torch.set_num_threads(1)  # before a process is forked
    console, where = Console(), machine(torch.device("cpu"))
    console.print(heading(where), highlight=False, soft_wrap=True)
    results: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        for name in args.only or TESTS:
            count = TESTS[name][1] if args.count is None else args.count
            results[name] = run_test(name, Path(scratch), config.seed, count, args.seconds)
            console.print(table(name, results[name]))
    lost = [each for found in results.values() for each in found if each.outcome is Outcome.LOST]
    for each in lost:
        console.print(f"{each.part}: {each.detail}", style="red", markup=False, highlight=False, soft_wrap=True)
    figures = {name: counts(found) for name, found in results.items()}
    write_report(args.out, {"machine": where, "seed": config.seed, "figures": figures, "lost": [*map(str, lost)]})
    if lost:
        sys.exit(EXIT_LOST)


def run_test(name: str, scratch: Path, seed: int, count: int, seconds: float) -> list[Result]:
    """The results of a test, in a process of its own: one that ends or hangs is a fault, too, and is replaced."""
    context, deadline = multiprocessing.get_context("fork"), time.monotonic() + seconds
    results: list[Result] = []
    for attempt in range(100):
        folder = scratch / f"{name}-{attempt}"
        receive, send = context.Pipe(False)
        arguments = TESTS[name][0], folder, random.Random(f"{seed} {name} {attempt}"), send
        process = context.Process(target=work, args=(*arguments, count - len(results), deadline))
        process.start()
        send.close()
        try:
            while receive.poll(HANG):
                if (result := receive.recv()) is None:
                    return results
                results.append(result)
            reason = f"no result for {HANG:g} s"
        except EOFError:
            process.join()
            reason = f"the process ended with exit code {process.exitcode}"
        finally:
            process.kill()
            process.join()
        results.append(Result(name, Outcome.LOST, reason))
    return results


def work(inject: Inject, folder: Path, rng: random.Random, send: Connection, count: int, deadline: float) -> None:
    """Body of the process: sends results, and None at the end."""
    folder.mkdir()
    os.chdir(folder)
    for _, result in zip(range(count), inject(folder, rng), strict=False):
        send.send(result)
        if time.monotonic() > deadline:
            break
    send.send(None)


def counts(results: Sequence[Result]) -> dict[str, dict[str, int]]:
    """Part → outcome → number."""
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for each in results:
        found[each.part][each.outcome.value] += 1
    return {part: dict(each) for part, each in found.items()}


def table(name: str, results: Sequence[Result]) -> Table:
    """What the faults of a test did, a row for each part."""
    shown = Table(title=f"{name}: {len(results):,} faults", title_justify="left", box=None, pad_edge=False)
    present = [each for each in Outcome if each is Outcome.LOST or any(each is r.outcome for r in results)]
    shown.add_column("part", overflow="fold")
    for column in ("faults", *(each.value for each in present)):
        shown.add_column(column, justify="right", overflow="fold")
    for part, found in counts(results).items():
        shown.add_row(part, f"{sum(found.values()):,}", *(f"{found.get(each.value, 0):,}" for each in present))
    return shown


if __name__ == "__main__":
    sys.exit(main())
