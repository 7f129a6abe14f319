"""Processes of a distributed training, forked from one that has imported it: importing takes longer than training a
tiny model. A program, because processes are to be forked from one without threads of tests: ``ranks.py train PORT
SETTING…`` trains in four processes, ``ranks.py node PORT SETTING…`` in two as one of two nodes of torchrun, and
``ranks.py meet PORT FLAG`` is for tests/test_elastic.py."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from worldmodel import train
from worldmodel.config.cli import compose_config
from worldmodel.runs.training import make_fabric


def rank(number: int, count: int, port: str, more: dict[str, str], run: Callable[..., None], *args: object) -> None:
    """One process, with the variables that torchrun sets."""
    of_rank = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0,
               "GROUP_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
               "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
    os.environ |= {name: str(value) for name, value in of_rank.items()} | more
    run(*args)


def fork(count: int, port: str, more: dict[str, str], run: Callable[..., None], *args: object) -> list[int | None]:
    """The exit codes of the processes."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=rank, args=(n, count, port, more, run, *args)) for n in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def trained(words: list[str]) -> None:
    print(f"rank {os.environ['RANK']} is process {os.getpid()}", flush=True)
    if code := train.main(words):
        sys.exit(code)


def node(port: str, words: list[str]) -> None:
    """What torchrun does with --nnodes=2 --nproc-per-node=2 --max-restarts=3, which starts programs."""
    config = LaunchConfig(2, 2, 2, run_id="test", rdzv_backend="c10d", rdzv_endpoint=f"localhost:{port}",
                          max_restarts=3, monitor_interval=0.1, start_method="fork")  # fmt: skip
    elastic_launch(config, trained)(words)


def meet(attempt: int, flag: Path) -> None:
    """Print the ranks of the processes that meet."""
    if attempt and os.environ["RANK"] == "0":  # the other one begins earlier
        while not flag.exists():
            time.sleep(0.02)
        time.sleep(1)
    elif attempt:
        flag.touch()
    fabric = make_fabric(compose_config(["device=cpu"]))
    fabric.launch()
    print(fabric.all_gather(fabric.global_rank).tolist(), flush=True)
    os._exit(0)  # as if it were killed: its address remains in the store


if __name__ == "__main__":
    what, its_port, *its_words = sys.argv[1:]
    if what == "node":
        node(its_port, its_words)
    if what == "train":
        sys.exit(max(code or 0 for code in fork(4, its_port, {}, trained, its_words)))
    for its_attempt in range(2) if what == "meet" else ():
        restarts = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(its_attempt),
                    "TORCHELASTIC_MAX_RESTARTS": "1"}  # fmt: skip
        fork(2, its_port, restarts, meet, its_attempt, Path(its_words[0]))
