"""Resources that run out: disk, descriptors, shared memory, permissions, a clock that goes back, recorders that die.
In long runs, the memory of a process, without mapped files, may not grow by more than 5 %.

Mounts are made in a namespace of the process and vanish with it; without the right to mount, these are skipped.
"""

import contextlib
import ctypes
import functools
import os
import random
import re
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.faults.judge import Outcome, Result, one_line_error, run_command
from benchmarks.faults.kills import fork, kill_group, log_of, trained_facts
from benchmarks.faults.world import ENV, SMALL, STAGES, digest_episode, make_run, make_store
from worldmodel import collect, train
from worldmodel.data.store import EpisodeStore
from worldmodel.envs.dreams import DreamEnv

NEW_NAMESPACE = 0x00020000  # CLONE_NEWNS
SKIP = 77  # exit code
STEPS = 20_000  # of the recordings whose recorder gets a signal
GROWTH, RUN_SECONDS = 0.05, 60.0  # of memory, in a run of this time
WARM_UP = 0.4  # share of that time

Command = Callable[[Path], tuple[int, str]]
Disturbance = Callable[[Path], contextlib.AbstractContextManager[None]]


def inject(scratch: Path, rng: random.Random) -> Iterator[Result]:
    """Every resource in turn, each in a process of its own."""
    make_store(scratch / "data", 8)
    commands = {"collect": collecting, "train": training}
    rooms = [f"size={rng.randrange(40, 200)}k" for _ in range(6)]
    disturbances: list[tuple[str, Disturbance]] = [
        *(("disk full", functools.partial(disk, options=room, after="size=100m")) for room in rooms),
        *(("no descriptors", functools.partial(descriptors, left=left)) for left in range(1, 13)),
        ("read-only folder", functools.partial(disk, options="ro", after="rw")),
        ("/dev/shm full", shared_memory),
        ("clock set back", clock),
    ]
    bodies: list[tuple[str, Callable[[Path], None]]] = [
        (f"{part}, {name}", functools.partial(disturbed, command=command, disturbance=each))
        for part, each in disturbances
        for name, command in commands.items()
    ]
    bodies.append(("recorder killed", functools.partial(recorder, number=signal.SIGKILL)))
    bodies.append(("recorder stopped", functools.partial(recorder, number=signal.SIGSTOP)))
    for number, (part, body) in enumerate(bodies):
        root = scratch / str(number)
        root.mkdir()
        _, status = os.waitpid(fork(lambda: body(root) or 0, scratch / "log"), 0)  # noqa: B023
        outcome = {0: Outcome.SAME, SKIP: Outcome.SKIPPED}.get(os.waitstatus_to_exitcode(status), Outcome.LOST)
        yield Result(part, outcome, log_of(scratch))


def disturbed(root: Path, command: Command, disturbance: Disturbance) -> None:
    """A disturbed command succeeds or says why not in one line; the next one continues, and nothing is lost."""
    with disturbance(root):
        code, errors = command(root)
    if code and not one_line_error(code, errors):
        raise RuntimeError(f"no clear line: {errors}")
    before = episodes(root)
    succeed(command, root)
    if not before.items() <= episodes(root).items():
        raise RuntimeError("an episode is lost")
    if command is training:
        (root / "whole").mkdir()
        succeed(command, root / "whole")
        if trained_facts(root / "whole" / "run") != trained_facts(root / "run"):
            raise RuntimeError("the continued training differs")


def collecting(root: Path) -> tuple[int, str]:
    return run_command(collect.main, *ENV, f"data={root / 'new'}", "--steps", 60)


def training(root: Path) -> tuple[int, str]:
    data = next(folder / "data" for folder in root.parents if (folder / "data").exists())
    return run_command(train.main, *ENV, *SMALL, *STAGES, f"data={data}", f"runs={root}", "run=run")


def succeed(command: Command, root: Path) -> None:
    code, errors = command(root)
    if code:
        raise RuntimeError(f"exit code {code}: {errors}")


def episodes(root: Path) -> dict[int, str]:
    """The digests of all recorded episodes."""
    if not (root / "new" / "spec.json").exists():
        return {}
    store = EpisodeStore.open(root / "new")
    if damaged := store.verify():
        raise RuntimeError(f"damaged: {damaged}")
    return {entry.episode: digest_episode(store.episode(index)) for index, entry in enumerate(store.entries)}


def mount(*words: str) -> None:
    """Mount in a namespace of this process. Ends the process where that is not permitted."""
    commands = (["mount", "--make-rprivate", "/"], ["mount", *words])
    if ctypes.CDLL(None).unshare(NEW_NAMESPACE) or any(subprocess.run(each).returncode for each in commands):
        os._exit(SKIP)


@contextlib.contextmanager
def disk(root: Path, options: str, after: str) -> Iterator[None]:
    """A disk with these options of mount, which change afterwards."""
    mount("-t", "tmpfs", "-o", options, "none", str(root))
    yield
    subprocess.run(["mount", "-o", f"remount,{after}", str(root)], check=True)


@contextlib.contextmanager
def shared_memory(root: Path) -> Iterator[None]:
    """Not a byte of shared memory."""
    mount("-t", "tmpfs", "-o", "size=4k,nr_inodes=2", "none", "/dev/shm")
    Path("/dev/shm/full").write_bytes(bytes(4096))
    yield


@contextlib.contextmanager
def descriptors(root: Path, left: int) -> Iterator[None]:
    """A few descriptors ``left``."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1 + left, usual[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, usual)


@contextlib.contextmanager
def clock(root: Path) -> Iterator[None]:
    """Afterwards, all files are of tomorrow, and a training is unfinished."""
    yield
    (root / "run" / "prior.safetensors").unlink(missing_ok=True)
    for path in root.rglob("*"):
        os.utime(path, (time.time() + 86_400,) * 2)


def recorder(root: Path, number: int) -> None:
    """The recorder process gets a signal while it records; another records what is missing."""

    def send_signal() -> None:
        while not (root / "new/index.jsonl").exists():
            time.sleep(0.01)
        for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            os.kill(int(child), number)

    threading.Thread(target=send_signal, daemon=True).start()
    words = (*ENV, "collect.timeout=10", f"data={root / 'new'}", f"collect.steps={STEPS}", "collect.longest=10")
    code, errors = run_command(collect.main, *words)
    episodes(root)
    if code or EpisodeStore.open(root / "new").steps != STEPS or "was replaced" not in errors:
        raise RuntimeError(f"not replaced: {errors}")


def inject_growth(scratch: Path, rng: random.Random) -> Iterator[Result]:
    """Long runs of the commands and of the dream environment."""
    run = make_run(scratch / "runs")
    long = [word for word in STAGES if ".steps=" not in word and "checkpoint" not in word and "log_every" not in word]
    words = (*ENV, *SMALL, *long, f"data={scratch / 'runs' / 'data'}")

    def dreaming() -> int:
        env = DreamEnv(run, device="cpu", horizon=20)
        while True:
            env.reset()
            while not any(env.step(env.action_space.sample())[2:4]):
                pass

    bodies: dict[str, Callable[[], int]] = {
        "collect": lambda: collect.main([*ENV, f"data={scratch / 'new'}", "--steps", str(10**9)]),
        "train, tokenizer": lambda: train.main([*words, f"runs={scratch}", "training.tokenizer.steps=1000000"]),
        "train, prior": lambda: train.main([
            *words, f"runs={scratch / 'prior'}", "training.tokenizer.steps=1", "training.prior.steps=1000000",
        ]),
        "dream environment": dreaming,
    }  # fmt: skip
    for part, body in bodies.items():
        pid = fork(body, scratch / "log")
        samples, started = [], time.monotonic()
        while time.monotonic() - started < RUN_SECONDS and not os.waitpid(pid, os.WNOHANG)[0]:
            time.sleep(RUN_SECONDS / 100)
            samples.append(anonymous(pid))
        ended = time.monotonic() - started < RUN_SECONDS
        if not ended:
            kill_group(pid)
            os.waitpid(pid, 0)
        kept = samples[int(WARM_UP * len(samples)) :]
        quarter = len(kept) // 4
        first, last = float(np.median(kept[:quarter])), float(np.median(kept[-quarter:]))
        detail = log_of(scratch) if ended else f"{first / 1e3:.0f} MB, then {last / 1e3:.0f} MB"
        grown = ended or last > (1 + GROWTH) * first
        yield Result(part, Outcome.LOST if grown else Outcome.SAME, detail)


def anonymous(pid: int) -> int:
    """Memory of a process in kB, without mapped files."""
    found = re.search(r"^RssAnon:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0
