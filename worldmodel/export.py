"""Export: write the episodes of a store as a Minari data set, or as npz files that any program with numpy reads."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from worldmodel.config.cli import run_entry_point
from worldmodel.data.export import Storage, check_exportable, check_id, default_folder, to_minari, to_npz
from worldmodel.data.store import EpisodeStore, Split
from worldmodel.errors import ConfigError
from worldmodel.util.files import whole_folder
from worldmodel.util.interrupts import deferred
from worldmodel.util.progress import Bars

if TYPE_CHECKING:
    from omegaconf import DictConfig

DESCRIPTION = """\
Write the episodes of data=… (or of the source or environment that the settings name) for other
programs to read, without loss.

--to minari makes a Minari data set, which minari.load_dataset opens by its id. --to npz makes a
folder with an npz file for each episode: obs (T + 1, H, W, C), action, reward, terminated,
truncated (T,). Both come in again with python -m worldmodel.collect source=minari or source=npz,
and source.path=…"""

MADE_BY = {"npz": "ep*.npz", "minari": "data/metadata.json"}
"""What lies in a folder that was exported, and in no other that might be named by mistake."""
SPLITS: tuple[str, ...] = get_args(Split)


def export(args: argparse.Namespace, config: DictConfig) -> None:
    """What the command does; see :data:`DESCRIPTION`.

    Raises :class:`DataError` without data, and for what cannot be exported; :class:`ConfigError` for flags that do not
    fit, and for a folder that is there and may not be replaced.
    """
    if args.to == "npz" and (args.id or args.storage):
        raise ConfigError("--id and --storage are for --to minari")
    store = EpisodeStore.open(Path(str(config.data)))
    store.verify()
    indices = [int(index) for index in store.split(args.split)]
    if not indices:
        raise ConfigError(
            f"{store.path} holds no episode of --split {args.split}; python -m worldmodel.collect records some"
        )
    dataset_id = check_id(args.id or f"{store.path.resolve().name}-v0") if args.to == "minari" else ""
    default = default_folder(dataset_id) if dataset_id else Path("exports") / store.path.resolve().name
    folder = (Path(args.out).expanduser() if args.out else default).absolute()
    _check_free(folder, args.to, args.overwrite)
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
    print(
        f"exported  {frames:,} frames in {len(indices):,} episodes, {size / 1e6:,.0f} MB in {seconds:.1f} s, "
        f"{frames / seconds:,.0f} frames/s"
    )
    at = f"{dataset_id} at {folder}" if dataset_id else str(folder)
    print(f"now       {at}; it comes in with source={args.to} source.path={folder}")


def _check_free(folder: Path, kind: str, overwrite: bool) -> None:
    """Raises :class:`ConfigError` where something is that is not to be replaced, or is no export."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    ours = folder.is_dir() and any(folder.glob(MADE_BY[kind]))
    if not ours:
        raise ConfigError(f"{folder} is there and holds no export as {kind}; choose another place with --out")
    if not overwrite:
        raise ConfigError(f"{folder} is there; --overwrite replaces it, --out names another place")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", choices=tuple(MADE_BY), required=True, help="what to write")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where; default: exports/<data>, or where Minari keeps data sets"
    )
    parser.add_argument("--id", help="id of the Minari data set; default: <data>-v0")
    parser.add_argument("--storage", choices=get_args(Storage), help="of the Minari data set; default: hdf5")
    parser.add_argument("--split", choices=SPLITS, default="all", help="which episodes; default: all")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is there")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_entry_point(export, "export", DESCRIPTION, add_flags, argv)


if __name__ == "__main__":
    sys.exit(main())
