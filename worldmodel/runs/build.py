"""Models built from the settings of a run, untrained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from worldmodel.config.checks import check, find
from worldmodel.config.cli import one_line
from worldmodel.errors import ConfigError, WorldModelError
from worldmodel.priors import LatentPrior
from worldmodel.tokenizers import Autoencoder, require_codes
from worldmodel.tokenizers.scene import GridVQVAE
from worldmodel.training.augment import Augmentation
from worldmodel.types import Spec


def build_tokenizer(config: DictConfig, spec: Spec) -> Autoencoder:
    """The tokenizer of the settings for the frames of a source, untrained; it may be an autoencoder without codes.

    Raises :class:`ConfigError`.
    """
    condition = {"num_actions": len(spec.action_names)} if config.tokenizer.get("condition_width") else {}
    return build_module(config.tokenizer, "tokenizer", Autoencoder, frame_shape=spec.frame_shape, **condition)


def build_augmentation(config: DictConfig) -> Augmentation | None:
    """What the tokenizer of the settings is shown instead of the examples; None for the examples themselves."""
    node = config.training.tokenizer.get("augment")
    return None if node is None else build_module(node, "augmentation", Augmentation)


def build_second(config: DictConfig, tokenizer: Autoencoder) -> GridVQVAE | None:
    """The second stage of the settings over the codes of a tokenizer, untrained; None where there is to be none."""
    if config.get("second") is None:
        return None
    return build_module(config.second, "second", GridVQVAE, tokenizer=require_codes(tokenizer))


def build_prior(config: DictConfig, spec: Spec, tokenizer: Autoencoder) -> LatentPrior:
    """The prior of the settings over the latents of a tokenizer and the actions of a source, untrained.

    Raises :class:`ConfigError`, also for a prior that is not over such latents.
    """
    facts = {"tokenizer": tokenizer, "action_names": spec.action_names}
    return build_module(config.prior, "prior", LatentPrior, **facts)


def build_module(node: DictConfig, name: str, kind: Any, **facts: Any) -> Any:
    """The module of type ``kind`` that a node of the settings describes, called ``name`` where it fails.

    Raises :class:`ConfigError`.
    """
    try:
        for target in _targets(node):
            # A run may come from elsewhere: its YAML may name modules to build, not functions to call.
            if not (isinstance(found := find(target, f"{name}._target_"), type) and issubclass(found, nn.Module)):
                raise ConfigError(f"{name}: {target} is not a module of PyTorch; _target_ may name nothing else here")
        model = instantiate(check(OmegaConf.to_container(node, resolve=True), name), **facts)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, ImportError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, WorldModelError):
            raise cause from error
        raise ConfigError(f"cannot build the {name}: {one_line(cause)}") from error
    if not isinstance(model, kind):
        kinds = " or ".join(each.__name__ for each in get_args(kind) or (kind,))
        raise ConfigError(f"{name}._target_ is {node.get('_target_')}, which is no {kinds}")
    return model


def _targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` below a node."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield str(node["_target_"])
        for key in node:
            yield from _targets(node[key])
    elif isinstance(node, ListConfig):
        for item in node:
            yield from _targets(item)
