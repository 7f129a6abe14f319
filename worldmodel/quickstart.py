"""Run all steps in less than ten minutes on a laptop without a GPU: collect episodes of ViZDoom (or of
env=…), train the tokenizer and the prior, dream, evaluate.

--minutes is the budget of all steps together. Training gets the time that the other steps leave: on
a slower machine the model is weaker, but the command does not take longer. Recorded episodes and
trained weights are kept: after an interruption the same command continues.
"""

import argparse
import shlex
import sys
import time

from rich.console import Console

from worldmodel.__main__ import main as worldmodel
from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.dreaming.actions import parse_script
from worldmodel.errors import ConfigError
from worldmodel.types import Spec

REST = 75.0  # seconds set aside for what is not trained or collected: encoding the set, dreaming, measuring
WALK = "forward*8,left*8,forward*8,right*8"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=9.5, metavar="N", help="time of all steps together (9.5)")
    actions = f"actions of the dream at the end ({WALK}, or each action in turn)"
    parser.add_argument("--actions", metavar="SCRIPT", help=actions)


@entry_point("quickstart", __doc__, add_flags)
def main(args: argparse.Namespace, config: Config) -> None:
    """Collect what is missing, train within the budget, dream and measure."""
    from worldmodel.config.checks import check_groups  # only now: neither --help nor a wrong flag should wait
    from worldmodel.data.store import EpisodeStore
    from worldmodel.runs.data import check_engine, env_maker, recorded, spec_of
    from worldmodel.runs.stages import share_seconds, stage_settings, stages_of
    from worldmodel.runs.training import rehearse_world, train

    if not 2 < args.minutes < float("inf"):
        raise ConfigError(f"--minutes {args.minutes:g} is no budget; give more than 2, to leave time to train")
    check_engine(config)
    check_groups(config, "tokenizer", "second", "prior")
    stages = stages_of(config)
    for stage in stages:
        stage_settings(config, stage)
    if "_target_" not in config.source:  # what cannot dream is reported before anything is collected
        rehearse_world(config, spec_of(env_maker(config)))
    started = time.monotonic()
    console = Console()

    def title(text: str) -> None:
        console.print(f"\n[bold]{text}[/bold]  [dim]{time.monotonic() - started:.0f} s[/dim]")

    title("1/4 collect")
    missing = config.collect.steps - recorded(config)
    if missing > 0:
        call("collect", *args.overrides, f"collect.steps={missing}")
    actions = script(args.actions, EpisodeStore.open(config.data).spec)  # raises before the training
    title("2/4 train")
    share_seconds(config, stages, max(60 * args.minutes - REST - (time.monotonic() - started), 60.0))
    for stage in stages:
        config.training[stage.name].steps = 1_000_000  # the clock decides
    run = train(config, more=False)
    title("3/4 dream")
    where = [f"run={run.name}", *(o for o in args.overrides if not o.startswith("run="))]
    call("dream", "--actions", actions, *where)
    call("dream", "--horizon", "30", *where)
    title("4/4 evaluate")
    call("evaluate", "--quick", *where)
    title("done")
    print(f"Look at {run / 'dreams'}; dream from elsewhere:")
    print(f"  python -m worldmodel.dream --actions '{actions}' --seed 3")
    print("Play in the dream, in the browser (pip install 'worldmodel[play]'):")
    print(f"  python -m worldmodel.play {shlex.join(o for o in where if o.startswith(('run=', 'runs=')))} --open")


def script(actions: str | None, spec: Spec) -> str:
    """The script to dream of: the given one, a walk, or every action in turn.

    Raises what :func:`worldmodel.dreaming.actions.parse_script` raises.
    """
    if actions is None:
        known = all(part.split("*")[0] in spec.action_names for part in WALK.split(","))
        actions = WALK if known else ",".join(spec.action_names)
    parse_script(actions, spec)
    return actions


def call(*argv: str) -> None:
    """Run another command; its error, already printed, ends this one with the same code."""
    code = worldmodel(argv)
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    sys.exit(main())
