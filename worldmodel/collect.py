"""Play an environment with an explorer and record its frames, in several processes. A further call
appends episodes. The command can be stopped at any moment: only the episodes that are being
recorded then are lost, and after Ctrl-C or SIGTERM not even these.

With source=cifar10, images, imagenet, dmlab, minari, npz, vctk, timit or speech, and source.path=…,
import the files of that folder instead. A further call imports what is missing: new files, the rest
after an interruption, and episodes that were damaged since. source=stores source.paths=[…] merges
several folders of episodes.

collect.engine=ray records on the machines of a Ray cluster, into one store for each actor
(docs/scale.md).
"""

import argparse
import sys
from typing import Annotated

from annotated_types import Ge, Le

from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import add_number
from worldmodel.errors import ConfigError
from worldmodel.util.ranges import Count

Workers = Annotated[int, Ge(1), Le(1024)]


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--steps", Count, "environment steps to record (collect.steps)")
    workers = "simulator processes, of each actor with collect.engine=ray (collect.workers)"
    add_number(parser, "--workers", Workers, workers)


@entry_point("collect", __doc__, add_flags)
def main(args: argparse.Namespace, config: Config) -> None:
    """Build the explorer or the source and record or import its episodes."""
    from omegaconf import OmegaConf

    from worldmodel.config.checks import build
    from worldmodel.runs.data import import_source, record_on_cluster, record_steps

    if args.workers is not None:
        config.collect.workers = args.workers
    if "_target_" not in config.source:
        if missing := sorted(OmegaConf.missing_keys(config.explorer)):
            raise ConfigError(f"this explorer needs {', '.join(f'{key}=…' for key in missing)}")
        explorer = build(OmegaConf.to_container(config.explorer, resolve=True), "explorer")
        record = record_on_cluster if config.collect.engine == "ray" else record_steps
        record(config, explorer, config.collect.steps if args.steps is None else args.steps)
    elif args.steps is not None:
        raise ConfigError(f"--steps is for source=env; source={config.source.name} is imported as a whole")
    else:
        import_source(config)


if __name__ == "__main__":
    sys.exit(main())
