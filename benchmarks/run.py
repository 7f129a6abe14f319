"""Measure speeds and peak memory of a run (run=name), or of the untrained model of the settings, on recorded episodes
(data=folder). The alternatives are measured in turn; a figure is the median of the rounds, with the lowest and the
highest. Prints tables, and with --out writes JSON; docs/benchmarks.md explains both.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import worldmodel
from benchmarks import imagine, parts
from benchmarks.subject import Subject, open_subject
from benchmarks.timing import Figure, Plan
from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import add_number
from worldmodel.errors import ConfigError
from worldmodel.nn.modules import PRECISIONS
from worldmodel.util.files import replace_text
from worldmodel.util.ranges import Count

MEASURES: dict[str, Callable[[Subject, Plan], list[Figure]]] = {
    "store": parts.measure_store,  # first, because files that others have mapped cannot be dropped from the cache
    "tokenizer": parts.measure_tokenizer,
    "imagination": imagine.measure,
    "environment": parts.measure_environment,
    "planning": parts.measure_planning,
    "training": parts.measure_training,
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    for flag, choices, default in (("--only", MEASURES, None), ("--precision", PRECISIONS, list(PRECISIONS))):
        parser.add_argument(flag, type=listed(choices), default=default, metavar="A,B", help=f"of {', '.join(choices)}")
    parser.add_argument("--batches", type=listed(), default=[1, 64, 512], metavar="N,N", help="default: 1,64,512")
    add_number(parser, "--threads", Count, "CPU threads (default: that of torch)")
    add_report(parser, 5)


def add_report(parser: argparse.ArgumentParser, repeat: int) -> None:
    """The flags of the report; ``repeat``: the usual number of measured rounds."""
    add_number(parser, "--repeat", Count, f"measured rounds ({repeat})", repeat)
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


@entry_point("benchmarks.run", __doc__, add_flags)
def main(args: argparse.Namespace, config: Config) -> None:
    if args.out is not None and not args.out.parent.is_dir():
        raise ConfigError(f"--out {args.out}: there is no folder {args.out.parent}")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    plan = Plan(args.batches, args.precision, args.repeat)
    console, figures = Console(), {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        subject = open_subject(config, args.overrides, Path(scratch))
        where, model = machine(subject.device), subject.facts()
        console.print(f"{heading(where)}\n{describe(model)}", highlight=False, soft_wrap=True)
        for name in args.only or MEASURES:
            with console.status(f"measuring: {name}"):
                figures[name] = MEASURES[name](subject, plan)
            console.print(table(name, figures[name]))
    write_report(args.out, {"machine": where, "model": model, "repeat": plan.repeat, "figures": figures})


def write_report(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write facts and figures as JSON, if there is a path."""
    if path is not None:
        replace_text(path, json.dumps(report, indent=1, default=dataclasses.asdict) + "\n")


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
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*: *(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.processor() or platform.machine()


def heading(where: Mapping[str, Any]) -> str:
    """The machine in one line."""
    threads = f"{where['threads']} threads of {where['cores']} cores, load {where['load']:g}, torch {where['torch']}"
    return f"{where['date']}  {where['gpu'] or where['cpu']}, {threads}"


def describe(model: Mapping[str, Any]) -> str:
    """The model and its data in one line."""
    shape, grid = "×".join(map(str, model["frame"])), "×".join(map(str, model["grid"]))
    sizes = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in model["parameters"].items())
    name = model["run"] or "untrained (passes and the speed of predictive sampling are not those of a trained model)"
    return f"{name}: {shape} → {grid} of {model['codes']}; {sizes}; {model['data']['frames']:,} frames of data"


def table(title: str, figures: Sequence[Figure]) -> Table:
    shown = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("what", "batch", "precision", "median", "lowest", "highest", "unit"):
        shown.add_column(name, justify="right" if name in ("median", "lowest", "highest") else "left")
    for one in figures:
        spread = ("", "") if one.low == one.high else (number(one.low), number(one.high))
        size = "×".join(str(n) for n in (one.batch, one.length) if n)
        shown.add_row(one.what, size, one.precision or "", number(one.value), *spread, one.unit)
    return shown


def number(value: float) -> str:
    """A number with three significant digits, or all digits before the decimal point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
