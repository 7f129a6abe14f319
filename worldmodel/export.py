"""Write the episodes of data=… for other programs, or the model of a run (the latest, or run=…).

--to npz, minari: the episodes without loss, as npz files with obs (T + 1, H, W, C), action, reward,
terminated, truncated (T,), or as a Minari data set. To import one: collect source=npz source.path=…
--to onnx: encoder, decoder and one step of the prior as ONNX files, compared with PyTorch.
--to web: static files with which a browser dreams by itself, under the keys of its user.
"""

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import get_args

from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.data.export import Storage, check_exportable, check_id, default_folder, to_minari, to_npz
from worldmodel.data.store import EpisodeStore, Split
from worldmodel.errors import ConfigError
from worldmodel.util.files import check_writable, expanded, whole_folder
from worldmodel.util.progress import Bars, deferred

MADE_BY = {"npz": "ep*.npz", "minari": "data/metadata.json", "onnx": "manifest.json", "web": "world.json"}
"""Files by which a folder of each format is recognised before it is overwritten."""

FLAGS = {"id": ("minari",), "storage": ("minari",), "split": ("npz", "minari"), "runtime": ("web",)}
"""Formats for which a flag can be given."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", choices=tuple(MADE_BY), required=True, help="format of the export")
    folder = "folder to write (exports/<data or run>; Minari: where Minari keeps its data sets)"
    parser.add_argument("--output", "--out", metavar="FOLDER", help=folder)
    parser.add_argument("--id", help="id of the Minari data set (<data>-v0)")
    parser.add_argument("--storage", choices=get_args(Storage), help="file format of the Minari data set (hdf5)")
    parser.add_argument("--split", choices=get_args(Split), help="episodes to export (all)")
    runtime = "of the npm package onnxruntime-web, which --to web copies (the page loads it from jsdelivr.net)"
    parser.add_argument("--runtime", metavar="FOLDER", help=runtime)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing export")


@entry_point("export", __doc__, add_flags)
def main(args: argparse.Namespace, config: Config) -> None:
    """Choose what is exported, write, report."""
    for flag, formats in FLAGS.items():
        if getattr(args, flag) is not None and args.to not in formats:
            wanted = " and --to ".join(formats)
            raise ConfigError(f"--{flag} is for --to {wanted}, not for --to {args.to}; leave it out")
    if args.to in ("onnx", "web"):
        export_model(args, config)
    else:
        export_episodes(args, config)


def export_model(args: argparse.Namespace, config: Config) -> None:
    """Write the graphs of a run, and the page that runs them."""
    from worldmodel.exporting import check_extra  # only now, since it imports torch

    check_extra()
    from worldmodel.exporting.convert import write_graphs
    from worldmodel.exporting.parity import compare
    from worldmodel.exporting.web import write_page
    from worldmodel.runs.folder import PRIOR, given_data, open_episodes
    from worldmodel.runs.kind import Kind, choose_run
    from worldmodel.serving.dreams import Dreamer
    from worldmodel.world import WorldModel

    run = choose_run(args.overrides, config, PRIOR, Kind.WORLD)
    folder = folder_of(args, Path("exports") / run.name)
    world = WorldModel.load(run, "cpu", "fp32")
    started = time.monotonic()
    with whole_folder(folder) as part:
        manifest = write_graphs(world, part, rows=1 if args.to == "web" else None)
        differences = compare(world, part)
        if args.to == "web":
            dreamer = Dreamer(world, open_episodes(run, world.spec, given_data(args.overrides, config)))
            write_page(dreamer, run.name, manifest, part, expanded(args.runtime) if args.runtime else None)
        else:
            (part / "manifest.json").write_text(json.dumps(manifest, indent=1))
    size = sum(file.stat().st_size for file in folder.rglob("*") if "runtime" not in file.parts and file.is_file())
    print(f"run       {run}")
    print(f"exported  {size / 1e6:.1f} MB in {time.monotonic() - started:.1f} s; compared with PyTorch over 64 frames:")
    print("\n".join(f"          {name:<9}{found}" for name, found in differences.items()))
    at = f"; python -m http.server -d {shlex.quote(str(folder))} serves it" if args.to == "web" else ""
    print(f"now       {folder}{at}")


def export_episodes(args: argparse.Namespace, config: Config) -> None:
    """Choose episodes and folder, write, report."""
    store = EpisodeStore.open(config.data)
    store.verify()
    indices = [int(index) for index in store.split(args.split or "all")]
    if not indices:
        reason = f"{store.path} holds no episode of --split {args.split or 'all'}"
        raise ConfigError(f"{reason}; python -m worldmodel.collect records some")
    name = os.path.basename(os.path.abspath(store.path))
    dataset_id = check_id(args.id or f"{name}-v0") if args.to == "minari" else ""
    default = default_folder(dataset_id) if dataset_id else Path("exports") / name
    folder = folder_of(args, default)
    check_exportable(store, least=1 if dataset_id else 0)
    started = time.monotonic()
    with deferred() as stopped, Bars() as bar, whole_folder(folder) as part:
        task = bar.add_task("writing", total=len(indices))

        def progress(done: int) -> None:
            bar.update(task, completed=done)
            if stopped():
                raise KeyboardInterrupt

        if dataset_id:
            to_minari(store, indices, part, dataset_id, args.storage or "hdf5", progress)
        else:
            to_npz(store, indices, part, progress)
    frames = int(store.frame_counts[indices].sum())
    seconds = max(time.monotonic() - started, 1e-9)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    amount = f"{frames:,} frames in {len(indices):,} episodes, {size / 1e6:,.0f} MB"
    print(f"exported  {amount} in {seconds:.1f} s, {frames / seconds:,.0f} frames/s")
    at = f"{dataset_id} at {folder}" if dataset_id else str(folder)
    print(f"now       {at}; to import it: source={args.to} {shlex.quote(f'source.path={folder}')}")


def folder_of(args: argparse.Namespace, default: Path) -> Path:
    """The folder to write. Raises :class:`ConfigError` for one that must not be replaced or is no export, OSError for
    one that cannot be written."""
    folder = (expanded(args.output) if args.output else default).absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if not any(folder.glob(MADE_BY[args.to])):
            raise ConfigError(f"{folder} is there and holds no export as {args.to}; choose another place with --output")
        if not args.overwrite:
            raise ConfigError(f"{folder} is there; --overwrite replaces it, --output names another place")
    check_writable(folder.parent)
    return folder


if __name__ == "__main__":
    sys.exit(main())
