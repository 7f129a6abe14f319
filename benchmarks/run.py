"""Measures speeds and peak memory: ``python -m benchmarks.run run=my_way_home-1``, or any settings without a run."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

import worldmodel
from benchmarks import environment, imagine, planning, store, tokenizer, training
from benchmarks.subject import Subject, open_subject
from benchmarks.timing import Figure, Plan
from worldmodel.config.cli import entry_point
from worldmodel.errors import ConfigError
from worldmodel.nn.precision import PRECISIONS
from worldmodel.util.files import replace_text

DESCRIPTION = """\
Measure speeds and peak memory of a run (run=name), or of the untrained model of the settings, on recorded episodes
(data=folder). Contenders are measured in turn; a figure is the median of the rounds, with the lowest and the highest.
Prints tables and writes JSON, which docs/benchmarks.md explains."""

MEASURES: dict[str, Callable[[Subject, Plan], list[Figure]]] = {
    "store": store.measure,  # first, because files that others have mapped cannot be dropped from the cache
    "tokenizer": tokenizer.measure,
    "imagination": imagine.measure,
    "environment": environment.measure,
    "planning": planning.measure,
    "training": training.measure,
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    for flag, choices, default in (("--only", MEASURES, None), ("--precision", PRECISIONS, list(PRECISIONS))):
        parser.add_argument(flag, type=listed(choices), default=default, metavar="A,B", help=f"of {', '.join(choices)}")
    parser.add_argument("--batches", type=listed(), default=[1, 64, 512], metavar="N,N", help="default: 1,64,512")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="measured rounds (%(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: that of torch)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures and the machine as JSON")


def listed(choices: Iterable[str] | None = None) -> Callable[[str], list[Any]]:
    """Parser of a flag with comma-separated names of ``choices``, or numbers of at least 1."""

    def read(text: str) -> list[Any]:
        words = list(dict.fromkeys(text.split(",")))
        for word in words:
            if word not in choices if choices is not None else not word.isdecimal() or int(word) < 1:
                allowed = "numbers of at least 1" if choices is None else ", ".join(choices)
                raise argparse.ArgumentTypeError(f"{word!r} is none of {allowed}")
        return words if choices is not None else [int(word) for word in words]

    return read


@entry_point("benchmarks.run", DESCRIPTION, add_flags)
def main(args: argparse.Namespace, config: DictConfig) -> None:
    """Run the benchmark and print the figures."""
    for flag, value in (("--repeat", args.repeat), ("--threads", args.threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} {value}: give at least 1")
    if args.out is not None and not args.out.parent.is_dir():
        raise ConfigError(f"--out {args.out}: there is no folder {args.out.parent}")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    plan = Plan(args.batches, args.precision, args.repeat)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        subject = open_subject(config, args.overrides, Path(scratch))
        report: dict[str, Any] = {
            "machine": machine(subject.device),
            "model": subject.facts(),
            "repeat": plan.repeat,
            "figures": {},
        }
        console.print(heading(report), highlight=False, soft_wrap=True)
        for name in args.only or MEASURES:
            with console.status(f"measuring: {name}"):
                figures = MEASURES[name](subject, plan)
            report["figures"][name] = [dataclasses.asdict(figure) for figure in figures]
            console.print(table(name, figures))
    if args.out is not None:
        replace_text(args.out, json.dumps(report, indent=1) + "\n")


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware and software that figures depend on, as plain JSON."""
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),  # above about 0 the machine is not idle
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "worldmodel": worldmodel.__version__,
    }


def cpu_model() -> str:
    """The name of the processor, if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def heading(report: dict[str, Any]) -> str:
    """The machine and the model in a few lines."""
    where, model = report["machine"], report["model"]
    shape, grid = "×".join(map(str, model["frame"])), "×".join(map(str, model["grid"]))
    sizes = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in model["parameters"].items())
    name = model["run"] or "untrained (passes and the speed of predictive sampling are not those of a trained model)"
    return (
        f"{where['date']}  {where['gpu'] or where['cpu']}, {where['threads']} threads of {where['cores']} cores, "
        f"load {where['load']:g}, torch {where['torch']}\n"
        f"{name}: {shape} → {grid} of {model['codes']}; {sizes}; "
        f"{model['data']['frames']:,} frames of data"
    )


def table(title: str, figures: Sequence[Figure]) -> Table:
    """The figures of one group as a table."""
    shown = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("what", "batch", "precision"):
        shown.add_column(name)
    for name in ("median", "lowest", "highest"):
        shown.add_column(name, justify="right")
    shown.add_column("unit")
    for one in figures:
        single = one.low == one.high
        spread = ("", "") if single else (number(one.low), number(one.high))
        shown.add_row(
            one.what,
            "×".join(str(n) for n in (one.batch, one.length) if n),
            one.precision or "",
            number(one.value),
            *spread,
            one.unit,
        )
    return shown


def number(value: float) -> str:
    """A number with three significant digits, or all digits before the decimal point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
