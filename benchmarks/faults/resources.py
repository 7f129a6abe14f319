"""Resources that run out: disk, descriptors, shared memory, permissions, a clock that goes back, recorders that die.

Mounts are made in a namespace of the process and vanish with it; without the right to mount, these are skipped.
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults.judge import Outcome, Result, one_line_error, run_command
from benchmarks.faults.kills import fork, log_of, trained_facts
from benchmarks.faults.world import ENV, SMALL, STAGES, digest_episode, make_store
from worldmodel import collect, train
from worldmodel.data.store import EpisodeStore

NEW_NAMESPACE = 0x00020000  # CLONE_NEWNS
SKIP = 77  # exit code
STEPS = 60


def inject(scratch: Path, rng: random.Random) -> Iterator[Result]:
    """Every resource in turn, each in a process of its own."""
    scratch.mkdir(exist_ok=True)
    make_store(scratch / "data", 8)
    bodies: list[tuple[str, Callable[[Path], None]]] = []
    for _ in range(6):
        room = rng.randrange(40, 200)
        bodies.append(("disk full, collect", lambda root, room=room: disk_full(root, room, collecting)))  # type: ignore[misc]
        bodies.append(("disk full, train", lambda root, room=room: disk_full(root, room, training)))  # type: ignore[misc]
    bodies += [("no descriptors", lambda root, left=left: no_descriptors(root, left)) for left in range(1, 13)]  # type: ignore[misc]
    bodies += [
        ("read-only folder", read_only),
        ("clock set back", clock_set_back),
        ("/dev/shm full", shared_memory_full),
        ("recorder killed", lambda root: recorder(root, signal.SIGKILL)),
        ("recorder stopped", lambda root: recorder(root, signal.SIGSTOP)),
    ]
    for number, (part, body) in enumerate(bodies):
        root = scratch / str(number)
        root.mkdir()
        yield apart(part, lambda: body(root), scratch)  # noqa: B023


def apart(part: str, body: Callable[[], None], scratch: Path) -> Result:
    """Run a body in a forked process; it raises when something is lost."""

    def run() -> int:
        body()
        return 0

    _, status = os.waitpid(fork(run, scratch / "log"), 0)
    code = os.waitstatus_to_exitcode(status)
    outcome = {0: Outcome.SAME, SKIP: Outcome.SKIPPED}.get(code, Outcome.LOST)
    return Result(part, outcome, log_of(scratch))


def collecting(root: Path) -> tuple[int, str]:
    return run_command(collect.main, *ENV, f"data={root / 'new'}", "--steps", STEPS)


def training(root: Path) -> tuple[int, str]:
    data = root.parent / "data" if (root.parent / "data").exists() else root.parents[1] / "data"
    return run_command(train.main, *ENV, *SMALL, *STAGES, f"data={data}", f"runs={root}", "run=run")


def refused(result: tuple[int, str]) -> None:
    if not one_line_error(*result):
        raise RuntimeError(f"not one clear line: {result}")


def succeeded(result: tuple[int, str]) -> None:
    if result[0]:
        raise RuntimeError(f"not continued: {result}")


def episodes(root: Path) -> dict[int, str]:
    if not (root / "new" / "spec.json").exists():
        return {}
    store = EpisodeStore.open(root / "new")
    if damaged := store.verify():
        raise RuntimeError(f"damaged: {damaged}")
    return {entry.episode: digest_episode(store.episode(index)) for index, entry in enumerate(store.entries)}


def compare_training(root: Path) -> None:
    """The training that was continued is the training that was not disturbed."""
    (root / "whole").mkdir()
    succeeded(training(root / "whole"))
    if trained_facts(root / "whole" / "run") != trained_facts(root / "run"):
        raise RuntimeError("the continued training differs")


def mount(*words: str) -> None:
    """Mount in a namespace of this process. Ends the process where that is not permitted."""
    if ctypes.CDLL(None).unshare(NEW_NAMESPACE) or subprocess.run(["mount", "--make-rprivate", "/"]).returncode:
        os._exit(SKIP)
    if subprocess.run(["mount", *words]).returncode:
        os._exit(SKIP)


def disk_full(root: Path, room: int, command: Callable[[Path], tuple[int, str]]) -> None:
    """A disk of ``room`` kB. With more room, the same command continues."""
    mount("-t", "tmpfs", "-o", f"size={room}k", "none", str(root))
    result = command(root)
    before = episodes(root)
    if result[0]:
        refused(result)
    subprocess.run(["mount", "-o", "remount,size=100m", str(root)], check=True)
    succeeded(command(root))
    if not before.items() <= episodes(root).items():
        raise RuntimeError("an episode is lost")
    if command is training:
        compare_training(root)


def no_descriptors(root: Path, left: int) -> None:
    """A few descriptors ``left``; with the usual number, the same command continues."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for command in (collecting, training):
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1 + left, hard))
        result = command(root)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if result[0]:
            refused(result)
        before = episodes(root)
        succeeded(command(root))
        if not before.items() <= episodes(root).items():
            raise RuntimeError("an episode is lost")


def read_only(root: Path) -> None:
    """A folder that may not be written."""
    mount("-t", "tmpfs", "none", str(root))
    succeeded(collecting(root))
    before = episodes(root)
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
    refused(collecting(root))
    refused(training(root))
    if episodes(root) != before:
        raise RuntimeError("an episode is lost")


def clock_set_back(root: Path) -> None:
    """All files are of tomorrow; what is continued is the same."""
    succeeded(collecting(root))
    before = episodes(root)
    result = run_command(train.main, *ENV, *SMALL, *STAGES, f"data={root.parent / 'data'}", f"runs={root}", "run=run",
                         "--stage", "tokenizer")  # fmt: skip
    succeeded(result)
    tomorrow = time.time() + 86_400
    for path in root.rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    succeeded(collecting(root))
    succeeded(training(root))
    if not before.items() <= episodes(root).items():
        raise RuntimeError("an episode is lost")
    compare_training(root)


def shared_memory_full(root: Path) -> None:
    """Not a byte of shared memory."""
    mount("-t", "tmpfs", "-o", "size=4k,nr_inodes=2", "none", "/dev/shm")
    Path("/dev/shm/full").write_bytes(bytes(4096))
    for command in (collecting, training):
        result = command(root)
        if result[0]:
            refused(result)


def recorder(root: Path, number: int) -> None:
    """The recorder process gets a signal while it records; another records what is missing."""
    stopped = threading.Event()

    def strike() -> None:
        while not stopped.is_set():
            if (root / "new/index.jsonl").exists():
                children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
                for child in children.split():
                    os.kill(int(child), number)
                return
            time.sleep(0.01)

    threading.Thread(target=strike, daemon=True).start()
    code, errors = run_command(
        collect.main, *ENV, "collect.timeout=10", f"data={root / 'new'}", "collect.steps=20000", "collect.longest=10"
    )
    stopped.set()
    succeeded((code, errors))
    episodes(root)
    if EpisodeStore.open(root / "new").steps != 20000 or "was replaced" not in errors:
        raise RuntimeError(f"not replaced: {errors}")
