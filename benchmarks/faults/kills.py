"""SIGKILL at random moments of collecting, of training all stages, and of training an agent.

The commands run in forks of this process, which has imported everything, so that a kill costs tenths of a second. A
moment is a time, or a number of files that were opened, renamed or removed; checkpoints are written at every step.
"""

import contextlib
import functools
import itertools
import math
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.faults.judge import Outcome, Result, captured
from benchmarks.faults.world import ACTOR, ENV, SMALL, STAGES, digest, digest_episode, make_store
from worldmodel import collect, train
from worldmodel.agents import train as agents_train
from worldmodel.data.store import EpisodeStore
from worldmodel.media import plots
from worldmodel.training.checkpoint import load_tensors
from worldmodel.training.hooks import read_json_lines

KILLS = 10  # of a chain, before it may end
SECOND = ("+experiment=dmlab-27bits", "source=env", *ENV)
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir")


def inject(scratch: Path, rng: random.Random) -> Iterator[Result]:
    make_store(scratch / "data", 8)
    trained = (*ENV, *SMALL, *STAGES)
    chains = [
        collecting(scratch / "collect", rng),
        training("train", train.main, trained, scratch / "train", scratch / "data", rng),
        training("agents.train", agents_train.main, (*trained, *ACTOR, "steps=48"), scratch / "agent",
                 scratch / "data", rng),
    ]  # fmt: skip
    for chain in itertools.cycle(chains):
        yield from next(chain)


def collecting(scratch: Path, rng: random.Random) -> Iterator[list[Result]]:
    """A chain of killed recordings into one store; no episode whose line was in the index may change or vanish."""
    for number in itertools.count():
        data, results = scratch / str(number), []
        before: dict[int, str] = {}
        for _ in range(KILLS):
            words = [*ENV, f"data={data}", "--steps", "100000"]
            code = run_and_kill(functools.partial(collect.main, words), scratch, data, rng, 6.0)
            problem = f"exit code {code}: {log_of(scratch)}" if code else ""
            if not problem and (data / "spec.json").exists():
                with captured():
                    store = EpisodeStore.open(data)
                    damaged = store.verify()
                found = {entry.episode: digest_episode(store.episode(i)) for i, entry in enumerate(store.entries)}
                problem = "; ".join(damaged) if damaged or before.items() <= found.items() else "an episode is lost"
                before = found
            results.append(Result("collect", Outcome.LOST if problem else Outcome.SAME, problem))
        shutil.rmtree(data)
        yield results


def training(
    part: str, main: Callable[[list[str]], int], words: tuple[str, ...], scratch: Path, data: Path, rng: random.Random
) -> Iterator[list[Result]]:
    """Chains of killed trainings, each of which ends as an uninterrupted training does."""

    def body(runs: Path) -> Callable[[], int]:
        return lambda: main([*words, f"data={data}", f"runs={runs}", "run=run"])

    started = time.monotonic()
    code = run_and_kill(body(scratch / "whole"), scratch, None, rng)
    whole, seconds = trained_facts(scratch / "whole" / "run"), time.monotonic() - started
    if code:
        raise RuntimeError(f"{part} fails without a kill: {log_of(scratch)}")
    for number in itertools.count():
        runs, kills = scratch / str(number), 0
        for attempt in itertools.count():
            code = run_and_kill(body(runs), scratch, runs if attempt < KILLS else None, rng, seconds)
            if code is not None:
                break
            kills += 1
        found = trained_facts(runs / "run")
        different = [name for name in {*whole, *found} if whole.get(name) != found.get(name)]
        problem = f"exit code {code}: {log_of(scratch)}" if code else f"{different} differ" if different else ""
        yield [Result(part, Outcome.LOST if problem else Outcome.SAME, problem)] * kills
        shutil.rmtree(runs)


def trained_facts(run: Path) -> dict[str, str]:
    """All that a training computes: the weights, and every logged value but for times."""
    facts = {}
    for file in sorted(run.glob("[!.]*.safetensors")):  # a name with a dot is of a write that was killed
        tensors, _ = load_tensors(file, "")
        facts[file.name] = digest(*itertools.chain.from_iterable(sorted(tensors.items())))
    for line in read_json_lines(run / "metrics.jsonl"):
        line.pop("seconds")
        facts[f"{line['stage']} {line['step']} {'loss' in line}"] = digest(sorted(line.items()))
    return facts


def run_and_kill(
    body: Callable[[], int], scratch: Path, folder: Path | None, rng: random.Random, seconds: float = math.inf
) -> int | None:
    """The exit code of a body in a forked process, or None if it was killed: within some seconds, or while it used a
    folder. Without a folder it is not killed."""
    scratch.mkdir(parents=True, exist_ok=True)
    timed = folder is not None and rng.random() < 0.5
    events = int(2 ** rng.uniform(0, 8)) if folder is not None and not timed else None
    pid = fork(body, scratch / "log", folder, events)
    deadline = time.monotonic() + (rng.uniform(0, seconds) if timed else math.inf)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            kill_group(pid)
            code = os.waitstatus_to_exitcode(status)
            return None if code == -signal.SIGKILL else code  # another signal is a crash
        if time.monotonic() > deadline:
            kill_group(pid)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.005)


def fork(body: Callable[[], int], log: Path, folder: Path | None = None, events: int | None = None) -> int:
    """The process id of a forked body, which leads a group of processes."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        mock.patch.object(plots, "save_panels").start()  # it takes seconds
        if events is not None:
            sys.addaudithook(Countdown(str(folder), events))
        code = body()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Countdown:
    """An audit hook that kills the group of processes at some use of a file below a folder."""

    def __init__(self, folder: str, left: int):
        self.folder, self.left = folder, left

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and any(self.folder in os.fspath(arg) for arg in args if isinstance(arg, (str, Path))):
            self.left -= 1
            if not self.left:
                os.killpg(0, signal.SIGKILL)


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def log_of(scratch: Path) -> str:
    return " | ".join((scratch / "log").read_text(errors="replace").splitlines()[-3:])
