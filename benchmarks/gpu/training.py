"""Does it train, and how fast? Every experiment, batches, resuming, one process of DDP, and the command itself."""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from benchmarks.gpu.bench import SMALLER, WORLD, Bench, smooth_frames
from benchmarks.timing import peak_memory, reset_peak
from worldmodel import train
from worldmodel.config.cli import choices, compose_config
from worldmodel.data.store import EpisodeStore
from worldmodel.runs.stages import stage_settings, stages_of
from worldmodel.runs.training import blank_window, make_fabric
from worldmodel.tokenizers import Autoencoder
from worldmodel.training.fit import Fit
from worldmodel.training.objectives import MARGIN
from worldmodel.types import Episode, Segment, Spec

IMAGE = Spec("images", (3, 32, 32), tuple(f"class_{n}" for n in range(10)), 1.0)
LARGE = Spec("large", (3, 128, 128), ("a", "b"), 1.0)
SOUND = Spec("sound", (1, 640), ("p1", "p2", "p3"), 25.0)
SOURCES = {"cifar10": IMAGE, "imagenet": LARGE, "images": LARGE, "vctk": SOUND, "timit": SOUND, "speech": SOUND}
TINY = ("default", "cifar10")  # experiments of a tiny run


def fits(
    bench: Bench, overrides: list[str], batch: int | None = None, fabric: Fabric | None = None
) -> Iterator[tuple[str, int, Fit, Segment]]:
    """The name, batch size, fit and a random batch of each stage of the settings."""
    config = compose_config([*overrides, f"device={bench.device}"])
    spec = SOURCES.get(str(config.source.name).split("/")[0], WORLD)
    fabric = fabric or make_fabric(config)
    torch.manual_seed(0)
    tokenizer: Autoencoder | None = None
    for stage in stages_of(config):
        model, settings = stage.build(config, spec, tokenizer), stage_settings(config, stage)
        size = batch or (2 if bench.tiny else settings.batch)
        varied = stage.name == "prior" and settings.augment is not None
        length = getattr(settings, "targets", getattr(settings, "length", 1)) + stage.lead(model)
        window = blank_window(length + (MARGIN if varied else 0), spec, None if varied else tokenizer)
        fit = Fit(fabric, stage.objective(config, model, tokenizer), settings, stage.name)
        fit.objective.train()
        yield stage.name, size, fit, _random(window, size, model, spec)
        tokenizer = stage.extended(tokenizer, model.cpu())


def _random(window: Segment, batch: int, model: torch.nn.Module, spec: Spec) -> Segment:
    """Windows of random frames or codes."""
    generator = torch.Generator().manual_seed(0)
    rows = {name: x.expand(batch, *x.shape[1:]).clone() for name, x in vars(window).items() if x is not None}
    rows["actions"].random_(len(spec.action_names), generator=generator)
    for name, most in (("frames", 256), ("codes", int(getattr(model, "num_codes", 2)))):
        if name in rows:
            rows[name].random_(most, generator=generator)
    return Segment(**rows)


def experiments(bench: Bench) -> None:
    """Some updates of every stage of each experiment: no error, finite losses, and their time."""
    for name in TINY if bench.tiny else ("default", *choices()["experiment"]):
        if bench.left() < 30:
            bench.add("experiments", experiment=name, skipped="no time left")
            continue
        try:
            for stage, size, fit, batch in fits(bench, [] if name == "default" else [f"experiment={name}"]):
                spent = bench.seconds(lambda: fit.update(batch), 2, 3, 1.0)  # noqa: B023
                loss = fit.check_finite()["loss"]
                bench.add("experiments", experiment=name, stage=stage, batch=size, loss=loss, ms_a_step=1e3 * spent)
        except Exception as error:
            bench.add("experiments", experiment=name, error=f"{type(error).__name__}: {error}"[:300])


def batches(bench: Bench) -> None:
    """Updates by batch size and by size of the model; kernels of an update, and how long the GPU is busy."""
    for overrides, sizes in (([], (24, 512)), (["experiment=world-gpu"], (128, 512))):
        for size in (2,) if bench.tiny else sizes:
            chosen = [*overrides, *(SMALLER if bench.tiny else ())]
            for stage, _, fit, batch in fits(bench, chosen, size):
                reset_peak(bench.device)
                spent = bench.seconds(lambda: fit.update(batch), 3, 5, 3.0)  # noqa: B023
                facts = bench.kernels(lambda: fit.update(batch))  # noqa: B023
                facts["peak_GiB"] = peak_memory(bench.device).value / 1024
                settings = " ".join(overrides) or "default"
                rate = {"ms_a_step": 1e3 * spent, "windows_a_second": size / spent}
                bench.add("batches", settings=settings, stage=stage, batch=size, **rate, **facts)


def resumed(bench: Bench) -> None:
    """Six updates in one go, and with a checkpoint between: how far apart are the sums of the losses?

    Equal on a CPU. On a GPU, some backward passes add in any order, unless torch is told to be deterministic.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"
        for stage in ("tokenizer", "prior"):
            sums = []
            for stop in (None, 3):
                fit, batch = _fit_of(bench, stage)
                for step in range(6):
                    if step == stop:
                        fit.save(path)
                        fit, batch = _fit_of(bench, stage)
                        fit.resume(path)
                    fit.update(batch)
                assert fit.window.sums is not None
                sums.append(fit.window.sums.cpu())
            bench.add("resumed", stage=stage, largest_difference=float((sums[0] - sums[1]).abs().max()))


def _fit_of(bench: Bench, stage: str) -> tuple[Fit, Segment]:
    stages = fits(bench, list(SMALLER) if bench.tiny else [], 4)
    return next((fit, batch) for name, _, fit, batch in stages if name == stage)


def one_process_of_ddp(bench: Bench) -> None:
    """DistributedDataParallel with one process: its hooks, its buffers, and the tuple of losses."""
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
             "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "benchmark"}  # fmt: skip
    os.environ |= names
    try:
        fabric = Fabric(accelerator=bench.device.type, devices=1, strategy="ddp")
        fabric.launch()
        _, _, fit, batch = next(fits(bench, list(SMALLER) if bench.tiny else [], 4, fabric))
        for _ in range(3):
            fit.update(batch)
        bench.add("one_process_of_ddp", loss=fit.check_finite()["loss"])
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name in names:
            os.environ.pop(name)


def command(bench: Bench) -> None:
    """``worldmodel.train`` on made-up episodes: the time of each stage, and whether the losses fall."""
    with tempfile.TemporaryDirectory() as folder:
        with EpisodeStore.writer(Path(folder) / "data", WORLD) as store:
            for number in range(3 if bench.tiny else 40):
                steps, rng = 20 if bench.tiny else 150, np.random.default_rng(number)
                actions, rewards = rng.integers(3, size=steps), rng.normal(size=steps).astype(np.float32)
                episode = Episode.from_steps(smooth_frames(steps + 1, number), actions, rewards, True, False)
                store.append(episode, held_out=number % 10 == 2)
        tokenizer_steps, prior_steps = (4, 4) if bench.tiny else (1500, 2500)
        started = time.perf_counter()
        code = train.main([f"data={folder}/data", f"runs={folder}/runs", "run=made-up", f"device={bench.device}",
                           *(SMALLER if bench.tiny else ()), f"training.tokenizer.steps={tokenizer_steps}",
                           f"training.prior.steps={prior_steps}"])  # fmt: skip
        bench.add("command", seconds=time.perf_counter() - started, wrong=code)
        lines = [json.loads(line) for line in (Path(folder) / "runs/made-up/metrics.jsonl").read_text().splitlines()]
        for stage in ("tokenizer", "prior"):
            own = [line for line in lines if line["stage"] == stage and "loss" in line]
            rate = own[-1]["step"] / max(own[-1]["seconds"], 1e-9)
            losses = {"first_loss": own[0]["loss"], "last_loss": own[-1]["loss"]}
            bench.add("command", stage=stage, steps_a_second=rate, **losses)
