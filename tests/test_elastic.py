"""Two nodes of two processes, with the agents of torchrun: killed processes restart, and the training is the same."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from moving_square import SPEC, record
from safetensors.torch import load_file

from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, RunError
from worldmodel.runs.training import check_restarts
from worldmodel.training.fit import Fit
from worldmodel.training.hooks import read_json_lines

TOKENIZER_STEPS, STEPS = 10, 60
RANKS = str(Path(__file__).with_name("ranks.py"))
SETTINGS = [
    "device=cpu",
    "prior=conv",
    "tokenizer.num_codes=16",
    "tokenizer.widths=[8,8]",
    "tokenizer.blocks=1",
    "prior.trunk.width=16",
    "prior.trunk.blocks=1",
    "prior.head.width=16",
    *(
        f"training.{stage}.{setting}"
        for stage in ("tokenizer", "prior")
        for setting in ("batch=2", "precision=fp32", "log_every=10", "evaluate_every=30", "checkpoint_seconds=0.2")
    ),
]


def start(folder: Path, name: str, what: str, port: str) -> subprocess.Popen[str]:
    """A program that trains in several processes and writes to a log."""
    words = [f"training.tokenizer.steps={TOKENIZER_STEPS}", f"training.prior.steps={STEPS}", f"data={folder / 'data'}",
             f"runs={folder / 'runs'}", f"run={name}", *SETTINGS]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with open(folder / f"{name}.log", "a") as log:
        return subprocess.Popen([sys.executable, RANKS, what, port, *words], stdout=log, stderr=subprocess.STDOUT,
                                env=environment, text=True, start_new_session=True)  # fmt: skip


def end(program: subprocess.Popen[str]) -> None:
    """With its processes, if they are still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait(60)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def kill(log: Path, rank: int) -> None:
    """Kill the process with a rank, on whichever node it is."""
    [process] = re.findall(rf"rank {rank} is process (\d+)", log.read_text())
    os.kill(int(process), signal.SIGKILL)


def wait_for(path: Path, agents: list[subprocess.Popen[str]]) -> None:
    """Until a file exists."""
    until = time.monotonic() + 120
    while not path.exists():
        assert all(agent.poll() is None for agent in agents) and time.monotonic() < until, f"no {path}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Holds the runs ``killed``, on two nodes, and ``undisturbed``, which continues from its checkpoint on one node."""
    folder = tmp_path_factory.mktemp("nodes")
    with EpisodeStore.writer(folder / "data", SPEC) as store:
        for seed in range(11):
            store.append(record(seed))
    port = str(free_port())
    agents = [start(folder, "killed", "node", port) for _ in range(2)]
    try:
        wait_for(folder / "runs" / "killed" / "checkpoints" / "prior.safetensors", agents)
        kill(folder / "killed.log", rank=0)  # which writes, and holds the lock of the run
        shutil.copytree(folder / "runs" / "killed", folder / "runs" / "undisturbed")
        assert [agent.wait(180) for agent in agents] == [0, 0], (folder / "killed.log").read_text()
        one = start(folder, "undisturbed", "train", str(free_port()))
        agents.append(one)
        assert one.wait(120) == 0, (folder / "undisturbed.log").read_text()
        yield folder
    finally:
        for agent in agents:
            end(agent)


def test_killed_processes_are_restarted_and_continue_from_the_checkpoint(folder: Path) -> None:
    logs = [(folder / f"{name}.log").read_text() for name in ("killed", "undisturbed")]
    first, second = (re.search(r"prior: going on at step (\d+)", log) for log in logs)
    assert first and second and first[1] == second[1]
    assert "another process of this training cannot be reached" in logs[0]
    assert "\nTraceback" not in logs[0]  # torch puts its own behind the time


def test_losses_and_weights_equal_those_of_an_undisturbed_run(folder: Path) -> None:
    killed, undisturbed = (
        read_json_lines(folder / "runs" / name / "metrics.jsonl") for name in ("killed", "undisturbed")
    )
    assert [line["step"] for line in killed[-2:]] == [STEPS, STEPS]
    for one, other in zip(killed, undisturbed, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}  # from bit to bit
    for file in ("tokenizer.safetensors", "prior.safetensors"):
        one, other = (load_file(folder / "runs" / name / file) for name in ("killed", "undisturbed"))
        assert all(torch.equal(one[key], other[key]) for key in other), file


def test_the_documented_command_trains_with_two_processes(folder: Path) -> None:
    words = ["--standalone", "--nproc-per-node=2", "-m", "worldmodel.train", f"data={folder / 'data'}",
             f"runs={folder / 'runs'}", "run=command", "training.tokenizer.steps=2", "training.prior.steps=2",
             *SETTINGS]  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", *words]  # which is torchrun
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run command") == 1  # one process reports
    lines = read_json_lines(folder / "runs" / "command" / "metrics.jsonl")
    assert {(line["stage"], line["step"]) for line in lines} == {("tokenizer", 2), ("prior", 2)}


MEETING = """
import os, pathlib, sys, time
from worldmodel.config.cli import compose_config
from worldmodel.runs.training import make_fabric

config, flag, (rank, attempt) = compose_config(["device=cpu"]), pathlib.Path(sys.argv[1]), sys.argv[2:]
if attempt == "1" and rank == "0":  # the other one begins earlier
    while not flag.exists():
        time.sleep(0.05)
    time.sleep(3)
elif attempt == "1":
    flag.touch()
fabric = make_fabric(config)
fabric.launch()
print(fabric.all_gather(fabric.global_rank).tolist(), flush=True)
os._exit(0)  # as if it were killed: its address remains in the store
"""


def test_a_restarted_process_does_not_take_the_address_of_a_predecessor_that_is_in_the_store(tmp_path: Path) -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's
    for attempt in range(2):
        with contextlib.ExitStack() as ended:
            processes = []
            for rank in range(2):
                variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0,
                             "GROUP_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port,
                             "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RUN_ID": "test",
                             "TORCHELASTIC_RESTART_COUNT": attempt, "TORCHELASTIC_MAX_RESTARTS": 1}  # fmt: skip
                environment = os.environ | {name: str(value) for name, value in variables.items()}
                command = [sys.executable, "-c", MEETING, str(tmp_path / "flag"), str(rank), str(attempt)]
                processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
                ended.callback(processes[-1].kill)
            outputs = [process.communicate(timeout=180)[0] for process in processes]
            assert ["[0, 1]" in output for output in outputs] == [True, True], attempt


def test_restarts_that_cannot_work_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("GROUP_WORLD_SIZE", "2"), ("TORCHELASTIC_MAX_RESTARTS", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    check_restarts()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(ConfigError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        check_restarts()


def test_processes_that_start_at_different_steps_are_reported() -> None:
    fabric = SimpleNamespace(world_size=2, device="cpu", all_gather=lambda step: torch.stack([step, step + 20]))
    with pytest.raises(RunError, match=r"at different steps \(\[20, 40\]\); all nodes must share"):
        Fit.check_start(SimpleNamespace(fabric=fabric, step=20), Path("c.safetensors"))
