"""The subject of a benchmark: a trained or untrained run, its data, and the device."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from worldmodel.data.store import EpisodeStore, Split
from worldmodel.data.windows import Windows
from worldmodel.errors import ConfigError
from worldmodel.runs import folder as run_folder
from worldmodel.runs.folder import PRIOR, TOKENIZER
from worldmodel.runs.models import build_prior, build_tokenizer, resolve_device
from worldmodel.training.checkpoint import save_tensors
from worldmodel.types import Spec
from worldmodel.world import Precision, WorldModel

BESIDE_A_RUN = ("run", "runs", "data", "device")  # settings that do not change a trained run


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run with trained or untrained weights, and its data."""

    config: DictConfig  # of the run, with the device of the command line
    folder: Path  # of the run
    trained: bool
    spec: Spec
    store: EpisodeStore
    device: torch.device

    def worlds(self, precisions: Sequence[Precision]) -> dict[Precision, WorldModel]:
        """The world model in each precision."""
        return {precision: WorldModel.load(self.folder, str(self.device), precision) for precision in precisions}

    def seen(self, length: int, batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Frames (batch, length, C, *size) uint8 and actions (batch, length) of random held-out windows, or of all
        episodes if none is held out; repeated if there are too few."""
        split: Split = "held_out" if len(self.store.split("held_out")) else "all"
        windows = Windows(self.store, split, length).fixed(batch, seed=seed)
        assert windows.frames is not None
        rows = torch.arange(batch) % len(windows.frames)
        return windows.frames[rows], windows.actions[rows]

    def facts(self) -> dict[str, Any]:
        """Description of the model and its data, as plain JSON."""
        world = WorldModel.load(self.folder, "cpu", "fp32")
        sizes = {part: sum(p.numel() for p in getattr(world, part).parameters()) for part in ("tokenizer", "prior")}
        settings = OmegaConf.masked_copy(self.config, ["tokenizer", "prior", "training"])
        return {
            "run": self.folder.name if self.trained else None,
            "frame": list(self.spec.frame_shape),
            "grid": list(world.prior.grid),
            "codes": world.prior.num_codes,
            "parameters": sizes,
            "data": {"path": str(self.store.path), "frames": self.store.frames},
            "settings": OmegaConf.to_container(settings, resolve=True),
        }


def open_subject(config: DictConfig, overrides: Sequence[str], scratch: Path) -> Subject:
    """The run that ``run=…`` names, or a new one in ``scratch`` with untrained weights.

    Raises :class:`ConfigError` for a setting that cannot change a run, :class:`RunError` for an unknown run,
    :class:`DataError` for data that are missing or do not fit.
    """
    device = resolve_device(str(config.device))
    if config.run is None:
        in_scratch = DictConfig({**config, "runs": str(scratch), "run": "untrained"})
        folder = save_untrained(in_scratch, EpisodeStore.open(config.data).spec)
    else:
        for override in overrides:
            if override.split("=")[0] not in BESIDE_A_RUN:
                raise ConfigError(f"{override} cannot change a trained run; leave it out, or leave out run=… to "
                                  "measure an untrained model")  # fmt: skip
        folder = run_folder.find_run(config.runs, config.run, holding=PRIOR)
    spec = run_folder.load_spec(folder)
    store = run_folder.open_episodes(folder, spec, run_folder.given_data(overrides, config))
    settings = OmegaConf.merge(run_folder.load_config(folder), {"device": str(device)})
    assert isinstance(settings, DictConfig)
    return Subject(settings, folder, config.run is not None, spec, store, device)


def save_untrained(config: DictConfig, spec: Spec) -> Path:
    """Make the run that ``config`` names, with untrained weights."""
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer(config, spec)
    prior = build_prior(config, spec, tokenizer)
    folder = run_folder.new_run(config, spec)
    save_tensors(folder / TOKENIZER, tokenizer.state_dict())
    save_tensors(folder / PRIOR, prior.state_dict())
    return folder
