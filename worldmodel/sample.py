"""Draw images from a run of images and write them as one .png file, a row for each class or caption:
--classes airplane,frog or --classes 'a red bus,two birds'. Without --classes, up to 10 classes are
chosen at equal distances in the list of classes.

  python -m worldmodel.sample --classes airplane,frog --count 16
"""

import argparse
import sys
import time
from collections.abc import Sequence

from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import Few, add_number, add_output, add_sampling, add_seed
from worldmodel.errors import ConfigError
from worldmodel.types import NO_ACTION, plain_name
from worldmodel.util.output import options_in_name, output_of, words_in_name

PER_CLASS = 8
MOST_CLASSES = 10  # without --classes
SUFFIXES = (".png",)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", metavar="A,B", help=f"classes or captions to draw (up to {MOST_CLASSES} classes)")
    add_number(parser, "--count", Few, f"images of each class, or in all if there are no classes ({PER_CLASS})")
    add_sampling(parser)
    add_seed(parser)
    add_output(parser, SUFFIXES)


@entry_point("sample", __doc__, add_flags)
def main(args: argparse.Namespace, config: Config) -> None:
    """Load the run, draw, write, report."""
    import torch  # only now: neither --help nor a wrong flag should wait for it

    from worldmodel import media
    from worldmodel.dreaming.models import ImageModel
    from worldmodel.runs.folder import PRIOR
    from worldmodel.runs.kind import Kind, choose_run

    count = PER_CLASS if args.count is None else args.count
    run = choose_run(args.overrides, config, PRIOR, Kind.IMAGES)
    model = ImageModel.load(run, config.device)
    if args.classes is not None and not model.sees_classes:
        raise ConfigError(f"--classes {args.classes}: the prior of {run.name} is given no classes; leave it out")
    names = choose_classes(args.classes, model.spec.action_names) if model.sees_classes else []
    classes = [model.condition(name) for name in names] or [NO_ACTION]
    options = ("t", args.temperature, 1.0), ("k", args.top_k, None), ("x", count, PER_CLASS)
    name = f"{words_in_name(args.classes or 'classes')}-seed{config.seed}{options_in_name(*options)}"
    path = output_of(args.output, run / "dreams", name, SUFFIXES).path(".png")
    generator = torch.Generator(model.device).manual_seed(config.seed)
    started = time.perf_counter()
    conditions = torch.tensor(classes).repeat_interleave(count)
    frames, passes = model.sample(conditions, generator, args.temperature, args.top_k, args.sampler)
    seconds = time.perf_counter() - started
    if model.sees_classes:
        rows = list(zip(names, frames.unflatten(0, (-1, count)), strict=True))
    else:
        rows = [("", part) for part in frames.split(PER_CLASS)]
    title = f"{run.name} · seed {config.seed}, temperature {args.temperature:g}"
    media.save_png(path, media.gallery(rows, title=title))
    print(f"run       {run}")
    of = f" of each of {len(classes)} classes" if model.sees_classes else ""
    print(f"drawn     {count}{of} in {seconds:.1f} s, {passes:.0f} passes of the prior an image")
    print(f"written   {path}")


def choose_classes(script: str | None, known: Sequence[str]) -> list[str]:
    """The classes or captions that ``airplane,frog`` names; without a script the first ones, evenly over many."""
    if script is None:
        return list(known[:: max(1, len(known) // MOST_CLASSES)][:MOST_CLASSES])
    words = [plain_name(word) for word in script.split(",")]
    if not all(words):
        raise ConfigError(f"a class is missing in {script!r}; write names separated by commas, such as {known[0]!r}")
    return words


if __name__ == "__main__":
    sys.exit(main())
