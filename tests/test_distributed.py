"""Two processes over gloo, through the real fit loop: equal to each other, and to one with the whole batch."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from tiny import FIT

from worldmodel.quantizers import VectorQuantizer
from worldmodel.tokenizers import VQVAE
from worldmodel.training.base import step_seed
from worldmodel.training.fit import Fit, FitSettings, fit
from worldmodel.training.hooks import Checkpoint, JsonLines, read_json_lines
from worldmodel.training.objectives import TokenizerObjective
from worldmodel.types import Segment

STEPS = 12
BATCH = 16  # over all processes


def objective() -> TokenizerObjective:
    """A tiny tokenizer whose codebook lies already: where it is laid first depends on the rank's own random rows."""
    torch.manual_seed(0)
    tokenizer = VQVAE((3, 8, 8), partial(VectorQuantizer, 8, 4, revive_after=0), [8, 8], blocks=1)
    tokenizer.quantizer.started.fill_(1.0)
    return TokenizerObjective(tokenizer, window=5)


def revived() -> TokenizerObjective:
    """The same, laid on the first batch and with codes that restart all the time, from random rows."""
    torch.manual_seed(0)
    return TokenizerObjective(
        VQVAE((3, 8, 8), partial(VectorQuantizer, 64, 4, revive_after=2), [8, 8], blocks=1), window=5
    )


def frames(step: int, rank: int, world: int) -> Segment:
    """The part of the step's batch that belongs to a process."""
    generator = torch.Generator().manual_seed(step_seed(3, step))
    whole = torch.randint(0, 256, (BATCH, 1, 3, 8, 8), generator=generator, dtype=torch.uint8)
    mine = whole[rank::world]
    flags = torch.zeros(mine.shape[:2], dtype=torch.bool)
    return Segment(flags.long(), flags.float(), flags, flags, ~flags, frames=mine)


class Dump(Checkpoint):
    """Writes what every process holds at the end, not only the first one."""

    def on_end(self, fit: Fit) -> None:
        super().on_end(fit)
        state = {name: tensor.contiguous().clone() for name, tensor in fit.objective.state_dict().items()}
        save_file(state, self.path.with_name(f"rank{fit.fabric.global_rank}.safetensors"))


def train(fabric: Fabric, make, folder: Path, steps: int = STEPS) -> None:
    rank, world = fabric.global_rank, fabric.world_size
    settings = FitSettings(
        **{**FIT, "learning_rate": 3e-3, "warmup_steps": 2, "log_every": 4, "decay": "none", "ema": 0.9}, steps=steps
    )
    path = folder / "c.safetensors"
    hooks = [JsonLines(folder / "metrics.jsonl"), Dump(path, 1e9)]
    fit(fabric, make(), lambda step: frames(step, rank, world), settings, path, hooks, "tokenizer")


def worker(rank: int, world: int, port: int, folder: Path) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",  # as torchrun sets them
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=world, strategy="ddp")
    fabric.launch()
    train(fabric, objective, folder / "whole")
    train(fabric, objective, folder / "parts", steps=5)
    train(fabric, objective, folder / "parts")  # goes on from the checkpoint of step 5
    train(fabric, revived, folder / "revived")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (2, port, folder), nprocs=2)
    return folder


@pytest.mark.parametrize("name", ["whole", "parts", "revived"])
def test_processes_hold_the_same_weights_and_codebook(folder: Path, name: str) -> None:
    first, second = (load_file(folder / name / f"rank{rank}.safetensors") for rank in range(2))
    assert "tokenizer.quantizer.table" in first and first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_two_processes_equal_one_with_the_whole_batch(folder: Path, tmp_path: Path) -> None:
    train(Fabric(accelerator="cpu", devices=1), objective, tmp_path)
    one, two = load_file(tmp_path / "rank0.safetensors"), load_file(folder / "whole" / "rank0.safetensors")
    start = objective().state_dict()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")
    moved = (one["tokenizer.quantizer.table"] - start["tokenizer.quantizer.table"]).abs().max()
    assert moved > 0.01  # the statistics did something


def test_metrics_are_means_over_all_processes(folder: Path, tmp_path: Path) -> None:
    train(Fabric(accelerator="cpu", devices=1), objective, tmp_path)
    one, two = read_json_lines(tmp_path / "metrics.jsonl"), read_json_lines(folder / "whole" / "metrics.jsonl")
    assert [line["step"] for line in two] == [4, 8, 12]
    for ours, theirs in zip(two, one, strict=True):
        for name in ("loss", "reconstruction", "commitment", "usage", "perplexity"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name


def test_resumed_processes_equal_uninterrupted_ones(folder: Path) -> None:
    whole, parts = (load_file(folder / name / "rank1.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    lines = [read_json_lines(folder / name / "metrics.jsonl")[-1] for name in ("whole", "parts")]
    assert lines[0]["loss"] == lines[1]["loss"]
