"""Runs: ``runs/<name>/`` with settings, specification and weights as plain data; models built from settings."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from worldmodel.config.cli import one_line
from worldmodel.data.codes import fingerprint
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, DataError, RunError, WorldModelError
from worldmodel.priors import Prior
from worldmodel.priors.gaussian import GaussianPrior
from worldmodel.runs.migrate import migrate
from worldmodel.tokenizers import Autoencoder, Tokenizer, require_codes
from worldmodel.tokenizers.scene import GridVQVAE, Stacked
from worldmodel.training.augment import Augmentation
from worldmodel.training.checkpoint import check_fit, load_tensors, save_tensors
from worldmodel.types import Spec

CONFIG = "config.yaml"
SPEC = "spec.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer.safetensors"
SECOND = "second.safetensors"
PRIOR = "prior.safetensors"
CODES = "codes"
TRAIN_FIRST = "train first: python -m worldmodel.train"
RESTORE = "restore it from a copy, or train another run: python -m worldmodel.train run=another-name"

Model = TypeVar("Model", bound=nn.Module)


def resolve_device(name: str) -> torch.device:
    """``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` or ``cuda:1`` → device. Raises :class:`ConfigError`."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    choices = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if name not in choices:
        raise ConfigError(f"device {name!r} is not available here; choose {', '.join(choices)}")
    if name == "auto":
        name = "cuda" if count else "cpu"
    return torch.device("cuda:0" if name == "cuda" else name)


def write_text(path: Path, text: str) -> None:
    """Writes a small file under a temporary name and renames it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def list_runs(runs: Path) -> list[str]:
    """Names of the runs in a folder, the oldest first."""
    found = [path.parent for path in runs.glob(f"*/{CONFIG}") if not path.parent.name.startswith(".")]
    return [path.name for path in sorted(found, key=_age)]


def number_of(name: str, stem: str) -> int | None:
    """n of a run that is called ``<stem>-<n>``, None for another."""
    found = re.fullmatch(re.escape(stem) + r"-(\d+)", name)
    return int(found[1]) if found else None


def _age(run: Path) -> tuple[int, int, str]:
    """Order of creation; the specification is written once. The number breaks ties of a coarse clock."""
    number = re.search(r"-(\d+)$", run.name)
    with contextlib.suppress(FileNotFoundError):
        return ((run / SPEC).stat().st_mtime_ns, int(number.group(1)) if number else 0, run.name)
    return (0, 0, run.name)


def choose_run(overrides: Sequence[str], config: DictConfig, holding: str | None = None) -> Path:
    """The run that a command line means: the one it names, or the latest, of its experiment where it names one."""
    asked = any(override.lstrip("+").startswith("experiment=") for override in overrides)
    return find_run(config.runs, config.run, holding, str(config.stem) if asked else None)


def has_past(config: DictConfig) -> bool:
    """Whether the prior of a run's settings goes on from frames seen before; one of images does not."""
    trunk = config.prior.get("trunk")
    target = config.prior.get("_target_") if trunk is None else trunk.get("_target_")
    if target is None:
        return True
    try:
        return bool(getattr(get_object(str(target)), "remembers", True))
    except Exception as error:  # whatever a module raises that cannot be imported
        raise ConfigError(f"prior: there is no {target} to build ({one_line(error)})") from error


def find_run(
    runs: str | Path, name: str | Path | None = None, holding: str | None = None, stem: str | None = None
) -> Path:
    """Folder of a run: by name in ``runs``, by path, or the latest, of those that hold a file when one is named, and
    that are called ``<stem>-<number>`` when a stem is.

    Raises :class:`RunError`, which lists the runs that there are.
    """
    runs = Path(runs)
    known = list_runs(runs)
    if stem is not None and name is None:
        known = [run for run in known if number_of(run, stem) is not None]
        if not known:
            raise RunError(f"there is no run of {stem} in {runs}; train one, or name another with run=…")
    if name is not None:
        for folder in (runs / name, Path(name)):
            if (folder / CONFIG).is_file():
                return folder
        raise RunError(f"unknown run {str(name)!r}; {_listing(runs, known)}")
    for candidate in reversed(known):
        if holding is None or (runs / candidate / holding).is_file():
            return runs / candidate
    if known and holding is not None:
        raise RunError(f"no run in {runs} has {holding} yet ({', '.join(known)}); finish the training of one: "
                       f"python -m worldmodel.train run={known[-1]}")  # fmt: skip
    raise RunError(_listing(runs, known))


def _listing(runs: Path, known: list[str]) -> str:
    return f"{runs} has {', '.join(known)}" if known else f"there are no runs in {runs}; {TRAIN_FIRST}"


def new_run(config: DictConfig, spec: Spec) -> Path:
    """Makes ``runs/<name>`` with the settings and the specification; it appears whole or not at all.

    The name is ``config.run``, else the first free ``<stem>-<number>``: the stem is the name of the experiment, or of
    the source; what is played has the name of its environment. Raises :class:`RunError` when it exists.
    """
    runs = Path(config.runs)
    for name in (config.run, config.get("stem")):
        if name is not None and not re.fullmatch(r"[\w.+@ -]*\w[\w.+@ -]*", str(name)):
            raise RunError(f"the name of a run is a plain name of a folder, not {str(name)!r}")
    runs.mkdir(parents=True, exist_ok=True)
    draft = runs / f".new-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)  # of a crashed process with our number
    draft.mkdir()
    try:
        (draft / SPEC).write_text(spec.to_json())
        save_config(draft, config)
        for folder in _candidates(config, runs):
            # Renaming onto a folder that holds something fails: two processes never share a run by accident.
            with contextlib.suppress(OSError):
                if not folder.exists():
                    return draft.rename(folder)
        raise RunError(f"the run {str(config.run)!r} exists already in {runs}; choose another name with run=…")
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _candidates(config: DictConfig, runs: Path) -> Iterator[Path]:
    if config.run is not None:
        yield runs / str(config.run)
        return
    stem = str(config.get("stem") or config.get("source", config.env).name)  # older runs know environments only
    taken = [number for path in runs.iterdir() if (number := number_of(path.name, stem)) is not None]
    first = max(taken, default=0) + 1
    yield from (runs / f"{stem}-{number}" for number in range(first, first + 1000))


def save_config(folder: Path, config: DictConfig) -> None:
    """Writes the composed settings of a run, resolved."""
    write_text(folder / CONFIG, OmegaConf.to_yaml(config, resolve=True))


def load_config(folder: Path) -> DictConfig:
    """The settings of a run. Raises :class:`RunError`."""
    path = folder / CONFIG
    try:
        config = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; {TRAIN_FIRST}") from error
    except Exception as error:  # whatever the YAML parser raises for whatever is in the file
        raise RunError(f"{path} is damaged ({one_line(error)}); {RESTORE}") from error
    if not isinstance(config, DictConfig) or not {"tokenizer", "prior", "training"} <= set(config):
        raise RunError(f"{path} is damaged (it lacks tokenizer, prior or training); {RESTORE}")
    return OmegaConf.create(migrate(OmegaConf.to_container(config)))


def load_spec(folder: Path) -> Spec:
    """The specification of the data that a run was trained on. Raises :class:`RunError`."""
    try:
        return Spec.from_json((folder / SPEC).read_text())
    except (OSError, UnicodeDecodeError, DataError) as error:
        raise RunError(
            f"{folder / SPEC} is missing or damaged ({one_line(error)}); copy it from the folder of the data, "
            "or train another run: python -m worldmodel.train run=another-name"
        ) from error


def open_episodes(run: Path, spec: Spec, data: str | Path | None = None) -> EpisodeStore:
    """The episodes in ``data``, or those that a run of that specification was trained on, to read.

    Raises :class:`DataError` when there are none or when they are not of the run's kind.
    """
    store = EpisodeStore.open(str(load_config(run).data) if data is None else data)
    if (store.spec.frame_shape, store.spec.action_names) != (spec.frame_shape, spec.action_names):
        raise DataError(f"{store.path} holds frames or actions of another kind than {run} knows; give another data=…")
    return store


def build_tokenizer(config: DictConfig, spec: Spec) -> Autoencoder:
    """The tokenizer of the settings for the frames of a source, untrained; it may be an autoencoder without codes.

    Raises :class:`ConfigError`.
    """
    told = {"actions": len(spec.action_names)} if config.tokenizer.get("told") else {}
    return build_module(config.tokenizer, "tokenizer", Autoencoder, frame_shape=spec.frame_shape, **told)


def build_augmentation(config: DictConfig) -> Augmentation | None:
    """What the tokenizer of the settings is shown instead of the examples; None for the examples themselves."""
    node = config.training.tokenizer.get("augment")
    return None if node is None else build_module(node, "augmentation", Augmentation)  # type: ignore[no-any-return]


def build_second(config: DictConfig, tokenizer: Autoencoder) -> GridVQVAE | None:
    """The second stage of the settings over the codes of a tokenizer, untrained; None where there is to be none."""
    if config.get("second") is None:
        return None
    return build_module(config.second, "second", GridVQVAE, tokenizer=require_codes(tokenizer))


def build_prior(config: DictConfig, spec: Spec, tokenizer: Autoencoder) -> Prior | GaussianPrior:
    """The prior of the settings over the latents of a tokenizer and the actions of a source, untrained.

    Raises :class:`ConfigError`, also for a prior that is not over such latents.
    """
    facts = {"tokenizer": tokenizer, "actions": spec.action_names}
    return build_module(config.prior, "prior", Prior | GaussianPrior, **facts)


def build_module(node: DictConfig, name: str, kind: Any, **facts: Any) -> Any:
    """The module of type ``kind`` that a node of the settings describes, called ``name`` where it fails.

    Raises :class:`ConfigError`.
    """
    try:
        for target in _targets(node):
            # A run may come from elsewhere: its YAML may name modules to build, not functions to call.
            if not (isinstance(found := get_object(target), type) and issubclass(found, nn.Module)):
                raise ConfigError(f"{name}: {target} is not a module of PyTorch; _target_ may name nothing else here")
        model = instantiate(node, **facts)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, ImportError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, WorldModelError):
            raise cause from error
        raise ConfigError(f"cannot build the {name}: {one_line(cause)}") from error
    if not isinstance(model, kind):
        kinds = " or ".join(each.__name__ for each in get_args(kind) or (kind,))
        raise ConfigError(f"{name}._target_ is {node.get('_target_')}, which is no {kinds}")
    return model


def _targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` below a node."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield str(node["_target_"])
        for key in node:
            yield from _targets(node[key])
    elif isinstance(node, ListConfig):
        for item in node:
            yield from _targets(item)


def save_weights(path: Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
    """Writes a state dict for use, with JSON facts about its training."""
    save_tensors(path, weights, meta)


def load_weights(module: Model, path: Path, remedy: str = TRAIN_FIRST, if_damaged: str | None = None) -> Model:
    """Reads a state dict into a module, in place. Raises :class:`RunError` in one line when the file does not fit."""
    tensors, _ = load_tensors(path, remedy, if_damaged)
    check_fit(path, tensors, module.state_dict(), remedy)
    module.load_state_dict(tensors)
    return module


def load_tokenizer(folder: Path, device: torch.device | str = "cpu") -> Tokenizer:
    """The trained tokenizer of a run, in evaluation mode. Raises :class:`ConfigError` for one without codes."""
    return require_codes(load_autoencoder(folder, device))


def load_autoencoder(folder: Path, device: torch.device | str = "cpu") -> Autoencoder:
    """The trained tokenizer of a run, with or without codes, both stages where it has two, in evaluation mode."""
    model: Autoencoder = load_first(folder)
    second = build_second(load_config(folder), model)
    if second is not None:
        first = require_codes(model)
        _load_behind(second, folder, SECOND, first)
        model = Stacked(first, second)
    return model.to(device).eval().requires_grad_(False)


def load_first(folder: Path) -> Autoencoder:
    """The trained tokenizer of a run without its second stage, in evaluation mode."""
    tokenizer = build_tokenizer(load_config(folder), load_spec(folder))
    load_weights(tokenizer, folder / TOKENIZER, *_remedies(folder, TOKENIZER))
    return tokenizer.eval().requires_grad_(False)


def load_prior(folder: Path, tokenizer: Autoencoder, device: torch.device | str = "cpu") -> Prior | GaussianPrior:
    """The trained prior of a run, in evaluation mode. Raises :class:`RunError` for one of another tokenizer's codes."""
    prior = build_prior(load_config(folder), load_spec(folder), tokenizer)
    _load_behind(prior, folder, PRIOR, tokenizer)
    return prior.to(device).eval().requires_grad_(False)


def _load_behind(model: nn.Module, folder: Path, name: str, tokenizer: Autoencoder) -> None:
    """Reads the weights of a stage that knows the codes of a tokenizer, in place; :class:`RunError` if of another."""
    path = folder / name
    remedy, if_damaged = _remedies(folder, name)
    tensors, facts = load_tensors(path, remedy, if_damaged)
    if facts.get("tokenizer") not in (None, fingerprint(tokenizer)):  # older files do not say it
        raise RunError(
            f"{path} was trained on the codes of another tokenizer than {folder / TOKENIZER} is now; "
            f"remove it and {checkpoint_of(folder, name)} and train it anew: {_command(folder)}"
        )
    check_fit(path, tensors, model.state_dict(), remedy)
    model.load_state_dict(tensors)


def check_trained(folder: Path, name: str) -> bool:
    """Whether a run has a file of weights. Raises :class:`RunError`, naming the remedy, when it is damaged."""
    if not (folder / name).is_file():
        return False
    load_tensors(folder / name, *_remedies(folder, name))
    return True


def checkpoint_of(folder: Path, name: str) -> Path:
    """The checkpoint that training writes beside a run's file of weights."""
    return folder / CHECKPOINTS / name


def _remedies(folder: Path, name: str) -> tuple[str, str]:
    """What to do when a file of weights is missing, and what when it is damaged."""
    command = _command(folder)
    if checkpoint_of(folder, name).is_file():
        return f"go on training: {command}", f"remove it and go on training, from the last checkpoint: {command}"
    # Codes of a tokenizer that is trained anew mean something else.
    behind = {TOKENIZER: (SECOND, PRIOR), SECOND: (PRIOR,)}.get(name, ())
    others = [path for later in behind for path in (folder / later, checkpoint_of(folder, later)) if path.is_file()]
    files = " and ".join(["it", *map(str, others)])
    return f"train it: {command}", f"there is no checkpoint of it; remove {files} and train anew: {command}"


def _command(folder: Path) -> str:
    return f"python -m worldmodel.train run={folder.name} runs={folder.parent} and the settings it was started with"
