"""What is measured: a run, trained or made up on the spot, the data that it is measured on, and the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import Windows
from worldmodel.errors import ConfigError, DataError
from worldmodel.rollout import Precision, WorldModel
from worldmodel.run import (
    PRIOR,
    TOKENIZER,
    build_prior,
    build_tokenizer,
    find_run,
    load_config,
    load_spec,
    new_run,
    resolve_device,
    save_weights,
)
from worldmodel.types import Episode, Spec

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")  # "auto" is always one of them
BESIDE_A_RUN = ("run", "runs", "data", "device")
"""Settings that do not change what a trained run is."""
NOISE_EPISODES, NOISE_STEPS = 40, 399  # 16,000 frames: reads of random windows seldom meet


@dataclasses.dataclass(frozen=True)
class Subject:
    """``notes`` say what about it is not what a user would have."""

    config: DictConfig
    folder: Path  # of the run
    trained: bool
    spec: Spec
    store: EpisodeStore
    device: torch.device
    notes: tuple[str, ...]

    def world(self, precision: Precision) -> WorldModel:
        """The world model, as anybody would load it."""
        return WorldModel.load(self.folder, str(self.device), precision)

    def windows(self, length: int) -> Windows:
        """Held-out windows; of all episodes where none is held out."""
        held_out = Windows(self.store, "held_out", length)
        return held_out if len(held_out) else Windows(self.store, "all", length)

    def facts(self) -> dict[str, Any]:
        """What identifies the model and its data, as plain JSON."""
        world = self.world("fp32")
        sizes = {part: sum(p.numel() for p in getattr(world, part).parameters()) for part in ("tokenizer", "prior")}
        return {
            "run": self.folder.name if self.trained else None,
            "trained": self.trained,
            "frame": list(self.spec.frame_shape),
            "grid": list(world.prior.grid),
            "codes": world.prior.codes,
            "parameters": sizes,
            "data": {"path": str(self.store.path), "frames": int((self.store.lengths + 1).sum())},
            "settings": OmegaConf.to_container(
                OmegaConf.masked_copy(self.config, ["tokenizer", "prior", "training"]), resolve=True
            ),
        }


def open_subject(config: DictConfig, overrides: Sequence[str], scratch: Path) -> Subject:
    """The run that ``run=…`` names, or one with the untrained weights of these settings, made in ``scratch``.

    Data that are not there are replaced by noise in ``scratch``. Raises :class:`ConfigError` for a setting that cannot
    change a run, :class:`RunError` for an unknown run, :class:`DataError` for data of another kind.
    """
    device, notes = resolve_device(str(config.device)), []
    if config.run is None:
        data = Path(config.data)
        spec = EpisodeStore.open(data).spec if data.is_dir() else _imagined_spec(config)
        folder = _untrained(config, spec, scratch / "runs")
        notes.append("untrained weights: passes and speeds of predictive sampling tell nothing of a trained model")
    else:
        _check_overrides(overrides)
        folder = find_run(config.runs, config.run, holding=PRIOR)
        spec = load_spec(folder)
        given = any(override.startswith("data=") for override in overrides)
        data = Path(config.data if given else load_config(folder).data)
    if data.is_dir():
        store = EpisodeStore.open(data)
        if store.spec.frame_shape != spec.frame_shape:
            raise DataError(f"{data} holds frames of another shape than {folder} knows; give another data=…")
    else:
        store = noise_store(scratch / "data", spec)
        notes.append(f"no data at {data}: episodes of noise instead, so predictive sampling starts from nonsense")
    return Subject(load_config(folder), folder, config.run is not None, spec, store, device, tuple(notes))


def noise_store(folder: Path, spec: Spec) -> EpisodeStore:
    """Episodes of noise. To a convolution and to a disk one frame is like another."""
    rng = np.random.default_rng(0)
    with EpisodeStore.writer(folder, spec) as store:
        for _ in range(NOISE_EPISODES):
            frames = rng.integers(0, 256, (NOISE_STEPS + 1, *spec.frame_shape), np.uint8)
            actions = rng.integers(0, len(spec.action_names), NOISE_STEPS)
            store.append(Episode(frames, actions, np.zeros(NOISE_STEPS, np.float32), False, True))
    return EpisodeStore.open(folder)


def _imagined_spec(config: DictConfig) -> Spec:
    """Of an environment that need not be installed: its size is a setting, and its actions hardly cost anything."""
    return Spec(str(config.env.id), (3, config.env.size, config.env.size), ("noop", "forward", "left", "right"), 10.0)


def _untrained(config: DictConfig, spec: Spec, runs: Path) -> Path:
    """A run as training would leave it, but for the training."""
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer(config, spec)
    prior = build_prior(config, spec, tokenizer)
    folder = new_run(DictConfig({**config, "runs": str(runs), "run": "untrained"}), spec)
    save_weights(folder / TOKENIZER, tokenizer.state_dict())
    save_weights(folder / PRIOR, prior.state_dict())
    return folder


def _check_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        if override.split("=")[0] not in BESIDE_A_RUN:
            raise ConfigError(
                f"{override} cannot change a run; beside run=… there may be "
                f"{', '.join(f'{name}=…' for name in BESIDE_A_RUN[1:])}; without it an untrained model is measured"
            )
