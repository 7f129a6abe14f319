"""Sweeps: ``--multirun seed=0,1,2`` starts a job for each combination of values, through one of Hydra's launchers.

Each job is the same command with one value of each setting. The combinations, the queue and the processes are Hydra's:
its basic launcher runs one job after the other, and plugins (``hydra/launcher=joblib``) run several at once.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worldmodel.config.cli import config_errors, config_loader, is_override, one_line, quote_path
from worldmodel.errors import ConfigError, WorldModelError

FLAG = "--multirun"
FOLDER = ".sweep"  # in the working folder, for the files of a launcher; removed if it needs none
QUIET = ("hydra/hydra_logging=disabled", "hydra/job_logging=disabled", "hydra.hydra_logging.root=null",
         "hydra.job_logging.root=null", "hydra.output_subdir=null", f"hydra.sweep.dir={FOLDER}",
         "hydra.sweep.subdir=.")  # fmt: skip
"""Jobs write to their own runs, so that Hydra writes only what a launcher itself needs."""


@dataclass(frozen=True)
class Job:
    """Runs the command of a module; a launcher sends it to the process of a job."""

    module: str
    flags: tuple[str, ...]

    def __call__(self, config: object) -> int:
        """The exit code of the command with the overrides of this job."""
        from hydra.core.hydra_config import HydraConfig

        overrides = list(HydraConfig.get().overrides.task)
        return int(importlib.import_module(self.module).main([*self.flags, *overrides]))


def sweep(module: str, words: Sequence[str]) -> None:
    """Run the command of a module for each combination of the values on its command line.

    Raises :class:`ConfigError`, and :class:`WorldModelError` at the end if jobs failed, after a line for each.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError(f"{FLAG} starts jobs of its own; use it without torchrun")
    flags = tuple(word for word in words if word != FLAG and (word.startswith("-") or not is_override(word)))
    overrides = [quote_path(word) for word in words if is_override(word) and not word.startswith("-")]
    if any(word.startswith("run=") for word in overrides):
        raise ConfigError(f"{FLAG} starts a run for each job, and run=… names one; leave it out, and choose the "
                          "first part of their names: stem=…")  # fmt: skip
    errors: tuple[type[Exception], ...] = (*config_errors(), ImportError, ValueError, AssertionError)
    try:
        jobs, returned = launch(Job(module, flags), overrides)
    except errors as error:
        raise ConfigError(f"cannot start the jobs of {' '.join(overrides)}: {one_line(error)}; launchers other than "
                          "basic are plugins: pip install -e '.[sweep]' has joblib") from error  # fmt: skip
    with contextlib.suppress(OSError):
        os.rmdir(FOLDER)
    failed = 0
    for number, (words, result) in enumerate(zip(jobs, returned, strict=True)):
        if reason := failure(result):
            failed += 1
            print(f"job {number} ({' '.join(words)}) failed: {reason}", file=sys.stderr)
    if failed:
        raise WorldModelError(f"{failed} of {len(jobs)} jobs failed; the others are finished")


def launch(job: Job, overrides: list[str]) -> tuple[list[list[str]], Sequence[Any]]:
    """The overrides of all jobs, without Hydra's own, and what the launcher returned for them."""
    from hydra._internal.callbacks import Callbacks
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.plugins import Plugins
    from hydra.core.utils import JobRuntime
    from hydra.types import HydraContext, RunMode

    with config_loader() as loader:
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
        own = [each for each in parsed if each.is_hydra_override()]
        [jobs] = BasicSweeper.split_arguments([each for each in parsed if each not in own], None)
        hydra = [*QUIET, *(str(each.input_line) for each in own)]
        config = loader.load_configuration("config", hydra, RunMode.MULTIRUN)
        JobRuntime.instance().set("name", job.module)
        context = HydraContext(loader, Callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job, config=config)
        return jobs, launcher.launch(jobs, initial_job_idx=0)


def failure(result: Any) -> str:
    """Why a job failed, in one line; an empty text if it did not."""
    try:
        code = result.return_value  # raises what the job raised
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error)}"
    return f"exit code {code}" if code else ""
