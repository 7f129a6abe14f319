"""Write the episodes of data=… (or of the chosen source or environment) without loss for other
programs.

--to minari writes a Minari data set, which minari.load_dataset opens by its id. --to npz writes a
folder with an npz file for each episode: obs (T + 1, H, W, C), action, reward, terminated,
truncated (T,). To import an export: python -m worldmodel.collect source=minari (or source=npz)
source.path=…
"""

from __future__ import annotations

import argparse
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

MADE_BY = {"npz": "ep*.npz", "minari": "data/metadata.json"}
"""Files by which a folder of each format is recognised before it is overwritten."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", choices=tuple(MADE_BY), required=True, help="format of the export")
    folder = "folder to write (exports/<data>; Minari: the folder where Minari keeps its data sets)"
    parser.add_argument("--out", metavar="FOLDER", help=folder)
    parser.add_argument("--id", help="id of the Minari data set (<data>-v0)")
    parser.add_argument("--storage", choices=get_args(Storage), help="file format of the Minari data set (hdf5)")
    parser.add_argument("--split", choices=get_args(Split), default="all", help="episodes to export (all)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing export")


@entry_point("export", __doc__, add_flags)
def main(args: argparse.Namespace, config: Config) -> None:
    """Choose episodes and folder, write, report."""
    if args.to == "npz" and (args.id or args.storage):
        raise ConfigError("--id and --storage are for --to minari")
    store = EpisodeStore.open(config.data)
    store.verify()
    indices = [int(index) for index in store.split(args.split)]
    if not indices:
        raise ConfigError(
            f"{store.path} holds no episode of --split {args.split}; python -m worldmodel.collect records some"
        )
    name = os.path.basename(os.path.abspath(store.path))
    dataset_id = check_id(args.id or f"{name}-v0") if args.to == "minari" else ""
    default = default_folder(dataset_id) if dataset_id else Path("exports") / name
    folder = (expanded(args.out) if args.out else default).absolute()
    _check_free(folder, args.to, args.overwrite)
    check_exportable(store, least=1 if dataset_id else 0)
    check_writable(folder.parent)
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
    print(
        f"exported  {frames:,} frames in {len(indices):,} episodes, {size / 1e6:,.0f} MB in {seconds:.1f} s, "
        f"{frames / seconds:,.0f} frames/s"
    )
    at = f"{dataset_id} at {folder}" if dataset_id else str(folder)
    print(f"now       {at}; to import it: source={args.to} {shlex.quote(f'source.path={folder}')}")


def _check_free(folder: Path, kind: str, overwrite: bool) -> None:
    """Raises :class:`ConfigError` for a folder that must not be replaced or is no export."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not any(folder.glob(MADE_BY[kind])):
        raise ConfigError(f"{folder} is there and holds no export as {kind}; choose another place with --out")
    if not overwrite:
        raise ConfigError(f"{folder} is there; --overwrite replaces it, --out names another place")


if __name__ == "__main__":
    sys.exit(main())
