"""Train: the tokenizer, then the codes of the whole set, then the prior. Goes on where it was stopped.

python -m worldmodel.train
torchrun --nproc-per-node 2 -m worldmodel.train
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import nn

from worldmodel.config.cli import one_line, run_entry_point
from worldmodel.config.settings import STAGE
from worldmodel.data.codes import CodeStore, encode_store, fingerprint
from worldmodel.data.store import EpisodeStore, Split
from worldmodel.data.windows import Windows
from worldmodel.errors import ConfigError, DataError, WorldModelError
from worldmodel.media import plots
from worldmodel.nn.precision import resolve_precision
from worldmodel.priors import Prior
from worldmodel.priors.gaussian import GaussianPrior
from worldmodel.runs.build import build_augmentation, build_prior, build_second, build_tokenizer
from worldmodel.runs.folder import CODES, METRICS, checkpoint_of
from worldmodel.runs.load import check_trained, load_autoencoder, load_first, load_weights, resolve_device, save_weights
from worldmodel.runs.resume import STAGES, check_no_orphan, run_to_begin_with, run_to_train, spoken, stages_of
from worldmodel.tokenizers import VAE, Autoencoder, Tokenizer, require_codes
from worldmodel.tokenizers.scene import Stacked
from worldmodel.training import hooks as watch
from worldmodel.training.base import Objective
from worldmodel.training.batches import make_batches
from worldmodel.training.fit import FitSettings, Hook, fit, weighted_sum
from worldmodel.training.objectives import LatentObjective, PriorObjective, SecondObjective, TokenizerObjective
from worldmodel.training.optim import learning_rate_factor
from worldmodel.types import Segment, Spec
from worldmodel.util.progress import Bars

DESCRIPTION = """\
Train a world model on the recorded episodes: first the tokenizer, then the prior over its codes.

The latest run is continued if it is unfinished and has the same settings; otherwise a new one is started. Ctrl-C
saves and stops, and the same command goes on. run=name names the run: another name starts another. Budgets are
settings too: training.tokenizer.steps, training.prior.max_seconds, …; --steps and --minutes are short for them."""

SPLITS: tuple[Split, ...] = ("train", "held_out")
SHARES = {"tokenizer": 1.0, "second": 1.0, "prior": 2.0}  # of --minutes, in proportion
FIRST_CODES = "first_codes"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="what to train (default: all)")
    parser.add_argument(
        "--tokenizer-of", metavar="RUN", help="take over the trained tokenizer of a run instead of training one"
    )
    parser.add_argument(
        "--weights-of",
        metavar="RUN",
        help="begin with the weights of a run of the same settings, to learn new episodes",
    )
    parser.add_argument("--steps", type=int, help="most steps of each stage trained")
    parser.add_argument(
        "--minutes", type=float, help="time for training: twice as much for the prior as for each stage before it"
    )


def train(
    config: DictConfig, stage: str = "all", tokenizer_of: str | None = None, weights_of: str | None = None
) -> Path:
    """Trains the stages that are not finished and returns the folder of the run.

    ``tokenizer_of``: a run whose trained tokenizer is taken over, so that priors can be compared on the same codes.
    ``weights_of``: a run of the same settings whose weights the training begins with, to go on with new episodes.

    Raises :class:`DataError` without data, :class:`ConfigError` for settings that do not fit, :class:`RunError` for a
    damaged or diverged run, and KeyboardInterrupt, with everything saved, when asked to stop.
    """
    stages = stages_of(config, stage)
    store = open_store(config)
    fabric = make_fabric(config)
    rehearse(fabric, config, store.spec, stages)
    first = None if weights_of is None else run_to_begin_with(config, store.spec, stages, weights_of)
    fabric.launch()
    chosen = str(run_to_train(config, store.spec, stages, tokenizer_of)) if fabric.is_global_zero else ""
    folder = Path(fabric.broadcast(chosen))
    say(fabric, f"run {folder.name}")
    for name in stages:
        if check_trained(folder, STAGES[name]):
            say(fabric, f"the {spoken(name)} is trained already; to start another run: run=another-name")
            continue
        if name != "prior":
            check_no_orphan(folder, name)
        {"tokenizer": train_tokenizer, "second": train_second, "prior": train_prior}[name](
            fabric, config, store, folder, None if first is None else first / STAGES[name]
        )
        if fabric.is_global_zero:
            plot_metrics(folder)
    say(fabric, f"weights, metrics and curves are in {folder}")
    return folder


def open_store(config: DictConfig) -> EpisodeStore:
    """The recorded episodes, without the damaged ones. Raises :class:`DataError` when there are none to train on."""
    if int(os.environ.get("RANK", 0)):
        logging.getLogger("worldmodel.data").setLevel(logging.ERROR)  # the first process names what is damaged
    store = EpisodeStore.open(config.data)
    store.verify()  # batches are read too fast to be checked
    if not len(store.split("train")):
        raise DataError(f"{config.data} holds no finished episode yet; collect some: python -m worldmodel.collect")
    return store


def make_fabric(config: DictConfig) -> Fabric:
    """Fabric for ``device``, or for the processes that torchrun started: as many as it says, one GPU each."""
    device = resolve_device(str(config.device))
    here, everywhere = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    several = everywhere > 1
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise ConfigError(f"torchrun started {here} processes, but this machine has {torch.cuda.device_count()} GPUs; "
                          f"start one for each: --nproc-per-node {torch.cuda.device_count()}")  # fmt: skip
    devices: Any = [device.index] if device.type == "cuda" and not several else here
    strategy = "ddp" if several else "auto"
    return Fabric(accelerator=device.type, devices=devices, num_nodes=everywhere // here, strategy=strategy)


def rehearse(fabric: Fabric, config: DictConfig, spec: Spec, stages: Sequence[str]) -> None:
    """Builds the models and asks each for the losses of one window, so that what does not work is told at once.

    Neither the whole training of the tokenizer nor the folder of a run should come before a slip in the settings of
    the prior; but a tokenizer that is trained alone need not have one. Raises :class:`ConfigError`.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        tokenizer = build_tokenizer(config, spec)
        objectives: dict[str, Objective] = {
            "tokenizer": TokenizerObjective(tokenizer, augment=build_augmentation(config))
        }
        windows = {"tokenizer": blank_window(1, frame_shape=spec.frame_shape)}
        if (second := build_second(config, tokenizer)) is not None:
            first = require_codes(tokenizer)
            objectives["second"] = SecondObjective(second)
            windows["second"] = blank_window(1, grid=first.grid)
            tokenizer = Stacked(first, second)
        if "prior" in stages:
            prior = build_prior(config, spec, tokenizer)
            objectives["prior"] = prior_objective(tokenizer, prior)
            continuous = not isinstance(tokenizer, Tokenizer)
            shape = {"frame_shape": spec.frame_shape} if continuous else {"grid": tokenizer.grid}
            windows["prior"] = blank_window(prior.context + 1, **shape)
        for stage, objective in objectives.items():
            settings = fit_settings(config, stage)
            resolve_precision(settings.precision, fabric.device)
            learning_rate_factor(0, 0.0, settings.warmup_steps, settings.decay)
            try:
                losses = objective.eval()(windows[stage], torch.Generator())
            except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"the {spoken(stage)} does not work with these settings: {one_line(error)}"
                ) from error
            weighted_sum(losses.terms, settings.weights)


def blank_window(
    length: int, frame_shape: tuple[int, ...] | None = None, grid: tuple[int, ...] | None = None
) -> Segment:
    """One window of black frames, or of grids of code 0."""
    steps = (1, length)
    nothing = torch.zeros(steps, dtype=torch.bool)
    return Segment(
        actions=torch.zeros(steps, dtype=torch.int64),
        rewards=torch.zeros(steps),
        terminated=nothing,
        truncated=nothing,
        valid=~nothing,
        frames=None if frame_shape is None else torch.zeros((*steps, *frame_shape), dtype=torch.uint8),
        codes=None if grid is None else torch.zeros((*steps, *grid), dtype=torch.int64),
    )


def say(fabric: Fabric, text: str) -> None:
    """One line, from one process."""
    if fabric.is_global_zero:
        print(text, flush=True)


def fit_settings(config: DictConfig, stage: str) -> FitSettings:
    """The part of ``training.<stage>`` that the optimisation loop knows. Raises :class:`ConfigError`."""
    node = OmegaConf.to_container(config.training[stage], resolve=True)
    assert isinstance(node, dict)
    names = {field.name for field in dataclasses.fields(FitSettings)}
    try:
        return FitSettings(**{str(k): v for k, v in node.items() if k in names}, seed=config.seed)
    except TypeError as error:
        raise ConfigError(f"training.{stage} cannot be read: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"training.{stage}.{error}") from error


def train_tokenizer(
    fabric: Fabric, config: DictConfig, store: EpisodeStore, folder: Path, first: Path | None = None
) -> None:
    """Trains the tokenizer on windows of frames and writes ``tokenizer.safetensors``."""
    node = config.training.tokenizer
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer(config, store.spec)
    frames = int((store.lengths[store.split("train")] + 1).sum())
    steps_an_epoch = math.ceil(frames / (node.batch * node.length * fabric.world_size))
    window = min(max(steps_an_epoch, 10), 1000)
    objective = TokenizerObjective(tokenizer, window, build_augmentation(config))
    if tokenizer.joined and node.rewarded:
        raise ConfigError("training.tokenizer.rewarded is for frames; this tokenizer codes whole signals: choose 0")
    windows: dict[Split, Windows] = {
        "train": Windows(store, "train", node.length, whole=tokenizer.joined, rewarded=node.rewarded),
        "held_out": Windows(store, "held_out", node.length, whole=tokenizer.joined),
    }
    if not windows["train"].drawable:
        windows["train"].sample(1, torch.Generator())  # says why
    begin_with(tokenizer, first)
    run_stage(fabric, config, "tokenizer", objective, windows, folder)


def begin_with(model: nn.Module, first: Path | None) -> None:
    """Puts the weights of a file into a model that is to be trained. Raises :class:`RunError` if they do not fit."""
    if first is not None:
        load_weights(model, first, "training can only begin with the weights of a run of the same settings")


def train_second(
    fabric: Fabric, config: DictConfig, store: EpisodeStore, folder: Path, first: Path | None = None
) -> None:
    """Trains the second stage on the codes of the first and writes ``second.safetensors``."""
    tokenizer = require_codes(load_first(folder))
    codes = encode(fabric, store, tokenizer, folder / FIRST_CODES)
    torch.manual_seed(config.seed)
    second = build_second(config, tokenizer)
    assert second is not None
    begin_with(second, first)
    windows = {split: Windows(codes, split) for split in SPLITS}
    run_stage(fabric, config, "second", SecondObjective(second), windows, folder)


def train_prior(
    fabric: Fabric, config: DictConfig, store: EpisodeStore, folder: Path, first: Path | None = None
) -> None:
    """Encodes the whole set once, trains the prior on windows of codes and writes ``prior.safetensors``.

    Latents that are drawn anew at every look, those of a VAE, are not cached: its prior is trained on frames.
    """
    node = config.training.prior
    tokenizer = load_autoencoder(folder)
    source: EpisodeStore | CodeStore = store
    if isinstance(tokenizer, Tokenizer):
        source = encode(fabric, store, tokenizer, folder / CODES)
    torch.manual_seed(config.seed)
    prior = build_prior(config, store.spec, tokenizer)
    begin_with(prior, first)
    lead = prior.context
    length = lead + node.targets
    windows: dict[Split, Windows] = {
        "train": Windows(source, "train", length, lead, rewarded=node.rewarded),
        "held_out": Windows(source, "held_out", length, lead),
    }
    run_stage(fabric, config, "prior", prior_objective(tokenizer, prior), windows, folder)


def prior_objective(tokenizer: Autoencoder, prior: Prior | GaussianPrior) -> Objective:
    """What the prior of a tokenizer minimises."""
    if isinstance(prior, Prior):
        return PriorObjective(prior)
    assert isinstance(tokenizer, VAE)  # its constructor has checked it
    return LatentObjective(tokenizer, prior)


def encode(fabric: Fabric, store: EpisodeStore, tokenizer: Tokenizer, folder: Path) -> CodeStore:
    """The codes of all episodes: the first process computes what the cache lacks, then all of them open it."""
    if fabric.is_global_zero:
        with Bars(transient=True) as bars:
            task = bars.add_task("codes of all frames")
            encode_store(
                store, tokenizer, folder, fabric.device, progress=lambda n, of: bars.update(task, completed=n, total=of)
            )
    fabric.barrier()
    codes = encode_store(store, tokenizer, folder, fabric.device)
    tokenizer.cpu()
    return codes


def run_stage(
    fabric: Fabric,
    config: DictConfig,
    stage: str,
    objective: Objective,
    windows: dict[Split, Windows],
    folder: Path,
    file: str | None = None,
) -> None:
    """One fit with its hooks; the averaged weights of the model appear in the folder when it is finished.

    They are those of the attribute of the objective that is called as the stage is; ``file``: of a stage of an agent.
    """
    node, settings = config.training[stage], fit_settings(config, stage)
    file = file or STAGES[stage]
    checkpoint = checkpoint_of(folder, file)
    batches = make_batches(windows["train"].sample, node.batch, config.seed, fabric.global_rank)
    lines, board = watch.JsonLines(folder / METRICS), watch.TensorBoard(folder / "tensorboard")
    chain: list[Hook] = [watch.ProgressBar(), lines, board]
    if windows["held_out"].drawable:
        held_out = make_batches(windows["held_out"].sample, node.batch, config.seed, 0)
        evaluate = watch.Measure(held_out, node.evaluate_batches, fabric.device)
        chain.append(watch.Evaluation(node.evaluate_every, evaluate, (lines, board)))
    chain.append(watch.Checkpoint(checkpoint, node.checkpoint_seconds))
    result = fit(fabric, objective, batches, settings, checkpoint, chain, stage)
    if fabric.is_global_zero:
        prefix = f"{stage}."
        weights = {k.removeprefix(prefix): v for k, v in result.weights.items() if k.startswith(prefix)}
        facts = {"stage": stage, "steps": result.steps, "seconds": round(result.seconds, 1)}
        if stage != "tokenizer":  # whose codes it knows
            facts["tokenizer"] = fingerprint(load_first(folder) if stage == "second" else load_autoencoder(folder))
        save_weights(folder / file, weights, facts)
    fabric.barrier()


def plot_metrics(folder: Path) -> None:
    """Draws every logged value over the steps as ``metrics.png``."""
    records = watch.read_json_lines(folder / METRICS)
    if records:
        plots.save_panels(folder / "metrics.png", plots.metrics_panels(records), title=folder.name)


def run(args: argparse.Namespace, config: DictConfig) -> None:
    """The command, behind the parsing."""
    stages = stages_of(config, args.stage)
    for flag, value, rule in (("--steps", args.steps, "steps"), ("--minutes", args.minutes, "max_seconds")):
        if value is not None:
            STAGE[rule].check(flag, value)
    for stage in stages:
        if args.steps is not None:
            config.training[stage].steps = args.steps
        if args.minutes is not None:
            share = SHARES[stage] / sum(SHARES[name] for name in stages)
            config.training[stage].max_seconds = 60 * args.minutes * share
    with told_to_torchrun():
        train(config, args.stage, args.tokenizer_of, args.weights_of)


@contextlib.contextmanager
def told_to_torchrun() -> Iterator[None]:
    """Leaves a user's error where torchrun, if there is one, looks for what to end its report with."""
    try:
        yield
    except WorldModelError as error:
        if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            Path(path).write_text(json.dumps({"message": f"error: {one_line(error)}", "timestamp": int(time.time())}))
        raise


def main(argv: Sequence[str] | None = None) -> int:
    return run_entry_point(run, "train", DESCRIPTION, add_flags, argv)


if __name__ == "__main__":
    sys.exit(main())
