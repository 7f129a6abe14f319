"""The data of a configuration: its environment or source, and the folder of its episodes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from worldmodel.config.checks import build, check, check_value, construct
from worldmodel.data.sources import Source
from worldmodel.data.store import SOURCE, EpisodeStore
from worldmodel.errors import ConfigError, DataError
from worldmodel.recording.collect import collect
from worldmodel.recording.recorder import ActionSource, FrameSource
from worldmodel.util.ranges import Text


def env_maker(config: DictConfig) -> Callable[[], FrameSource]:
    """A picklable constructor of the environment of the settings.

    Raises :class:`ConfigError` for a missing setting.
    """
    missing = sorted(OmegaConf.missing_keys(config.env))
    if missing := [key for key in missing if key != "env.name"] or missing:  # it usually depends on the others
        raise ConfigError(f"the environment needs {', '.join(f'{key}=…' for key in missing)}")
    settings = OmegaConf.to_container(config.env, resolve=True)
    assert isinstance(settings, dict)
    check_value("env.name", Text, settings.pop("name", None))
    return functools.partial(construct, check(settings, "env"))


def build_source(config: DictConfig) -> Source:
    """The source of the settings. Raises :class:`ConfigError` for a missing setting."""
    if missing := sorted(OmegaConf.missing_keys(config.source)):
        given = ", ".join(f"{key}=…" for key in missing)
        raise ConfigError(f"the source {config.source.name} needs {given}, the folder to take it from")
    source = build(OmegaConf.to_container(config.source, resolve=True), "source")
    if not isinstance(source, Source):
        raise ConfigError(f"{config.source._target_} is no source; choose one of configs/source")
    return source


def record_steps(config: DictConfig, explorer: ActionSource, steps: int) -> None:
    """Record ``steps`` more steps of ``explorer`` in the environment of the settings, and print a report.

    Raises what :func:`collect` raises.
    """
    settings = config.collect
    make_env = env_maker(config)
    env = make_env()
    spec = env.data_spec
    env.close()
    with EpisodeStore.writer(Path(str(config.data)), spec) as store:
        store.verify()
        result = collect(
            store,
            make_env,
            explorer,
            steps=steps,
            workers=settings.workers,
            seed=config.seed,
            longest=settings.longest,
            timeout=settings.timeout,
        )
        print(result.describe(spec.action_names))
        held_out = len(store.split("held_out"))
        print(f"now       {store.steps:,} steps in {len(store):,} episodes ({held_out:,} held out) at {store.path}")


def recorded(config: DictConfig) -> int:
    """Number of recorded steps in the data folder."""
    if not (Path(config.data) / "spec.json").is_file():
        return 0
    try:
        return EpisodeStore.open(config.data).steps
    except DataError:
        return 0


def source_path(store: EpisodeStore) -> Path | None:
    """The folder that the episodes of a store were imported from; None for recorded ones."""
    if not (store.path / SOURCE).is_file():
        return None
    path = OmegaConf.select(OmegaConf.load(store.path / SOURCE), "path")
    return None if path is None else Path(str(path)).expanduser()
