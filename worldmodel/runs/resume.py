"""Which run a training goes on with, or takes its tokenizer from; settings that make a run what it is."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from worldmodel.errors import ConfigError, RunError
from worldmodel.runs.folder import (
    TOKENIZER,
    checkpoint_of,
    find_run,
    list_runs,
    load_config,
    load_spec,
    new_run,
    number_of,
    save_config,
)
from worldmodel.runs.load import check_trained
from worldmodel.runs.stages import STAGES, Stage, prerequisites, stages_of
from worldmodel.types import Spec
from worldmodel.util.files import replace_text, whole

BUDGET = ("steps", "max_seconds", "log_every", "evaluate_every", "evaluate_batches", "checkpoint_seconds")
"""Settings of a stage that may change from one session of a run to the next."""

UNSAID = {"rewarded": 0.0}
"""What a setting is where a run of an older version does not name it."""


def check_no_orphan(folder: Path, stage: Stage) -> None:
    """Raises :class:`RunError` when a stage would be trained anew for one that was trained on other codes."""
    if checkpoint_of(folder, stage.file).is_file():
        return
    later = [each.file for each in STAGES.values() if stage.name in each.needs]
    for path in (where for name in later for where in (folder / name, checkpoint_of(folder, name))):
        if path.is_file():
            raise RunError(f"{path} was trained on the codes of {folder / stage.file}, which is missing and has no "
                           "checkpoint; restore it, or remove what was trained behind it, or start another run: "
                           "run=another-name")  # fmt: skip


def run_to_train(config: DictConfig, spec: Spec, stages: Sequence[Stage], tokenizer_of: str | None = None) -> Path:
    """The run to go on with, or a new one. A run goes on under the settings it was started with, budgets aside."""
    folder = run_to_go_on_with(config, spec, stages)
    if tokenizer_of is not None:
        other = check_same_tokenizer(config, spec, tokenizer_of)
        folder = new_run(config, spec) if folder is None else folder
        take_over(other, folder)
    for needed in prerequisites(config, stages):
        if folder is None or not (folder / needed.file).is_file():
            raise RunError(f"{(folder or Path(config.runs, 'a new run')) / needed.file} is missing, which the "
                           f"{stages[-1].title} is built on; train it first: --stage {needed.name}, or no --stage "
                           "at all")  # fmt: skip
    if folder is None:
        return new_run(config, spec)
    kept = load_config(folder)
    # The budgets of this session are part of the run's history; its name and folder are facts of the file system.
    merged = OmegaConf.merge(kept, {"training": OmegaConf.to_container(config.training)})
    assert isinstance(merged, DictConfig)
    save_config(folder, merged)
    return folder


def check_same_tokenizer(config: DictConfig, spec: Spec, name: str) -> Path:
    """The run ``name``, if it has a tokenizer of these settings and data. Raises :class:`ConfigError` if not."""
    other = find_run(config.runs, name, holding=TOKENIZER)
    if difference := compare(config, spec, other, within="tokenizer."):
        raise ConfigError(f"the tokenizer of {other.name} cannot be taken over: {difference}")
    if not check_trained(other, TOKENIZER):
        raise RunError(f"{other} has no trained tokenizer yet")
    return other


def run_to_begin_with(config: DictConfig, spec: Spec, stages: Sequence[Stage], name: str) -> Path:
    """The run ``name``, if it has trained these stages by these settings. Raises :class:`ConfigError` if not."""
    other = find_run(config.runs, name)
    for stage in stages:
        if difference := compare(config, spec, other, within=f"{stage.name}."):
            raise ConfigError(f"training cannot begin with the weights of {other.name}: {difference}")
        if not check_trained(other, stage.file):
            raise RunError(f"{other} has no trained {stage.title} to begin with")
    return other


def take_over(other: Path, folder: Path) -> None:
    """Copies the trained tokenizer of another run. Raises :class:`ConfigError` when the run has one of its own."""
    own, wanted = folder / TOKENIZER, other / TOKENIZER
    if own.is_file() and own.read_bytes() == wanted.read_bytes():
        return
    if own.exists() or checkpoint_of(folder, TOKENIZER).exists():
        raise ConfigError(f"{folder.name} has a tokenizer of its own; choose another name with run=… to take one over")
    with whole(own) as part:
        shutil.copyfile(wanted, part)
    replace_text(folder / "tokenizer_of.txt", f"{TOKENIZER} was trained by the run {other.name}\n")


def run_to_go_on_with(config: DictConfig, spec: Spec, stages: Sequence[Stage]) -> Path | None:
    """The run that is named, or the latest if it has these settings and is not finished; None: there is none.

    Raises :class:`ConfigError` when the one that is named has other settings.
    """
    runs = Path(config.runs)
    known = list_runs(runs)
    if config.run is not None:
        if config.run not in known:
            return None
        folder = find_run(runs, config.run)
        if difference := compare(config, spec, folder):
            raise ConfigError(f"the run {config.run!r} was started with other settings ({difference}); choose another "
                              "name with run=…, or the settings it was started with")  # fmt: skip
        return folder
    # Not only the latest: another experiment may have been trained since.
    alike = [name for name in known if name == known[-1] or number_of(name, str(config.stem)) is not None]
    for name in reversed(alike):
        folder = runs / name
        try:
            other = bool(compare(config, spec, folder))
        except RunError:
            if name == known[-1]:
                raise
            continue  # an old one that is damaged is nobody's concern
        if other:
            continue
        finished = all((folder / stage.file).is_file() for stage in stages)
        return None if finished and budgets(config) != budgets(load_config(folder)) else folder
    return None


def essence(config: DictConfig) -> dict[str, Any]:
    """The settings that make a run what it is, flat: 'training.prior.batch' → 32."""
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
    """The first difference between these settings and those of a run, in words; empty when there is none.

    Only settings whose dotted names begin with ``within`` are looked at.
    """
    if load_spec(folder) != spec:
        return "it knows other data"
    there, here = essence(load_config(folder)), essence(config)
    for key in sorted({*there, *here}):
        unsaid = UNSAID.get(key.rsplit(".", 1)[-1])
        then, now = there.get(key, unsaid), here.get(key, unsaid)
        if key.startswith(within) and then != now:
            return f"{key} was {then}, now {now}"
    return ""
