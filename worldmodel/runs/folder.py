"""The folder of a run, ``runs/<name>/``: its settings, specification, weights and kind; finding and creating runs."""

import contextlib
import functools
import io
import os
import re
import shlex
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from omegaconf import DictConfig, ListConfig, OmegaConf

from worldmodel.config.cli import one_line
from worldmodel.data.remote import is_remote
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import BusyError, DataError, RunError
from worldmodel.runs.migrate import migrate
from worldmodel.types import Spec
from worldmodel.util.files import expanded, replace_text, take_lock

CONFIG = "config.yaml"
CHECK = "# crc32 "
"""Begins the last line of the settings, before the CRC-32 of the lines above."""
SPEC = "spec.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer.safetensors"
SECOND = "second.safetensors"
PRIOR = "prior.safetensors"
CODES = "codes"
NEEDS = {TOKENIZER: (), SECOND: (TOKENIZER,), PRIOR: (TOKENIZER, SECOND)}
"""Files of weights → those that they depend on, in the order of training."""
TRAIN_FIRST = "train first: python -m worldmodel.train"
RESTORE = "restore it from a copy, or train another run: python -m worldmodel.train run=another-name"


def list_runs(runs: Path) -> list[str]:
    """Names of the runs in a folder, oldest first."""
    found = [path.parent for path in runs.glob(f"*/{CONFIG}") if not path.parent.name.startswith(".")]
    return [path.name for path in sorted(found, key=_age)]


def number_of(name: str, stem: str) -> int | None:
    """n of a run named ``<stem>-<n>``, else None."""
    found = re.fullmatch(re.escape(stem) + r"-(\d+)", name)
    return int(found[1]) if found else None


def _age(run: Path) -> tuple[int, int, str]:
    """Order of creation; the specification is written once. The number breaks ties of a coarse clock."""
    number = re.search(r"-(\d+)$", run.name)
    with contextlib.suppress(FileNotFoundError):
        return ((run / SPEC).stat().st_mtime_ns, int(number.group(1)) if number else 0, run.name)
    return (0, 0, run.name)


def find_run(
    runs: str | Path,
    name: str | Path | None = None,
    holding: str | None = None,
    stem: str | None = None,
    suits: Callable[[Path], bool] = lambda run: True,
) -> Path:
    """Folder of a run: by name in ``runs``, by path, or the latest run that has the file ``holding``, if given, and the
    name ``<stem>-<number>``, if given; among several, the latest one that ``suits``.

    Raises :class:`RunError`, which lists the runs.
    """
    runs = expanded(runs)
    known = list_runs(runs)
    if stem is not None and name is None:
        known = [run for run in known if number_of(run, stem) is not None]
        if not known:
            raise RunError(f"there is no run of {stem} in {runs}; train one, or name another with run=…")
    if name is not None:
        for folder in (runs / name, expanded(name)):
            if (folder / CONFIG).is_file():
                return folder
        raise RunError(f"unknown run {str(name)!r}; {_listing(runs, known)}")
    candidates = [runs / run for run in reversed(known) if holding is None or (runs / run / holding).is_file()]
    if candidates:
        return next(filter(suits, candidates), candidates[0])
    if known and holding is not None:
        raise RunError(f"no run in {runs} has {holding} yet ({', '.join(known)}); finish the training of one: "
                       f"python -m worldmodel.train {shlex.quote(f'run={known[-1]}')}")  # fmt: skip
    raise RunError(_listing(runs, known))


def _listing(runs: Path, known: list[str]) -> str:
    return f"{runs} has {', '.join(known)}" if known else f"there are no runs in {runs}; {TRAIN_FIRST}"


def new_run(config: DictConfig, spec: Spec) -> Path:
    """Create ``runs/<name>`` with the settings and the specification, atomically.

    The name is ``config.run``, else the first free ``<stem>-<number>``: the stem is the name of the experiment,
    the source or the environment. Raises :class:`RunError` when the run exists.
    """
    runs = Path(config.runs)
    for name in (config.run, config.get("stem")):
        if name is not None and not is_folder_name(str(name)):
            raise RunError(f"the name of a run is a plain name of a folder, not {str(name)!r}")
    runs.mkdir(parents=True, exist_ok=True)
    draft = runs / f".new-{os.uname().nodename}-{os.getpid()}"  # several machines may share the folder
    shutil.rmtree(draft, ignore_errors=True)  # of a crashed process with the same id
    draft.mkdir()
    try:
        (draft / SPEC).write_text(spec.to_json())
        save_config(draft, config)
        for folder in _candidates(config, runs):
            # Renaming onto a non-empty folder fails, so two processes never share a run.
            with contextlib.suppress(OSError):
                if not folder.exists():
                    return draft.rename(folder)
        raise RunError(f"the run {str(config.run)!r} exists already in {runs}; choose another name with run=…")
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def is_folder_name(name: str) -> bool:
    """Whether a name can be that of a folder which is not hidden."""
    return bool(name.strip()) and name.isprintable() and not name.startswith(".") and "/" not in name


def claim(folder: Path) -> IO[str]:
    """The lock of the training in a folder, released when it is closed. Raises :class:`BusyError` if another process
    has it."""
    lock = take_lock(folder)
    if lock is None:
        raise BusyError(f"another process is training {folder}; wait for it, or choose another name with run=…")
    return lock


def _candidates(config: DictConfig, runs: Path) -> Iterator[Path]:
    if config.run is not None:
        yield runs / str(config.run)
        return
    stem = str(config.get("stem") or config.get("source", config.env).name)  # older runs have no stem
    taken = [number for path in runs.iterdir() if (number := number_of(path.name, stem)) is not None]
    first = max(taken, default=0) + 1
    yield from (runs / f"{stem}-{number}" for number in range(first, first + 1000))


def save_config(folder: Path, config: DictConfig) -> None:
    """Write the resolved settings of a run.

    Below the folder that holds ``runs``, the folder of the data is stated relative to that of the run, so that both can
    be moved together; elsewhere it is an absolute path.
    """
    settings = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    if "data" in settings and not is_remote(settings.data):
        run, above = _real(folder), _real(folder).parents[1]
        paths = (os.path.abspath(settings.data), os.path.realpath(settings.data))
        inside = [path for path in paths if above in Path(path).parents and above != Path("/")]
        settings.data = os.path.relpath(inside[0], run) if inside else paths[0]
    text = OmegaConf.to_yaml(settings)
    replace_text(folder / CONFIG, f"{text}{CHECK}{zlib.crc32(text.encode()):08x}\n")


def _real(folder: Path) -> Path:
    """The folder of a run by its own name in the folder that a link to ``runs`` leads to."""
    absolute = Path(os.path.abspath(folder))
    return Path(os.path.realpath(absolute.parent), absolute.name)


def _data_of(folder: Path, stated: str) -> str:
    """The absolute path of the data of a run, given what its settings state.

    Earlier versions stated it relative to the working folder, which is looked for above the run, and then here.
    """
    if is_remote(stated):
        return stated
    run = _real(folder)
    places = [run] if stated.startswith("..") else []
    places += [run.parents[1], Path.cwd(), *run.parents] if len(run.parents) > 1 else [Path.cwd()]
    paths = [os.path.normpath(place / os.path.expanduser(stated)) for place in places]
    return next(filter(os.path.isdir, paths), paths[0])


@functools.lru_cache(maxsize=16)
def _parsed(content: str) -> DictConfig | ListConfig:
    """What a file of settings holds. A training reads that of its run six times, and parsing takes 0.05 s."""
    return OmegaConf.load(io.StringIO(content))


def load_config(folder: str | Path) -> DictConfig:
    """The settings of a run, with the absolute path of its data. Raises :class:`RunError`."""
    path = Path(folder, CONFIG)
    try:
        content = path.read_text(encoding="utf-8")
        text, mark, crc = content.rpartition(CHECK)
        if mark and crc.strip() != f"{zlib.crc32(text.encode()):08x}":  # older runs have none
            raise ValueError("wrong checksum; if you edited it, remove its last line")
        config = _parsed(content)
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; {TRAIN_FIRST}") from error
    except Exception as error:  # the YAML parser may raise anything
        raise RunError(f"{path} is damaged ({one_line(error)}); {RESTORE}") from error
    if not isinstance(config, DictConfig) or not {"tokenizer", "prior", "training"} <= set(config):
        raise RunError(f"{path} is damaged (it lacks tokenizer, prior or training); {RESTORE}")
    if not isinstance(config.training, DictConfig) or any(isinstance(part, str) for part in config.training.values()):
        raise RunError(f"{path} is damaged (training has no groups of settings); {RESTORE}")
    settings = migrate(OmegaConf.to_container(config))
    if isinstance(settings.get("data"), str):
        settings["data"] = _data_of(Path(folder), settings["data"])
    return OmegaConf.create(settings)


def load_spec(folder: str | Path) -> Spec:
    """The specification of the data that a run was trained on. Raises :class:`RunError`."""
    path = Path(folder, SPEC)
    try:
        return Spec.from_json(path.read_text())
    except (OSError, UnicodeDecodeError, DataError) as error:
        reason = f"{path} is missing or damaged ({one_line(error)}); copy it from the folder of the data"
        raise RunError(f"{reason}, or train another run: python -m worldmodel.train run=another-name") from error


def given_data(overrides: Sequence[str], config: DictConfig) -> str | None:
    """The folder of data that a command line names, or None."""
    return str(config.data) if any(word.lstrip("+").startswith("data=") for word in overrides) else None


def open_data(run: str | Path, data: str | Path | None = None) -> EpisodeStore:
    """Open the episodes in ``data``, or those that the run was trained on, whatever their specification.

    Raises :class:`DataError` when there are none.
    """
    path = str(load_config(run).data) if data is None else data
    if data is None and not is_remote(path) and not os.path.isdir(path):
        raise DataError(f"the episodes that {run} was trained on are not at {path} any more; name their folder: data=…")
    return EpisodeStore.open(path)


def open_episodes(run: str | Path, spec: Spec, data: str | Path | None = None) -> EpisodeStore:
    """The same for episodes that must have the frames and actions of a run, whose specification is ``spec``.

    Raises :class:`DataError`, also when they do not fit.
    """
    store = open_data(run, data)
    if (store.spec.frame_shape, store.spec.action_names) != (spec.frame_shape, spec.action_names):
        raise DataError(f"{store.path} has other frames or actions than {run}; give another data=…")
    return store


def later_files(folder: Path, name: str) -> list[Path]:
    """The weights and checkpoints of a run that depend on a file of weights."""
    later = [file for file, needs in NEEDS.items() if name in needs]
    return [path for file in later for path in (folder / file, checkpoint_of(folder, file)) if path.is_file()]


def checkpoint_of(folder: Path, name: str) -> Path:
    """The checkpoint of a stage with that file of weights."""
    return folder / CHECKPOINTS / name


def train_command(folder: Path) -> str:
    words = shlex.join([f"run={folder.name}", f"runs={folder.parent}"])
    return f"python -m worldmodel.train {words} and the settings it was started with"
