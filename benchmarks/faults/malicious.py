"""Files that execute something when they are loaded without care: all of them create a marker, which must not exist."""

import io
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

Malicious = tuple[str, str, dict[str, bytes]]  # a row of the table, a description, and the contents of files by path
DREAM = ("--actions", "left*2", "device=cpu", "--output", "out.gif", "data=data")
COMMANDS: dict[str, tuple[Callable[[list[str]], int], tuple[str, ...]]] = {
    "weights": (dream.main, DREAM),
    "YAML, dream": (dream.main, DREAM),
    "YAML, agents.evaluate": (evaluate.main, (*ENV, "agent=mpc_quick", "episodes=1", "data=data")),
    "specification": (dream.main, DREAM),
    "index": (train.main, (*ENV, "run=other", "data=data")),
    "npz": (collect.main, ("source=npz", "source.path=files", "data=taken")),
    "CIFAR-10": (collect.main, ("source=cifar10", "source.path=files", "data=taken")),
}
"""Row of the table → the command that reads such files."""


class Payload:
    """An object whose unpickling executes a command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def inject(scratch: Path, rng: random.Random) -> Iterator[Result]:
    """Every file in turn, in a copy of a run."""
    run, marker, root = make_run(scratch / "intact"), scratch / "executed", scratch / "copy"
    for part, name, contents in [*models(run, f"touch {marker}"), *recordings(run, f"touch {marker}")]:
        shutil.copytree(run.parent, root)
        (root / "files").mkdir()
        for path, content in contents.items():
            (root / path).write_bytes(content)
        os.chdir(root)
        before = set(scratch.rglob("*"))
        main, words = COMMANDS[part]
        try:
            code, errors = run_command(main, *words, "runs=.")
        except Exception as error:
            code, errors = 1, f"{type(error).__name__}: {error}"
        outside = [str(path) for path in set(scratch.rglob("*")) - before if root not in path.parents]
        problem = "it was executed" if marker.exists() else f"wrote {outside}" if outside else ""
        lost = problem or code not in (0, 2)
        outcome = Outcome.LOST if lost else Outcome.REFUSED if code == 2 else Outcome.SAME
        yield Result(part, outcome, f"{name}: {problem} {errors.strip()}")
        os.chdir(scratch)
        marker.unlink(missing_ok=True)
        shutil.rmtree(root)


def models(run: Path, command: str) -> Iterator[Malicious]:
    """Pickles in the place of weights; tags, functions and resolvers in settings."""
    saved = io.BytesIO()
    torch.save({"a": Payload(command)}, saved)
    for name in (TOKENIZER, PRIOR):
        for kind, content in {"pickle": pickle.dumps(Payload(command)), "torch.save": saved.getvalue()}.items():
            yield "weights", f"{kind} as {name}", {f"run/{name}": content}
    nodes = (
        f"!!python/object/apply:os.system ['{command}']",
        f"{{_target_: os.system, command: '{command}'}}",
        f"{{_target_: builtins.exec, _args_: [\"import os; os.system('{command}')\"]}}",
        f"{{_target_: subprocess.Popen, args: '{command}', shell: true}}",
        f"${{oc.env:HOME}}; ${{eval:{command}}}",
    )
    for node in nodes:
        for place in ("tokenizer", "prior", "seed"):
            kept, within = [f"{place}: {node}"], False
            for line in (run / "config.yaml").read_text().splitlines():
                within = line.startswith(f"{place}:") or (within and line.startswith((" ", "-")))
                kept += [] if within or line.startswith("# crc32") else [line]  # whoever means harm removes it
            for part in ("YAML, dream", "YAML, agents.evaluate"):
                yield part, f"{place}: {node}", {"run/config.yaml": "\n".join(kept).encode()}


def recordings(run: Path, command: str) -> Iterator[Malicious]:
    """Paths, sizes and objects in specifications, indices, npz files and the batches of CIFAR-10."""
    spec = json.loads((run / "spec.json").read_text())
    spec.pop("crc32")
    for change in (
        {"env_id": "os:../../../evil"}, {"action_names": ["../../a", "b"]}, {"frame_shape": [2**40, 16, 16]},
        {"env_kwargs": {"_target_": "os.system"}},
    ):  # fmt: skip
        content = json.dumps(spec | change).encode()
        yield "specification", str(change), {"run/spec.json": content, "data/spec.json": content}
    line = {"episode": 0, "offset": 0, "length": 6, "terminated": True, "truncated": False, "crc": 1}
    for shard in ("../../run", 10**30, -1, [0]):
        yield "index", f"shard {shard}", {"data/index.jsonl": json.dumps({**line, "shard": shard}).encode() + b"\n"}
    episode = record(0)
    arrays: dict[str, Any] = {
        "obs": episode.frames, "action": episode.actions[1:], "reward": episode.rewards[1:], "done": np.zeros(6, bool),
    }  # fmt: skip
    objects, outside, huge = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(objects, **{**arrays, "action": np.array([Payload(command)], object)})
    np.savez(outside, **arrays)
    with zipfile.ZipFile(outside, "a") as archive:
        archive.writestr("../../outside.npy", b"x")
    with zipfile.ZipFile(huge, "w") as archive, archive.open("action.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (2**50,)})
    for name, each in {"objects": objects, "a member ../..": outside, "a huge array": huge}.items():
        yield "npz", name, {"files/a.npz": each.getvalue()}
    payload = pickle.dumps(Payload(command))
    yield "npz", "a pickle", {"files/a.npz": payload}
    names = ("batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6)))
    yield "CIFAR-10", "pickles", {f"files/{name}": payload for name in names}
