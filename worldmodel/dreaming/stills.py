"""``dream`` for runs without time, such as those of images: samples of each class, as a picture."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import torch

from worldmodel import media
from worldmodel.errors import ConfigError
from worldmodel.types import NO_ACTION, Spec, plain_name
from worldmodel.world import StillModel

PER_CLASS = 8
MOST_CLASSES = 10  # without --actions
IN_TIME = ("replay", "horizon", "start", "context")  # flags that need it


def dream_stills(args: argparse.Namespace, run: Path, device: str, seed: int) -> None:
    """Draw ``--samples`` frames for each class of ``--actions``, write a picture, report.

    A prior that does not look at classes draws ``--samples`` in all.
    """
    for flag in IN_TIME:
        if getattr(args, flag) is not None:
            raise ConfigError(f"--{flag} goes with time, and the run {run.name} has none; give --actions and --samples")
    world = StillModel.load(run, device)
    if args.actions is not None and not world.sees_classes:
        raise ConfigError(
            f"--actions {args.actions}: the run {run.name} draws without looking at classes; give --samples"
        )
    names = choose_classes(args.actions, world.spec) if world.sees_classes else []
    classes = [world.condition(name) for name in names] or [NO_ACTION]
    count = PER_CLASS if args.samples is None else args.samples
    path = output_path(args, run, count, seed)
    generator = torch.Generator(world.device).manual_seed(seed)
    started = time.perf_counter()
    conditions = torch.tensor(classes).repeat_interleave(count)
    frames, passes = world.sample(conditions, generator, args.temperature, args.top_k, args.sampler)
    seconds = time.perf_counter() - started
    if world.sees_classes:
        rows = list(zip(names, frames.unflatten(0, (-1, count)), strict=True))
    else:
        rows = [("", part) for part in frames.split(PER_CLASS)]
    media.save_png(path, media.gallery(rows, title=f"{run.name} · seed {seed}, temperature {args.temperature:g}"))
    print(f"run       {run}")
    of = f" of each of {len(classes)} classes" if world.sees_classes else ""
    print(f"drawn     {count}{of} in {seconds:.1f} s, {passes:.0f} passes of the prior a picture")
    print(f"written   {path}")


def choose_classes(script: str | None, spec: Spec) -> list[str]:
    """The classes, or captions, named in ``airplane,frog``; without names the first ten, evenly over many."""
    names = spec.action_names
    if script is None:
        step = max(1, len(names) // MOST_CLASSES)
        return list(names[::step][:MOST_CLASSES])
    words = [plain_name(word) for word in script.split(",")]
    if not all(words):
        raise ConfigError(f"a class is missing in {script!r}; write names parted by commas, such as {names[0]!r}")
    return words


def output_path(args: argparse.Namespace, run: Path, count: int, seed: int) -> Path:
    """Where the picture goes: ``--output``, or a name that tells pictures apart in the run's folder."""
    what = re.sub(r"[^\w,-]+", "", args.actions or "classes").replace(",", "-")[:60]
    extra = "".join(
        f"-{text}{value:g}"
        for text, value, default in (("t", args.temperature, 1.0), ("k", args.top_k, None), ("x", count, PER_CLASS))
        if value != default
    )
    name = f"{what}-seed{seed}{extra}.png"
    if args.output is None:
        return run / "dreams" / name
    given = Path(args.output)
    if given.suffix and given.suffix.lower() != ".png":
        raise ConfigError(f"samples of images are one picture; {args.output!r} must end in .png")
    return given / name if given.is_dir() else given.with_suffix(".png")
