"""Memory over long runs: that of a process, without mapped files, may not grow by more than 5 %."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.faults.judge import Outcome, Result
from benchmarks.faults.kills import fork, kill_group, log_of
from benchmarks.faults.world import ENV, SMALL, STAGES, make_run
from worldmodel import collect, train
from worldmodel.envs.dreams import DreamEnv

GROWTH = 0.05
SECONDS = 60.0  # of each run
WARM_UP = 0.4  # share of that time


def inject(scratch: Path, rng: random.Random) -> Iterator[Result]:
    """Long runs of the commands and of the dream environment."""
    run = make_run(scratch / "runs")
    data = scratch / "runs" / "data"
    long = [word for word in STAGES if ".steps=" not in word and "checkpoint" not in word and "log_every" not in word]

    def dreaming() -> int:
        env = DreamEnv(run, device="cpu", horizon=20)
        over = True
        while True:
            if over:
                env.reset()
            over = bool(np.logical_or(*env.step(env.action_space.sample())[2:4]))

    bodies: dict[str, Callable[[], int]] = {
        "collect": lambda: collect.main([*ENV, f"data={scratch / 'new'}", "--steps", str(10**9)]),
        "train, tokenizer": lambda: train.main([
            *ENV, *SMALL, *long, f"data={data}", f"runs={scratch}", "training.tokenizer.steps=1000000",
        ]),
        "train, prior": lambda: train.main([
            *ENV, *SMALL, *long, f"data={data}", f"runs={scratch / 'prior'}", "training.tokenizer.steps=1",
            "training.prior.steps=1000000",
        ]),
        "dream environment": dreaming,
    }  # fmt: skip
    for part, body in bodies.items():
        pid = fork(body, scratch / "log")
        samples, started = [], time.monotonic()
        while time.monotonic() - started < SECONDS and not os.waitpid(pid, os.WNOHANG)[0]:
            time.sleep(SECONDS / 100)
            samples.append(anonymous(pid))
        ended = time.monotonic() - started < SECONDS
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
