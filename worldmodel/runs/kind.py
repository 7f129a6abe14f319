"""The kind of a run, and the run that a command line selects."""

import enum
import pkgutil
import shlex
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from worldmodel.config.cli import one_line
from worldmodel.errors import ConfigError, RunError
from worldmodel.runs.folder import find_run, load_config, load_spec
from worldmodel.types import Spec


class Kind(enum.StrEnum):
    """The kind of a run, determined when it is loaded; each has its own commands and model class. The value is its
    description in messages."""

    WORLD = "an environment"
    IMAGES = "images"
    SPEECH = "speech"

    @property
    def command(self) -> str:
        """The command that generates data with a run of this kind."""
        return {Kind.WORLD: "dream", Kind.IMAGES: "sample", Kind.SPEECH: "speak"}[self]


def kind_of(config: DictConfig, spec: Spec) -> Kind:
    """The kind of a run with these settings and data.

    Data with one axis are speech; image data are images when the prior does not read earlier frames.
    Raises :class:`ConfigError` for a prior that cannot be imported.
    """
    if len(spec.frame_shape) == 2:
        return Kind.SPEECH
    trunk = config.prior.get("trunk")
    target = (config.prior if trunk is None else trunk).get("_target_")
    try:
        remembers = target is None or getattr(pkgutil.resolve_name(str(target)), "remembers", True)
    except Exception as error:  # an import may raise anything
        raise ConfigError(f"prior: there is no {target} to build ({one_line(error)})") from error
    return Kind.WORLD if remembers else Kind.IMAGES


def kind_of_run(run: Path) -> Kind:
    """The kind of a run. Raises :class:`RunError` for a damaged run, and :class:`ConfigError`."""
    return kind_of(load_config(run), load_spec(run))


def check_kind(run: Path, kind: Kind) -> None:
    """Raises :class:`RunError` when a run is missing or of another kind; it names the command to use."""
    if not run.is_dir():
        raise RunError(f"there is no run at {str(run)!r}; train one: python -m worldmodel.train")
    actual = kind_of_run(run)
    if actual is not kind:
        command = f"python -m worldmodel.{actual.command} {shlex.quote(f'run={run.name}')}"
        raise RunError(f"the run {run.name} is of {actual}, not of {kind}; use {command}")


def choose_run(overrides: Sequence[str], config: DictConfig, holding: str, kind: Kind | None = None) -> Path:
    """The run that a command line selects: by name, or the latest one, of its experiment if it names one.

    The latest run is one of the given kind that has the file ``holding``. Raises :class:`RunError`, which lists the
    runs or names the command for a run of another kind.
    """
    named = any(override.lstrip("+").startswith("experiment=") for override in overrides)
    stem = str(config.stem) if named else None
    run = find_run(config.runs, config.run, holding, stem, lambda folder: kind in (None, kind_of_run(folder)))
    if kind is not None:
        check_kind(run, kind)
    return run
