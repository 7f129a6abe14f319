"""The kind of a run, from its settings."""

from __future__ import annotations

from hydra.utils import get_object
from omegaconf import DictConfig

from worldmodel.config.cli import one_line
from worldmodel.errors import ConfigError


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
