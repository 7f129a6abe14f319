"""Training stages: model, windows, objective and file of each."""

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import nn

from worldmodel.config.checks import read
from worldmodel.data.codes import CodeStore, encode_store
from worldmodel.data.store import EpisodeStore, Split
from worldmodel.data.windows import Windows
from worldmodel.errors import ConfigError
from worldmodel.priors import LatentPrior
from worldmodel.runs.folder import CODES, NEEDS, PRIOR, SECOND, TOKENIZER
from worldmodel.runs.models import (
    build_augmentation,
    build_prior,
    build_second,
    build_tokenizer,
    load_autoencoder,
    load_first,
)
from worldmodel.tokenizers import Autoencoder, Tokenizer, require_codes
from worldmodel.tokenizers.scene import GridVQVAE, Stacked
from worldmodel.training.base import Objective
from worldmodel.training.fit import FitSettings
from worldmodel.training.objectives import MARGIN, PriorObjective, SecondObjective, TokenizerObjective
from worldmodel.types import Spec
from worldmodel.util.progress import progress_bars
from worldmodel.util.ranges import Count, NonNegative, Share

FIRST_CODES = "first_codes"

Source = EpisodeStore | CodeStore
Splits = dict[Split, Windows]  # the windows of each


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings(FitSettings):
    """The settings of a stage, ``training.<stage>``."""

    batch: Count  # windows a step, on every device
    evaluate_every: Count  # steps between two measurements on held-out episodes
    evaluate_batches: Count  # of such a measurement
    checkpoint_seconds: NonNegative  # interval of checkpoints
    patience: Count | None = None  # evaluations without a lower held-out loss that end the stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerSettings(StageSettings):
    length: Count  # frames a window
    rewarded: Share = 0.0  # share of the windows that contain frames shortly before a rare reward
    augment: Mapping[str, Any] | None = None  # settings of an :class:`Augmentation`


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorSettings(StageSettings):
    targets: Count  # frames predicted in a window
    rewarded: Share = 0.0
    augment: Mapping[str, Any] | None = None  # settings of an :class:`Augmentation` of sound


class Stage(abc.ABC):
    """A training stage. Its settings are ``training.<name>``, and its objective holds the model as ``<name>``.

    The argument ``tokenizer`` of its methods is the tokenizer that it is trained on, which :meth:`load` returns.
    """

    name: str  # in settings, metrics and checkpoints
    title: str  # in messages
    file: str  # of its weights, in the folder of a run
    share: float = 3.0  # of the training time, relative to other stages
    settings: type[StageSettings] = StageSettings

    def chosen(self, config: DictConfig) -> bool:
        """Whether the settings have this stage."""
        return True

    def load(self, folder: Path) -> Any:
        """The trained tokenizer that the stage requires, on the CPU; None for the first stage."""
        return load_autoencoder(folder)

    def source(self, fabric: Fabric, store: EpisodeStore, folder: Path, tokenizer: Any) -> Source:
        """The source of windows: the codes of all episodes, which are computed once."""
        return encode(fabric, store, tokenizer, folder / CODES)

    @abc.abstractmethod
    def build(self, config: DictConfig, spec: Spec, tokenizer: Any) -> nn.Module:
        """The untrained model. Raises :class:`ConfigError`."""

    def lead(self, model: Any) -> int:
        """Number of leading frames of a window that are context only."""
        return 0

    @abc.abstractmethod
    def windows(self, settings: Any, source: Source, model: Any) -> Splits:
        """Training and held-out windows."""

    def prepare(self, model: Any, train: Windows, seed: int) -> str:
        """Estimate what is not trained, once before the first step; returns the result in words."""
        return ""

    @abc.abstractmethod
    def objective(self, config: DictConfig, model: Any, tokenizer: Any, epoch: int = 100) -> Objective:
        """The training objective. ``epoch``: number of steps per pass over the data."""

    def extended(self, tokenizer: Any, model: Any) -> Any:
        """The tokenizer for later stages."""
        return tokenizer


class TokenizerStage(Stage):
    """Frames → codes."""

    name, title, file = "tokenizer", "tokenizer", TOKENIZER
    settings = TokenizerSettings

    def load(self, folder: Path) -> None:
        return None

    def source(self, fabric: Fabric, store: EpisodeStore, folder: Path, tokenizer: None) -> Source:
        return store

    def build(self, config: DictConfig, spec: Spec, tokenizer: None) -> Autoencoder:
        return build_tokenizer(config, spec)

    def windows(self, settings: TokenizerSettings, source: Source, model: Autoencoder) -> Splits:
        if model.joined and settings.rewarded:
            raise ConfigError("training.tokenizer.rewarded is for frames; this tokenizer codes whole signals: choose 0")
        return {
            "train": Windows(source, "train", settings.length, whole=model.joined, rewarded=settings.rewarded),
            "held_out": Windows(source, "held_out", settings.length, whole=model.joined),
        }

    def objective(self, config: DictConfig, model: Autoencoder, tokenizer: None, epoch: int = 100) -> Objective:
        return TokenizerObjective(model, min(max(epoch, 10), 1000), build_augmentation(config, self.name))

    def extended(self, tokenizer: None, model: Autoencoder) -> Autoencoder:
        return model


class SecondStage(Stage):
    """Grids of codes → fewer codes."""

    name, title, file = "second", "second tokenizer", SECOND

    def chosen(self, config: DictConfig) -> bool:
        return config.get("second") is not None

    def load(self, folder: Path) -> Tokenizer:
        return require_codes(load_first(folder))

    def source(self, fabric: Fabric, store: EpisodeStore, folder: Path, tokenizer: Tokenizer) -> Source:
        return encode(fabric, store, tokenizer, folder / FIRST_CODES)

    def build(self, config: DictConfig, spec: Spec, tokenizer: Autoencoder) -> GridVQVAE:
        second = build_second(config, tokenizer)
        assert second is not None, "the settings have no second tokenizer"
        return second

    def windows(self, settings: StageSettings, source: Source, model: GridVQVAE) -> Splits:
        return {"train": Windows(source, "train"), "held_out": Windows(source, "held_out")}

    def objective(self, config: DictConfig, model: GridVQVAE, tokenizer: Tokenizer, epoch: int = 100) -> Objective:
        return SecondObjective(model)

    def extended(self, tokenizer: Autoencoder, model: GridVQVAE) -> Tokenizer:
        return Stacked(require_codes(tokenizer), model)


class PriorStage(Stage):
    """Past codes and a condition → the next codes. Latents of a VAE are random, so its prior is trained on frames."""

    name, title, file, share = "prior", "prior", PRIOR, 7.0
    settings = PriorSettings

    def source(self, fabric: Fabric, store: EpisodeStore, folder: Path, tokenizer: Autoencoder) -> Source:
        return super().source(fabric, store, folder, tokenizer) if isinstance(tokenizer, Tokenizer) else store

    def build(self, config: DictConfig, spec: Spec, tokenizer: Autoencoder) -> LatentPrior:
        return build_prior(config, spec, tokenizer)

    def lead(self, model: LatentPrior) -> int:
        return model.lead

    def windows(self, settings: PriorSettings, source: Source, model: LatentPrior) -> Splits:
        lead = self.lead(model)
        length = lead + settings.targets
        if settings.augment is None:
            train = Windows(source, "train", length, lead, rewarded=settings.rewarded)
        else:  # of frames, which are varied and encoded in every step
            train = Windows(getattr(source, "store", source), "train", length + MARGIN, lead, whole=True)
        return {"train": train, "held_out": Windows(source, "held_out", length, lead)}

    def prepare(self, model: LatentPrior, train: Windows, seed: int) -> str:
        if not isinstance(train.source, CodeStore):
            return ""
        return model.prepare(train.sample, torch.Generator().manual_seed(seed))

    def objective(self, config: DictConfig, model: LatentPrior, tokenizer: Autoencoder, epoch: int = 100) -> Objective:
        augment = build_augmentation(config, self.name)
        if augment is not None and not (isinstance(tokenizer, Tokenizer) and tokenizer.joined):
            raise ConfigError("training.prior.augment is for the codes of sound; choose null")
        return PriorObjective(model, tokenizer, augment)


STAGES: dict[str, Stage] = {stage.name: stage for stage in (TokenizerStage(), SecondStage(), PriorStage())}
"""The stages of a world model, in order. An agent's stage is its own: :mod:`worldmodel.agents.loop`."""


def stages_of(config: DictConfig, stage: str = "all") -> list[Stage]:
    """The stages to train, in order. Raises :class:`ConfigError` for a stage that the settings lack."""
    own = [each for each in STAGES.values() if each.chosen(config)]
    if stage == "all":
        return own
    if stage not in [each.name for each in own]:
        raise ConfigError(f"these settings have no stage {stage!r}; choose {', '.join(each.name for each in own)}")
    return [STAGES[stage]]


def share_seconds(config: DictConfig, stages: Sequence[Stage], seconds: float) -> None:
    """Divides a budget of training time among stages, as ``training.<stage>.max_seconds``."""
    for stage in stages:
        share = stage.share / sum(each.share for each in stages)
        config.training[stage.name].max_seconds = round(seconds * share, 3)


def stage_settings(config: DictConfig, stage: Stage | type[Stage]) -> Any:
    """The settings ``training.<stage>`` as an instance of the stage's class. Raises :class:`ConfigError`."""
    node = config.training.get(stage.name)
    plain = None if node is None else OmegaConf.to_container(node, resolve=True)
    return read(stage.settings, plain, f"training.{stage.name}", seed=config.seed)


def prerequisites(config: DictConfig, stages: Sequence[Stage]) -> list[Stage]:
    """The stages that ``stages`` require and do not include, in order."""
    needed = {file for stage in stages for file in NEEDS[stage.file]} - {stage.file for stage in stages}
    return [stage for stage in stages_of(config) if stage.file in needed]


def encode(fabric: Fabric, store: EpisodeStore, tokenizer: Tokenizer, folder: Path) -> CodeStore:
    """The codes of all episodes; the first process computes missing ones, then all processes open the cache."""
    if fabric.is_global_zero:
        with progress_bars() as progress:
            report = functools.partial(progress, "codes of all frames")
            encode_store(store, tokenizer, folder, fabric.device, progress=report)
    fabric.barrier()
    codes = encode_store(store, tokenizer, folder, fabric.device)
    tokenizer.cpu()
    return codes
