"""All that a GPU has to settle, in under nine minutes: does it run, is it right, and how fast is it.

It needs no data: frames and weights are made up. Each section stands alone; one that fails is reported, and sections
are left out when the time is over. The last lines list what is wrong. With --device cpu --tiny it shows in a few
minutes that the sections run.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.gpu import correctness, speed, training
from benchmarks.gpu.bench import Bench

SECTIONS: dict[str, Callable[[Bench], None]] = {
    section.__name__: section
    for section in (
        correctness.environment, correctness.samplers, correctness.graphs, correctness.against_the_cpu,
        correctness.muon, speed.imagination, speed.parts_of_a_frame, speed.dream_environment, training.batches,
        training.experiments, speed.planning, training.resumed, training.command, training.one_process_of_ddp,
    )
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections; returns the number of rows that are wrong, at most 1."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    parser.add_argument("--minutes", type=float, default=8.0, help="no section starts later (8)")
    parser.add_argument("--only", default="", metavar="A,B", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all rows as JSON")
    args = parser.parse_args(argv)
    names = args.only.split(",") if args.only else list(SECTIONS)
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}; choose {', '.join(SECTIONS)}")
    bench = Bench(torch.device("cuda:0" if args.device == "cuda" else args.device), args.tiny, args.minutes)
    for name in names:
        if bench.left() < 15:
            bench.add(name, skipped="no time left")
            continue
        try:
            SECTIONS[name](bench)
        except Exception as error:  # the other sections go on
            traceback.print_exc()
            bench.add(name, error=f"{type(error).__name__}: {error}"[:300])
        if args.out is not None:
            args.out.write_text(json.dumps(bench.rows, indent=1, default=str) + "\n")
    failures = bench.failures()
    print(f"\n{len(failures)} rows are wrong or failed" + (":" if failures else ""))
    for name, row in failures:
        print(f"  {name} {row}")
    return min(len(failures), 1)


if __name__ == "__main__":
    sys.exit(main())
