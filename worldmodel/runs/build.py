"""Construction of untrained models from the settings of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from worldmodel.config.checks import check, find
from worldmodel.config.cli import one_line
from worldmodel.errors import ConfigError, WorldModelError
from worldmodel.priors import LatentPrior
from worldmodel.tokenizers import Autoencoder, require_codes
from worldmodel.tokenizers.scene import GridVQVAE
from worldmodel.training.base import Augmentation
from worldmodel.types import Spec


def build_tokenizer(config: DictConfig, spec: Spec) -> Autoencoder:
    """The untrained tokenizer of the settings, which may be an autoencoder without codes.

    Raises :class:`ConfigError`.
    """
    condition = {"num_actions": len(spec.action_names)} if config.tokenizer.get("condition_width") else {}
    return build_module(config.tokenizer, "tokenizer", Autoencoder, frame_shape=spec.frame_shape, **condition)


def build_augmentation(config: DictConfig) -> Augmentation | None:
    """The data augmentation of the tokenizer, if any."""
    node = config.training.tokenizer.get("augment")
    return None if node is None else build_module(node, "augmentation", Augmentation)


def build_second(config: DictConfig, tokenizer: Autoencoder) -> GridVQVAE | None:
    """The untrained second tokenizer of the settings, if any, over the codes of the first one."""
    if config.get("second") is None:
        return None
    return build_module(config.second, "second", GridVQVAE, tokenizer=require_codes(tokenizer))


def build_prior(config: DictConfig, spec: Spec, tokenizer: Autoencoder) -> LatentPrior:
    """The untrained prior of the settings over the latents of a tokenizer.

    Raises :class:`ConfigError`, also for a prior that does not support such latents.
    """
    facts = {"tokenizer": tokenizer, "action_names": spec.action_names}
    return build_module(config.prior, "prior", LatentPrior, **facts)


def build_module(node: DictConfig, name: str, kind: Any, **facts: Any) -> Any:
    """Build the module of type ``kind`` that a node of the settings describes.

    Raises :class:`ConfigError`, which calls the module ``name``.
    """
    try:
        settings = OmegaConf.to_container(node, resolve=True)
        for place, target in _targets(settings, name):
            # For safety, the YAML of a foreign run may name modules, but not functions.
            if not (isinstance(found := find(target, place), type) and issubclass(found, nn.Module)):
                raise ConfigError(f"{place}: {target} is not a module of PyTorch; _target_ may name nothing else here")
        model = instantiate(check(settings, name), **facts)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, ImportError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, WorldModelError):
            raise cause from error
        raise ConfigError(f"cannot build the {name}: {one_line(cause)}") from error
    if not isinstance(model, kind):
        kinds = " or ".join(each.__name__ for each in get_args(kind) or (kind,))
        raise ConfigError(f"{name}._target_ is {node.get('_target_')}, which is no {kinds}")
    return model


def _targets(settings: Any, name: str) -> Iterator[tuple[str, str]]:
    """The dotted name and the value of every ``_target_`` in plain settings."""
    if isinstance(settings, dict):
        if "_target_" in settings:
            yield f"{name}._target_", str(settings["_target_"])
        for key, value in settings.items():
            yield from _targets(value, f"{name}.{key}")
    elif isinstance(settings, list):
        for index, item in enumerate(settings):
            yield from _targets(item, f"{name}[{index}]")
