"""Measure the overhead of recording over playing the bare environment, and the gain of several processes.

The bare environment is stepped in this process under the actions that were just recorded. Recording as
many steps is worldmodel.recording.collect.collect, with one process and with several, from the first
step to the last episode on disk. With --ray, several processes are compared with as many actors of Ray
instead, of one process each. The alternatives are measured in turn, and ratios are computed per round.
Figures are only meaningful on an idle machine; its load is printed in the heading.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from benchmarks.run import add_report, heading, machine, table, write_report
from benchmarks.timing import Figure, rounds, seconds
from worldmodel.config.checks import build
from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import add_number
from worldmodel.data.store import EpisodeStore
from worldmodel.recording.cluster import collect_on_cluster
from worldmodel.recording.collect import CollectSettings, collect
from worldmodel.recording.recorder import FrameSource
from worldmodel.runs.data import env_maker
from worldmodel.util.ranges import Count

CPU = torch.device("cpu")


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--steps", Count, "steps of each measurement (4000)", 4000)
    add_number(parser, "--workers", Annotated[int, Ge(2)], "processes of the parallel recording (2)", 2)
    parser.add_argument("--ray", action="store_true", help="compare with actors of Ray (pip install 'worldmodel[ray]')")
    add_report(parser, 5)


@entry_point("benchmarks.collect", __doc__, add_flags)
def main(args: argparse.Namespace, config: Config) -> None:
    where, console = machine(CPU), Console()
    console.print(f"{heading(where)}: {config.env.name}", highlight=False, soft_wrap=True)
    with console.status("measuring"):
        figures = measure(config, args.steps, args.workers, args.repeat, args.ray)
    console.print(table("collecting", figures))
    env = OmegaConf.to_container(config.env)
    write_report(args.out, {"machine": where, "env": env, "steps": args.steps, "figures": figures})


def measure(config: DictConfig, steps: int, workers: int, repeat: int, ray: bool = False) -> list[Figure]:
    """Microseconds per step of each contender, and the ratios."""
    make_env = env_maker(config)
    env = make_env()
    longest = int(config.collect.longest)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:

        def record(name: str, processes: int) -> float:
            explorer = build(OmegaConf.to_container(config.explorer, resolve=True), "explorer")
            with EpisodeStore.writer(Path(folder, name), env.data_spec) as store:
                return collect(store, make_env, explorer, steps, processes, progress=False, longest=longest).recording

        def record_on_cluster(number: int) -> float:
            explorer = build(OmegaConf.to_container(config.explorer, resolve=True), "explorer")
            settings = CollectSettings(steps=steps, actors=workers, workers=1, longest=longest)
            stores = Path(folder, f"actors-{number}")
            return collect_on_cluster(stores, env.data_spec, make_env, explorer, settings, 0, False)[0].recording

        def repeat_actions(number: int) -> float:
            store = EpisodeStore.open(Path(folder, f"one-{number}"))
            actions = np.concatenate([store.episode(index).actions[1:] for index in range(len(store))]).tolist()
            return seconds(lambda: play(env, actions, longest, number), CPU)

        one, several = "recorded by 1 process", f"recorded by {workers} processes"
        actors, bare = f"recorded by {workers} actors of Ray", "bare environment"
        contenders: dict[str, Callable[[int], float]] = {
            one: lambda number: record(f"one-{number}", 1),
            bare: repeat_actions,
            several: lambda number: record(f"several-{number}", workers),
            actors: record_on_cluster,
        }
        chosen = (several, actors) if ray else (one, bare, several)
        spent = rounds({name: contenders[name] for name in chosen}, repeat)
    env.close()
    figures = [Figure.of(name, [1e6 * time / steps for time in times], "µs/step") for name, times in spent.items()]
    if ray:
        return [*figures, Figure.ratio(f"{workers} processes / {workers} actors", spent[several], spent[actors])]
    overhead = Figure.ratio("recorded by 1 process / bare", spent[one], spent[bare])
    return [*figures, overhead, Figure.ratio(f"1 process / {workers} processes", spent[one], spent[several])]


def play(env: FrameSource, actions: Sequence[int], longest: int, seed: int) -> None:
    """Take the actions; a new episode starts after an end and after ``longest`` steps."""
    env.reset(seed=seed)
    remaining = longest
    for action in actions:
        *_, terminated, truncated, _ = env.step(action)
        remaining -= 1
        if terminated or truncated or not remaining:
            env.reset()
            remaining = longest


if __name__ == "__main__":
    sys.exit(main())
