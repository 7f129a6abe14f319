"""Processes of a distributed training, forked from one that has imported it: importing takes longer than training a
tiny model. A program, because processes are to be forked from one without threads of tests: ``ranks.py train PORT
SETTING…`` trains in four processes, ``ranks.py node PORT SETTING…`` in two as one of two nodes of torchrun."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from worldmodel import train


def rank(number: int, count: int, port: str, words: list[str]) -> None:
    """One process, with the variables that torchrun sets."""
    of_rank = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0,
               "GROUP_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
               "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
    os.environ |= {name: str(value) for name, value in of_rank.items()}
    trained(words)


def fork(count: int, port: str, words: list[str]) -> int:
    """Train in processes; returns the largest exit code."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=rank, args=(number, count, port, words)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)


def trained(words: list[str]) -> None:
    print(f"rank {os.environ['RANK']} is process {os.getpid()}", flush=True)
    if code := train.main(words):
        sys.exit(code)


def node(port: str, words: list[str]) -> None:
    """What torchrun does with --nnodes=2 --nproc-per-node=2 --max-restarts=3, which starts programs."""
    config = LaunchConfig(2, 2, 2, run_id="test", rdzv_backend="c10d", rdzv_endpoint=f"localhost:{port}",
                          max_restarts=3, monitor_interval=0.1, start_method="fork")  # fmt: skip
    elastic_launch(config, trained)(words)


if __name__ == "__main__":
    importlib.import_module("worldmodel.runs.training")  # which the command imports when it trains
    what, its_port, *its_words = sys.argv[1:]
    if what == "node":
        node(its_port, its_words)
    else:
        sys.exit(fork(4, its_port, its_words))
