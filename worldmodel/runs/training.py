"""Training of the stages of a run. Each stage is one call of ``fit`` with its hooks."""

import atexit
import contextlib
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from omegaconf import DictConfig
from torch import distributed, nn

from worldmodel.config.cli import one_line
from worldmodel.data.codes import fingerprint
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, RunError
from worldmodel.media import plots
from worldmodel.priors import Prior
from worldmodel.runs.folder import CONFIG, METRICS, checkpoint_of
from worldmodel.runs.kind import Kind, kind_of
from worldmodel.runs.models import load_weights, resolve_device
from worldmodel.runs.resume import run_to_train, run_with_weights, state_budget, to_be_trained
from worldmodel.runs.stages import PriorStage, Splits, Stage, StageSettings, prerequisites, stage_settings, stages_of
from worldmodel.tokenizers import Autoencoder, Tokenizer
from worldmodel.training import hooks as watch
from worldmodel.training.base import Objective, make_batches
from worldmodel.training.checkpoint import save_tensors
from worldmodel.training.fit import FitResult, Hook, fit, weighted_sum
from worldmodel.types import Segment, Spec


def train(
    config: DictConfig,
    stage: str = "all",
    tokenizer_of: str | None = None,
    weights_of: str | None = None,
    more: bool = True,
) -> Path:
    """Train the stages that are not finished and return the folder of the run.

    ``tokenizer_of``: a run whose trained tokenizer is copied, so that priors can be compared on the same codes.
    ``weights_of``: a run with the same settings whose weights are the initial ones. ``more``: whether a larger budget
    than that of a finished stage continues its training.

    Raises :class:`DataError` without data, :class:`BusyError` when another process trains the run, :class:`ConfigError`
    for settings that do not fit, :class:`RunError` for a damaged or diverged run, and KeyboardInterrupt after saving on
    an interruption.
    """
    stages = stages_of(config, stage)
    store = open_store(config)
    fabric = make_fabric(config)
    rehearse(config, store.spec, stages, store)
    first = None
    if weights_of is not None:
        purpose = "training cannot start from the weights of"
        first = run_with_weights(config, store.spec, stages, weights_of, purpose)
    fabric.launch()
    with contextlib.ExitStack() as stack:
        chosen = ""
        if fabric.is_global_zero:
            chosen = str(stack.enter_context(run_to_train(config, store.spec, stages, tokenizer_of)))
        folder = Path(fabric.broadcast(chosen))
        if not (folder / CONFIG).is_file():
            raise RunError(f"the run {folder} of the first process is not there; all nodes must share the folder of "
                           "the runs, under the same path")  # fmt: skip
        unfinished = [each for each in stages if to_be_trained(config, folder, each, more)]
        fabric.print(f"run {folder.name}", flush=True)
        for each in stages:
            if each in unfinished:
                train_stage(fabric, config, each, store, folder, None if first is None else first / each.file)
            else:
                fabric.print(f"the {each.title} is trained already; to start another run: run=another-name", flush=True)
        fabric.print(f"weights, metrics and curves are in {folder}", flush=True)
    return folder


def open_store(config: DictConfig) -> EpisodeStore:
    """The recorded episodes, without the damaged ones. Raises :class:`DataError` when there are none to train on."""
    if int(os.environ.get("RANK", 0)):
        logging.getLogger("worldmodel.data").setLevel(logging.ERROR)  # only the first process reports damaged episodes
    store = EpisodeStore.open(config.data)
    store.verify()  # batches are not checked
    store.require("train")
    return store


def make_fabric(config: DictConfig) -> Fabric:
    """Fabric for ``device``, or for the processes of torchrun, one GPU each."""
    device = resolve_device(str(config.device))
    here, everywhere = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    several = everywhere > 1
    check_restarts()
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise ConfigError(f"torchrun started {here} processes, but this machine has {torch.cuda.device_count()} GPUs; "
                          f"start one for each: --nproc-per-node {torch.cuda.device_count()}")  # fmt: skip
    devices: Any = [device.index] if device.type == "cuda" and not several else here
    strategy = "ddp" if several else "auto"
    if several:
        connect_after_restart("nccl" if device.type == "cuda" else "gloo")
    return Fabric(accelerator=device.type, devices=devices, num_nodes=everywhere // here, strategy=strategy)


def connect_after_restart(backend: str) -> None:
    """Connect the processes of one node after a restart by torchrun; does nothing at the first start.

    Processes exchange their addresses through a store of torchrun, which is not cleared at a restart: torch 2.13 reads
    the addresses of the ended processes if the process that writes the new ones is late. Here, the names in the store
    contain the number of the restart. Over several nodes, whose numbers of restarts may differ, see
    :func:`check_restarts`.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    one_node = os.environ.get("GROUP_WORLD_SIZE") == "1"
    if not attempt or not one_node or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, processes = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    store = distributed.PrefixStore(f"restart-{attempt}", distributed.TCPStore(address, port, processes, False))
    distributed.init_process_group(backend, store=store, rank=rank, world_size=processes)
    if backend == "nccl":
        atexit.register(distributed.destroy_process_group)


def check_restarts() -> None:
    """Raises :class:`ConfigError` if torchrun cannot restart the processes of several nodes.

    By default, the processes find each other through a store of torchrun that outlives them. After a restart over
    several nodes, processes were seen to connect to addresses of their predecessors (torch 2.13).
    """
    nodes, restarts = (int(os.environ.get(name, 0)) for name in ("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS"))
    if nodes > 1 and restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ConfigError("torchrun cannot restart the processes of several nodes through a store that it "
                          "shares with them; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 or --max-restarts 0")  # fmt: skip


def rehearse(
    config: DictConfig, spec: Spec, stages: Sequence[Stage], store: EpisodeStore | None = None
) -> tuple[Autoencoder | None, dict[str, nn.Module]]:
    """Build the models and compute the losses of each for one window, to report errors in the settings of all stages
    before training. Returns the untrained tokenizer and the models by stage.

    ``store``: of the episodes; of sound, whose windows may be too long for them. Raises :class:`ConfigError` and
    :class:`DataError`.
    """
    tokenizer: Autoencoder | None = None
    models = {}
    for stage in (*prerequisites(config, stages), *stages):
        models[stage.name] = model = rehearse_stage(config, spec, stage, tokenizer)
        if store is not None and len(spec.frame_shape) == 2:
            stage.windows(stage_settings(config, stage), store, model)["train"].require()
        tokenizer = stage.extended(tokenizer, model)
    return tokenizer, models


def rehearse_world(config: DictConfig, spec: Spec) -> tuple[Tokenizer, Prior]:
    """The same for a run that is to dream; returns its untrained models."""
    tokenizer, models = rehearse(config, spec, stages_of(config))
    prior = models[PriorStage.name]
    if not (isinstance(tokenizer, Tokenizer) and isinstance(prior, Prior)) or kind_of(config, spec) is not Kind.WORLD:
        raise ConfigError("dreams need a tokenizer of codes and a prior that reads earlier frames; choose another "
                          "prior, such as prior=conv")  # fmt: skip
    return tokenizer, prior


def rehearse_stage(config: DictConfig, spec: Spec, stage: Stage, tokenizer: Autoencoder | None) -> nn.Module:
    """The same for one stage; returns its model."""
    stage_settings(config, stage)  # checked before a model is built
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = stage.build(config, spec, tokenizer)
        objective = stage.objective(config, model, tokenizer).eval()
        try:
            losses = objective(blank_window(stage.lead(model) + 1, spec, tokenizer), torch.Generator())
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"the {stage.title} does not work with these settings: {one_line(error)}") from error
        weighted_sum(losses.terms, objective.loss_weights)
    return model


def blank_window(length: int, spec: Spec, tokenizer: Autoencoder | None) -> Segment:
    """One window of black frames, or of grids of code 0 for a tokenizer with codes."""
    steps = (1, length)
    nothing = torch.zeros(steps, dtype=torch.bool)
    grid = tokenizer.grid if isinstance(tokenizer, Tokenizer) else None
    frames = torch.zeros((*steps, *spec.frame_shape), dtype=torch.uint8) if grid is None else None
    codes = None if grid is None else torch.zeros((*steps, *grid), dtype=torch.int64)
    actions, rewards = torch.zeros(steps, dtype=torch.int64), torch.zeros(steps)
    return Segment(actions, rewards, nothing, nothing, ~nothing, frames, codes)


def train_stage(
    fabric: Fabric, config: DictConfig, stage: Stage, store: EpisodeStore, folder: Path, first: Path | None = None
) -> None:
    """Train one stage and write the averaged weights of its model to the folder of the run.

    ``first``: a file with initial weights.
    """
    settings = stage_settings(config, stage)
    tokenizer = stage.load(folder)
    source = stage.source(fabric, store, folder, tokenizer)
    torch.manual_seed(config.seed)
    model = stage.build(config, store.spec, tokenizer)
    windows = stage.windows(settings, source, model)
    train = windows["train"]
    train.require()
    if first is not None:
        load_weights(model, first, "initial weights must be of a run with the same settings")
    elif not checkpoint_of(folder, stage.file).exists() and (prepared := stage.prepare(model, train, config.seed)):
        fabric.print(prepared, flush=True)
    epoch = math.ceil(len(train) / (settings.batch * (train.length - train.lead) * fabric.world_size))
    objective = stage.objective(config, model, tokenizer, epoch)
    result = fit_stage(fabric, settings, stage, objective, windows, folder)
    if fabric.is_global_zero:
        prefix = f"{stage.name}."
        weights = {k.removeprefix(prefix): v for k, v in result.weights.items() if k.startswith(prefix)}
        facts: dict[str, Any] = {"stage": stage.name, "steps": result.steps, "seconds": round(result.seconds, 1)}
        if result.kept_step is not None:
            facts["kept_step"] = result.kept_step
        if tokenizer is not None:
            facts["tokenizer"] = fingerprint(stage.load(folder))  # the tokenizer of its codes
        facts["budget"] = [settings.steps, settings.max_seconds]
        state_budget(config, folder, stage)
        save_tensors(folder / stage.file, weights, facts)
        if records := watch.read_json_lines(folder / METRICS):
            plots.save_panels(folder / "metrics.png", plots.metrics_panels(records), title=folder.name)
    fabric.barrier()


def fit_stage(
    fabric: Fabric, settings: StageSettings, stage: Stage, objective: Objective, windows: Splits, folder: Path
) -> FitResult:
    """Fit a stage with a progress bar, metrics, evaluations on held-out windows and checkpoints."""
    checkpoint = checkpoint_of(folder, stage.file)
    early = None
    batches = make_batches(windows["train"].sample, settings.batch, settings.seed, fabric.global_rank)
    lines, board = watch.JsonLines(folder / METRICS), watch.TensorBoard(folder / "tensorboard")
    chain: list[Hook] = [watch.ProgressBar(), lines, board]
    if windows["held_out"].drawable:
        held_out = make_batches(windows["held_out"].sample, settings.batch, settings.seed, 0)
        evaluate = watch.Measure(held_out, settings.evaluate_batches, fabric.device)
        if settings.patience is not None:
            best = checkpoint_of(folder, f"best-{stage.file}")
            early = watch.EarlyStopping(best, settings.patience * settings.evaluate_every)
            chain.append(early)
        chain.append(watch.Evaluation(settings.evaluate_every, evaluate, tuple(chain[1:])))
    chain.append(watch.Checkpoint(checkpoint, settings.checkpoint_seconds))
    result = fit(fabric, objective, batches, settings, checkpoint, chain, stage.name)
    return result if early is None else early.kept(result)
