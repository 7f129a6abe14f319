"""The command line that every entry point shares: argparse flags beside Hydra overrides, composed settings."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from worldmodel.config.checks import MISSING, check_value, read
from worldmodel.config.verbatim import keep_texts
from worldmodel.errors import ConfigError
from worldmodel.util.ranges import Count, FilePath, PassedTo, Seed, Text, Whole

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from omegaconf import DictConfig as Config  # the composed settings
else:
    Config = Any  # --help and wrong flags should not wait for Hydra

SLUG = "worldmodel.slug"
"""A resolver of the settings: a gymnasium id such as ALE/Pong-v5 names folders, so it becomes ale-pong-v5."""

PATHS = {"data", "runs", "run", "source.path", "agent.run", "agent.folder", "explorer.run", "explorer.folder",
         "env.kwargs.level_cache", "explorer.script"}  # fmt: skip
"""Settings that are paths, names of folders or action scripts, which arrive as they are typed."""

AddFlags = Callable[[argparse.ArgumentParser], None]

OVERRIDES_HELP = """\
overrides of settings, as key=value (Hydra's syntax), anywhere among the flags:
  data=… runs=… run=…           folders of the data and of the runs, name of the run
  device=cuda                   auto, cpu, cuda, cuda:1
  env=vizdoom/health_gathering  another file of configs/env
  source=cifar10 source.path=…  images or recordings instead: configs/source
  tokenizer.num_codes=1024      one value
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of ``configs/config.yaml`` that are no group. Groups are checked by those who build from them."""

    data: FilePath  # folder of the episodes
    runs: FilePath  # folder of the runs
    run: FilePath | None  # name of the run, or its folder
    stem: Text | None = None  # what runs are called
    device: Text
    seed: Seed
    steps: Whole
    episodes: Count
    collect: Annotated[Mapping[str, Any], PassedTo("worldmodel.recording.collect.CollectSettings")]


def config_errors() -> tuple[type[Exception], ...]:
    """What the libraries of the settings raise."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return HydraException, OmegaConfBaseException


def compose_config(overrides: Sequence[str] = ()) -> Config:
    """The composed settings of ``configs/config.yaml``, each of them a value that may stand there.

    Raises :class:`ConfigError` in one line: Hydra's reason, the choices of a group, or what a value must be.
    """
    from omegaconf import OmegaConf

    if not OmegaConf.has_resolver(SLUG):
        OmegaConf.register_new_resolver(SLUG, lambda text: re.sub(r"[^a-z0-9]+", "-", str(text).lower()).strip("-"))
    check_choices(overrides)
    try:
        config = _composed([quote_path(override) for override in overrides])
        keep_texts(config, overrides, Settings)
        OmegaConf.resolve(config)
        plain: Any = OmegaConf.to_container(config)
        if (name := plain["source"].get("name")) != MISSING:
            check_value("source.name", Text, name)
        names = {field.name for field in dataclasses.fields(Settings)}
        settings = read(Settings, {key: value for key, value in plain.items() if key in names})
        for key, value in vars(settings).items():
            OmegaConf.update(config, key, value)
        return config
    except Exception as error:
        if not isinstance(error, (*config_errors(), ValueError, AssertionError)):  # Hydra raises the last two, as well
            raise
        from hydra.errors import OverrideParseException

        reason = one_line(error)
        # Hydra links to its grammar, and advises a flag that commands do not have.
        if isinstance(error, OverrideParseException) or "--multirun" in reason:
            reason = "this is not one value; write a text with special characters in quotes: 'key=\"a (b), c\"'"
        raise ConfigError(f"cannot apply {' '.join(overrides) or 'the settings'}: {reason}") from error


def quote_path(override: str) -> str:
    """An override of one of :data:`PATHS`, quoted for Hydra's grammar, so that it arrives as the shell passed it. What
    is quoted already, ``null``, ``true`` and ``false`` are left to Hydra."""
    key, equals, path = override.partition("=")
    if key.lstrip("+") not in PATHS or path in ("", "null", "true", "false") or re.fullmatch(r"(['\"]).*\1", path):
        return override
    # Hydra reads backslashes as escapes only before a quote, which the end of the text is, too.
    quoted = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), path)
    return f"{key}{equals}'{quoted}'"


@contextlib.contextmanager
def config_loader() -> Iterator[ConfigLoaderImpl]:
    """Hydra's loader of ``configs/``, without its global state, which belongs to the program around us."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.core_plugins.structured_config_source import StructuredConfigSource
    from hydra._internal.utils import create_config_search_path
    from hydra.version import VersionBase, setbase

    base = VersionBase.instance()
    theirs = base.version_base
    setbase("1.3")
    try:
        loader = ConfigLoaderImpl(create_config_search_path("pkg://worldmodel.configs"))
        for source in loader.get_sources():
            if isinstance(source, StructuredConfigSource):  # of the nodes of the program, only Hydra's own
                source.store = copy.copy(source.store)
                nodes = source.store.repo.items()
                source.store.repo = {
                    name: node for name, node in nodes if name == "hydra" or getattr(node, "provider", "") == "hydra"
                }
        yield loader
    finally:
        base.version_base = theirs


def _composed(overrides: list[str]) -> Config:
    """What ``hydra.compose`` returns, without its global state and resolvers.

    Hydra's settings of its own are left out, which take it as long as ours do, unless an override sets one of them.
    """
    from hydra._internal.defaults_list import create_defaults_list
    from hydra.types import RunMode
    from omegaconf import OmegaConf, open_dict

    with config_loader() as loader:
        parsed, repository = loader._parse_overrides_and_create_caching_repo("config", overrides)
        if any(override.is_hydra_override() for override in parsed):
            config = loader.load_configuration("config", overrides, RunMode.RUN, from_shell=False)
            with open_dict(config):
                del config["hydra"]
            return config
        loader.validate_sweep_overrides_legal(parsed, RunMode.RUN, from_shell=False)
        defaults = create_defaults_list(repository, "config", parsed, prepend_hydra=False, skip_missing=False)
        config = loader._compose_config_from_defaults_list(defaults.defaults, repository)
        OmegaConf.set_struct(config, True)
        loader._apply_overrides_to_config(defaults.config_overrides, config)
    return config


def check_choices(overrides: Sequence[str]) -> None:
    """Raises :class:`ConfigError`, naming the choices in all folders, for a group's choice that does not exist."""
    groups = choices()
    for override in overrides:
        group, equals, choice = override.partition("=")
        known = groups.get(group.lstrip("+"))
        inline = choice.startswith(("{", "["))  # which Hydra checks
        if equals and known is not None and not inline and choice.strip("'\"") not in known:
            raise ConfigError(f"there is no {group.lstrip('+')} {choice!r}; choose {', '.join(known)}")


def choices() -> dict[str, list[str]]:
    """The files of each group of settings: env → gym, vizdoom/basic, …"""
    from omegaconf import DictConfig, OmegaConf

    root = Path(str(files("worldmodel.configs")))
    entries = OmegaConf.load(root / "config.yaml").defaults
    # As in "env: gym" or "optional experiment: null".
    groups = [str(key).split()[-1] for entry in entries if isinstance(entry, DictConfig) for key in entry]
    found = {}
    for group in groups:
        paths = sorted((root / group).rglob("*.yaml"))
        found[group] = [path.relative_to(root / group).with_suffix("").as_posix() for path in paths]
    return found


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return "; ".join(part.strip() for part in str(error).splitlines() if part.strip()) or type(error).__name__


class Parser(argparse.ArgumentParser):
    """Raises its error, without the usage before it, so that all errors are reported in one place."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def parse(
    argv: Sequence[str] | None,
    command: str,
    description: str | None,
    add_flags: AddFlags,
    operands: Sequence[str] = (),
    moved: Mapping[str, str] | None = None,
) -> tuple[argparse.Namespace, Config]:
    """Flags and settings of one command line. ``--help`` prints and exits; raises :class:`ConfigError`.

    ``operands``: names of words that must be given, which ``args.operands`` then holds; ``moved``: flags of earlier
    versions, and what took their place. ``args.command`` is the command line as one text.
    """
    prog = f"python -m {command if '.' in command else f'worldmodel.{command}'}"
    parser = Parser(
        prog=prog,
        usage=" ".join([prog, *operands, "[flags] [key=value …]"]),
        description=(description or "").strip(),
        epilog=OVERRIDES_HELP,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=26),
        allow_abbrev=False,
    )
    add_flags(parser)
    parser.add_argument("--config", action="store_true", help="print the composed settings and stop")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    argv = list(sys.argv[1:] if argv is None else argv)
    for flag in (word.partition("=")[0] for word in argv):
        if flag in (moved or {}):
            raise ConfigError(f"{flag} is now {(moved or {})[flag]}")
    args = parser.parse_intermixed_args(argv)
    args.command = shlex.join([*prog.split(), *argv])
    args.overrides = [word for word in args.words if is_override(word)]
    args.operands = [os.path.expanduser(word) for word in args.words if not is_override(word)]
    if len(args.operands) < len(operands):
        raise ConfigError(f"{operands[len(args.operands)]} is missing; see {prog} --help")
    if len(args.operands) > len(operands):
        raise ConfigError(f"{args.operands[len(operands)]!r} is neither a flag nor key=value; see {prog} --help")
    config = compose_config(args.overrides)
    if getattr(args, "seed", None) is not None:
        config.seed = args.seed
    return args, config


def is_override(word: str) -> bool:
    """Whether a word overrides a setting; the name of a file that exists does not, nor does ``~/file``."""
    deleted = word.startswith("~") and "/" not in word.partition("=")[0]
    return deleted or ("=" in word and not os.path.isfile(os.path.expanduser(word)))
