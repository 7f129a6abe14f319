"""Files that execute something when they are loaded without care; all of them write a marker that must not exist."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.faults.judge import Outcome, Result, run_command
from benchmarks.faults.world import ENV, make_run, record
from worldmodel import collect, dream, train
from worldmodel.agents import evaluate
from worldmodel.runs.folder import PRIOR, TOKENIZER

TAKEN = ("source.path=files", "data=taken")
DREAM = ("--actions", "left*2", "device=cpu", "--output", "out.gif")


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def inject(scratch: Path, rng: random.Random) -> Iterator[Result]:
    """Every file in turn, through the command that reads it."""
    pristine, marker = make_run(scratch / "pristine").parent, scratch / "executed"
    evaluated, trained = (*ENV, "agent=mpc_quick", "episodes=1"), (*ENV, "run=other")
    for part, files, main, words in (
        ("weights", weights(marker), dream.main, DREAM),
        ("YAML, dream", settings(marker), dream.main, DREAM),
        ("YAML, agents.evaluate", settings(marker), evaluate.main, evaluated),
        ("specification", specifications(), dream.main, DREAM),
        ("index", stores(), train.main, trained),
        ("npz", archives(marker), collect.main, ("source=npz", *TAKEN)),
        ("CIFAR-10 pickles", batches(marker), collect.main, ("source=cifar10", *TAKEN)),
    ):
        for name, write in files.items():
            yield through(scratch, pristine, marker, part, name, write, main, words)


def through(
    scratch: Path,
    pristine: Path,
    marker: Path,
    part: str,
    name: str,
    write: Callable[[Path], Any],
    main: Callable[[list[str]], int],
    words: tuple[str, ...],
) -> Result:
    """Write a malicious file into a copy of a run and run a command."""
    root = scratch / "copy"
    shutil.copytree(pristine, root)
    os.chdir(root)
    write(root)
    before = set(scratch.rglob("*"))
    try:
        code, errors = run_command(main, *words, "runs=.", *([] if words[-2:] == TAKEN else ["data=data"]))
    except Exception as error:
        code, errors = 1, f"{type(error).__name__}: {error}"
    outside = [str(path) for path in set(scratch.rglob("*")) - before if root not in path.parents]
    problem = "it was executed" if marker.exists() else f"wrote {outside}" if outside else ""
    if not problem and code not in (0, 2):
        problem = "no clear error"
    marker.unlink(missing_ok=True)
    os.chdir(scratch)
    shutil.rmtree(root)
    outcome = Outcome.LOST if problem else Outcome.REFUSED if code == 2 else Outcome.SAME
    return Result(part, outcome, f"{name}: {problem} {errors.strip()}")


def weights(marker: Path) -> dict[str, Callable[[Path], Any]]:
    return {
        f"{kind} as {name}": lambda root, name=name, save=save: save(root / "run" / name)  # type: ignore[misc]
        for name in (TOKENIZER, PRIOR)
        for kind, save in {
            "pickle": lambda file: file.write_bytes(pickle.dumps(Payload(marker))),
            "torch.save": lambda file: torch.save({"a": Payload(marker)}, file),
        }.items()
    }


def settings(marker: Path) -> dict[str, Callable[[Path], Any]]:
    """Settings of a run, with tags of YAML and calls of functions."""
    command = f"touch {marker}"
    nodes = {
        "YAML tag": f"!!python/object/apply:os.system ['{command}']",
        "_target_: os.system": f"{{_target_: os.system, command: '{command}'}}",
        "_target_: exec": f"{{_target_: builtins.exec, _args_: [\"import os; os.system('{command}')\"]}}",
        "_target_: subprocess": f"{{_target_: subprocess.Popen, args: '{command}', shell: true}}",
        "resolver": f"${{oc.env:HOME}}; ${{eval:{command}}}",
    }
    return {
        f"{name} in {place}": lambda root, place=place, node=node: replace_node(root / "run/config.yaml", place, node)  # type: ignore[misc]
        for name, node in nodes.items()
        for place in ("tokenizer", "prior", "seed")
    }


def replace_node(file: Path, place: str, node: str) -> None:
    """Replace a top-level setting in the text of a YAML file."""
    kept, skip = [], False
    for line in file.read_text().splitlines():
        skip = line.startswith(f"{place}:") or (skip and line.startswith((" ", "-")))
        kept += [] if skip else [line]
    file.write_text("\n".join([*kept, f"{place}: {node}", ""]))


def specifications() -> dict[str, Callable[[Path], Any]]:
    """Specifications of data that name modules, or paths."""
    changes: dict[str, Any] = {
        "env_id": "os:../../../evil", "action_names": ["../../a", "b"], "frame_shape": [2**40, 16, 16],
        "env_kwargs": {"_target_": "os.system"},
    }  # fmt: skip

    def write(root: Path, key: str) -> None:
        for file in (root / "run/spec.json", root / "data/spec.json"):
            raw = json.loads(file.read_text())
            raw.pop("crc32")
            file.write_text(json.dumps({**raw, key: changes[key]}))

    return {f"specification, {key}": lambda root, key=key: write(root, key) for key in changes}  # type: ignore[misc]


def stores() -> dict[str, Callable[[Path], Any]]:
    line = {"episode": 0, "shard": 0, "offset": 0, "length": 6, "terminated": True, "truncated": False, "crc": 1}
    return {
        f"index, shard {shard!r}": lambda root, shard=shard: (root / "data/index.jsonl").write_text(  # type: ignore[misc]
            json.dumps({**line, "shard": shard}) + "\n"
        )
        for shard in ("../../run", 10**30, -1, [0])
    }


def archives(marker: Path) -> dict[str, Callable[[Path], Any]]:
    episode = record(0)
    arrays = {"obs": episode.frames, "action": episode.actions[1:], "reward": episode.rewards[1:],
              "done": np.zeros(6, bool)}  # fmt: skip
    objects = np.array([Payload(marker)], object)

    def write(root: Path, name: str) -> None:
        (root / "files").mkdir()
        changed = {**arrays, "action": objects} if name == "objects" else arrays
        np.savez(root / "files/a.npz", **changed)  # type: ignore[arg-type]
        if name == "../":
            with zipfile.ZipFile(root / "files/a.npz", "a") as archive:
                archive.writestr("../../outside.npy", b"x")
        elif name == "pickle":
            (root / "files/a.npz").write_bytes(pickle.dumps(Payload(marker)))
        elif name == "bomb":
            header = {"descr": "|u1", "fortran_order": False, "shape": (2**50,)}
            with (
                zipfile.ZipFile(root / "files/a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
                archive.open("action.npy", "w") as part,
            ):
                np.lib.format.write_array_header_1_0(part, header)

    return {f"npz, {name}": lambda root, name=name: write(root, name) for name in ("objects", "../", "pickle", "bomb")}  # type: ignore[misc]


def batches(marker: Path) -> dict[str, Callable[[Path], Any]]:
    def write(root: Path) -> None:
        (root / "files").mkdir()
        for name in ("batches.meta", *(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
            (root / "files" / name).write_bytes(pickle.dumps(Payload(marker)))

    return {"CIFAR-10, pickle": write}
