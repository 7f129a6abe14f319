"""The kind of a run, ``world``, ``images`` or ``speech``: determined once, when a run is loaded or built.

Each kind has its own commands and its own class of model, so that nothing behind them asks for the kind again.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from worldmodel.config.cli import one_line
from worldmodel.errors import ConfigError, RunError
from worldmodel.runs.folder import find_run, list_runs, load_config, load_spec, number_of
from worldmodel.types import Spec


class Kind(enum.StrEnum):
    """What a run is of; also the word for it in messages."""

    WORLD = "an environment"
    IMAGES = "images"
    SPEECH = "speech"

    @property
    def command(self) -> str:
        """The command that draws from a run of this kind."""
        return {Kind.WORLD: "dream", Kind.IMAGES: "sample", Kind.SPEECH: "speak"}[self]


def kind_of(config: DictConfig, spec: Spec) -> Kind:
    """The kind of a run of these settings on data of this specification.

    Windows of a signal are speech; frames are images where the prior does not read the frames before.
    Raises :class:`ConfigError` for a prior that cannot be imported.
    """
    if len(spec.frame_shape) == 2:
        return Kind.SPEECH
    trunk = config.prior.get("trunk")
    target = config.prior.get("_target_") if trunk is None else trunk.get("_target_")
    return Kind.WORLD if target is None or _remembers(str(target)) else Kind.IMAGES


def _remembers(target: str) -> bool:
    """Whether the class of a prior or a trunk reads the frames before."""
    from hydra.utils import get_object

    try:
        return bool(getattr(get_object(target), "remembers", True))
    except Exception as error:  # whatever a module raises that cannot be imported
        raise ConfigError(f"prior: there is no {target} to build ({one_line(error)})") from error


def kind_of_run(run: Path) -> Kind:
    """The kind of a run. Raises :class:`RunError` for one that is damaged, and :class:`ConfigError`."""
    return kind_of(load_config(run), load_spec(run))


def check_kind(run: Path, kind: Kind) -> None:
    """Raises :class:`RunError`, naming the command to use, when a run is of another kind."""
    found = kind_of_run(run)
    if found is not kind:
        raise RunError(
            f"the run {run.name} is of {found}, not of {kind}; use python -m worldmodel.{found.command} run={run.name}"
        )


def choose_run(
    overrides: Sequence[str], config: DictConfig, holding: str | None = None, kind: Kind | None = None
) -> Path:
    """The run that a command line means: the one that it names, or the latest, of its experiment where it names one.

    The latest is one that has the file ``holding`` and is of the kind, where these are given. Raises
    :class:`RunError`, which lists the runs that there are or names the command for a run of another kind.
    """
    asked = any(override.lstrip("+").startswith("experiment=") for override in overrides)
    stem = str(config.stem) if asked else None
    runs = Path(config.runs)
    if kind is not None and config.run is None:
        for name in reversed(list_runs(runs)):
            held = holding is None or (runs / name / holding).is_file()
            if held and (stem is None or number_of(name, stem) is not None) and kind_of_run(runs / name) is kind:
                return runs / name
    run = find_run(runs, config.run, holding, stem)
    if kind is not None:
        check_kind(run, kind)
    return run
