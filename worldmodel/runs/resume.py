"""Selection of the run that a training continues or copies a tokenizer from, and comparison of settings."""

import contextlib
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf

from worldmodel.errors import ConfigError, RunError
from worldmodel.runs.folder import (
    TOKENIZER,
    checkpoint_of,
    claim,
    find_run,
    later_files,
    list_runs,
    load_config,
    load_spec,
    new_run,
    number_of,
    save_config,
)
from worldmodel.runs.models import check_trained, facts_of
from worldmodel.runs.stages import STAGES, Stage, prerequisites, stage_settings, stages_of
from worldmodel.types import Spec
from worldmodel.util.files import replace_text, take_lock, whole

BUDGET = ("steps", "max_seconds", "log_every", "evaluate_every", "evaluate_batches", "checkpoint_seconds",
          "patience")  # fmt: skip
"""Settings of a stage that may change when a run is continued."""

TOKENIZER_OF = "tokenizer_of.txt"  # states where a copied tokenizer is from
DEFAULTS = {"rewarded": 0.0}  # values of settings that older runs do not have


@contextlib.contextmanager
def run_to_train(config: DictConfig, spec: Spec, stages: Sequence[Stage], tokenizer_of: str | None) -> Iterator[Path]:
    """The run to continue, or a new one, which no other process trains meanwhile.

    Raises :class:`BusyError` if another process trains the named run; an unnamed one is then left to it.
    """
    other = None
    if tokenizer_of is not None:
        tokenizer = stages_of(config, "tokenizer")
        other = run_with_weights(config, spec, tokenizer, tokenizer_of, "the tokenizer cannot be copied from")
        config.training.tokenizer = load_config(other).training.tokenizer  # the budget that it was trained with
    with contextlib.ExitStack() as stack:
        folder = None
        if found := run_to_continue(config, spec, stages):
            folder, lock = found
            stack.enter_context(lock)
        for needed in prerequisites(config, stages):
            copied = other is not None and needed.file == TOKENIZER
            if not copied and (folder is None or not (folder / needed.file).is_file()):
                raise RunError(f"{(folder or Path(config.runs, 'a new run')) / needed.file} is missing, which the "
                               f"{stages[-1].title} requires; train it first: --stage {needed.name}, or no --stage "
                               "at all")  # fmt: skip
        if folder is None:
            folder = new_run(config, spec)
            stack.enter_context(claim(folder))
        if other is not None:
            copy_tokenizer(other, folder)
        yield folder


def to_be_trained(config: DictConfig, folder: Path, stage: Stage, more: bool = True) -> bool:
    """Whether a stage is not trained yet, or has a larger budget (``more``) than it was trained with.

    Raises :class:`RunError` when its training cannot be continued, when later stages depend on weights that are missing
    and cannot be restored, and for damaged weights.
    """
    facts, later = facts_of(folder, stage.file), later_files(folder, stage.file)
    resumable = checkpoint_of(folder, stage.file).is_file()
    if facts is None:
        if later and not resumable:
            raise RunError(f"{later[0]} was trained on the codes of {folder / stage.file}, which is missing and has no "
                           "checkpoint; restore it, remove the later stages, or start another run: "
                           "run=another-name")  # fmt: skip
        return True
    settings = stage_settings(config, stage)
    kept = load_config(folder).training.get(stage.name) or {}
    spent = facts.get("budget") or [kept.get("steps"), kept.get("max_seconds")]
    none = float("inf")  # where nothing is stated
    enough = facts.get("steps", none) >= settings.steps or facts.get("seconds", 0) >= (settings.max_seconds or none)
    copied = stage.file == TOKENIZER and (folder / TOKENIZER_OF).is_file()
    if not more or enough or copied or spent == [settings.steps, settings.max_seconds]:
        return False
    reason, alone = "" if resumable else "has no checkpoint to continue from", ""
    if later:
        reason, alone = f"{later[0]} depends on it", f", or train that alone: --stage {later[0].stem}"
    if reason:
        weights = f" --weights-of {shlex.quote(folder.name)}" if stage.name in STAGES else ""
        raise RunError(f"the {stage.title} of {folder.name} was trained for {facts['steps']} steps, and {reason}; for "
                       f"more steps start another run: run=another-name{weights}{alone}")  # fmt: skip
    return True


def state_budget(config: DictConfig, folder: Path, stage: Stage) -> None:
    """Write the budget of a stage that has been trained, and the folder of the data, to the settings of a run."""
    kept = load_config(folder)
    kept.training[stage.name] = config.training[stage.name]
    kept.data = config.data
    save_config(folder, kept)


def run_with_weights(config: DictConfig, spec: Spec, stages: Sequence[Stage], name: str, purpose: str) -> Path:
    """The run ``name``, if it has trained these stages by these settings.

    Raises :class:`ConfigError`, which begins with ``purpose``, or :class:`RunError` if not.
    """
    other = find_run(config.runs, name)
    for stage in stages:
        if difference := compare(config, spec, other, within=f"{stage.name}."):
            raise ConfigError(f"{purpose} {other.name}: {difference}")
        if not check_trained(other, stage.file):
            raise RunError(f"{purpose} {other.name}: it has no trained {stage.title} yet")
    return other


def copy_tokenizer(other: Path, folder: Path) -> None:
    """Copy the trained tokenizer of another run. Raises :class:`ConfigError` when the run has a tokenizer."""
    own, wanted = folder / TOKENIZER, other / TOKENIZER
    if own.is_file() and own.read_bytes() == wanted.read_bytes():
        return
    if own.exists() or checkpoint_of(folder, TOKENIZER).exists():
        raise ConfigError(f"{folder.name} already has a tokenizer; choose another name with run=…")
    with whole(own) as part:
        shutil.copyfile(wanted, part)
    replace_text(folder / TOKENIZER_OF, f"{TOKENIZER} was trained by the run {other.name}\n")


def run_to_continue(config: DictConfig, spec: Spec, stages: Sequence[Stage]) -> tuple[Path, IO[str]] | None:
    """The named run, or the latest unfinished run with these settings that no other process trains, with its lock; or
    None.

    Raises :class:`ConfigError` when the named run has other settings, and :class:`BusyError`.
    """
    runs = Path(config.runs)
    known = list_runs(runs)
    if config.run is not None:
        if config.run not in known:
            return None
        folder = runs / config.run
        if difference := compare(config, spec, folder):
            raise ConfigError(f"the run {config.run!r} was started with other settings ({difference}); choose another "
                              "name with run=…, or the settings it was started with")  # fmt: skip
        return folder, claim(folder)
    # Not only the latest: another experiment may have been trained since.
    alike = [name for name in known if name == known[-1] or number_of(name, str(config.stem)) is not None]
    for name in reversed(alike):
        folder = runs / name
        try:
            if compare(config, spec, folder):
                continue
        except RunError:
            if name == known[-1]:
                raise
            continue  # an old damaged run is ignored
        finished = all((folder / stage.file).is_file() for stage in stages)
        if finished and budgets(config) != budgets(load_config(folder)):
            return None
        if lock := take_lock(folder):
            return folder, lock
    return None


def fixed_settings(config: DictConfig) -> dict[str, Any]:
    """The settings that must not change, flat: 'training.prior.batch' → 32."""
    chosen = {key: config.get(key) for key in ("tokenizer", "second", "prior", "seed")}
    chosen["training"] = {stage.name: config.training[stage.name] for stage in stages_of(config)}
    flat = flatten(OmegaConf.to_container(OmegaConf.create(chosen), resolve=True))
    return {key: value for key, value in flat.items() if key.rsplit(".", 1)[-1] not in BUDGET}


def budgets(config: DictConfig) -> list[Any]:
    return [config.training[stage.name].get(name) for stage in stages_of(config) for name in ("steps", "max_seconds")]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts → dotted names."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    parts = (flatten(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items())
    return {name: item for part in parts for name, item in part.items()}


def compare(config: DictConfig, spec: Spec, folder: Path, within: str = "") -> str:
    """A description of the first difference between these settings and those of a run, or an empty text.

    Only settings whose dotted names begin with ``within`` are compared.
    """
    if load_spec(folder) != spec:
        return "it was trained on other data"
    there, here = fixed_settings(load_config(folder)), fixed_settings(config)
    for key in sorted({*there, *here}):
        default = DEFAULTS.get(key.rsplit(".", 1)[-1])
        then, now = there.get(key, default), here.get(key, default)
        if key.startswith(within) and then != now:
            return f"{key} was {then}, now {now}"
    return ""
