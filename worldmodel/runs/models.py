"""The models of a run: built from its settings, loaded and saved."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from worldmodel.config.checks import check, find
from worldmodel.config.cli import one_line
from worldmodel.data.codes import fingerprint
from worldmodel.errors import ConfigError, RunError, WorldModelError
from worldmodel.priors import LatentPrior
from worldmodel.runs.folder import (
    PRIOR,
    SECOND,
    TOKENIZER,
    checkpoint_of,
    later_files,
    load_config,
    load_spec,
    train_command,
)
from worldmodel.tokenizers import Autoencoder, Tokenizer, require_codes
from worldmodel.tokenizers.scene import GridVQVAE, Stacked
from worldmodel.training.base import Augmentation
from worldmodel.training.checkpoint import check_fit, load_tensors
from worldmodel.types import Spec


def build_tokenizer(config: DictConfig, spec: Spec) -> Autoencoder:
    """The untrained tokenizer of the settings, which may be an autoencoder without codes.

    Raises :class:`ConfigError`.
    """
    condition = {"num_actions": len(spec.action_names)} if config.tokenizer.get("condition_width") else {}
    return build_module(config.tokenizer, "tokenizer", Autoencoder, frame_shape=spec.frame_shape, **condition)


def build_augmentation(config: DictConfig, stage: str) -> Augmentation | None:
    """The data augmentation of a training stage, if any."""
    node = config.training[stage].get("augment")
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


def resolve_device(name: str) -> torch.device:
    """``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` or ``cuda:1`` → device. Raises :class:`ConfigError`."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    choices = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if name not in choices:
        raise ConfigError(f"device {name!r} is not available here; choose {', '.join(choices)}")
    if name == "auto":
        name = "cuda" if count else "cpu"
    return torch.device("cuda:0" if name == "cuda" else name)


def load_weights(
    module: nn.Module, path: Path, remedy: str, if_damaged: str | None = None, tokenizer: Autoencoder | None = None
) -> None:
    """Load a state dict into a module, in place.

    Raises :class:`RunError` when the file does not fit, or when it was trained on the codes of another tokenizer than
    ``tokenizer``, if given.
    """
    tensors, facts = load_tensors(path, remedy, if_damaged)
    # Older files lack the fact.
    if tokenizer is not None and facts.get("tokenizer") not in (None, fingerprint(tokenizer)):
        folder = path.parent
        reason = f"{path} was trained on the codes of another tokenizer than {folder / TOKENIZER} is now"
        again = f"remove it and {checkpoint_of(folder, path.name)} and train it again: {train_command(folder)}"
        raise RunError(f"{reason}; {again}")
    check_fit(path, tensors, module.state_dict(), remedy)
    module.load_state_dict(tensors)


def load_tokenizer(folder: str | Path, device: torch.device | str = "cpu") -> Tokenizer:
    """The trained tokenizer of a run, in evaluation mode. Raises :class:`ConfigError` for one without codes."""
    return require_codes(load_autoencoder(folder, device))


def load_autoencoder(folder: str | Path, device: torch.device | str = "cpu") -> Autoencoder:
    """The trained tokenizer of a run, with or without codes and including a second one, in evaluation mode."""
    model: Autoencoder = load_first(folder)
    second = build_second(load_config(folder), model)
    if second is not None:
        first = require_codes(model)
        load_weights(second, *_file(folder, SECOND), first)
        model = Stacked(first, second)
    return model.to(device).eval().requires_grad_(False)


def load_first(folder: str | Path) -> Autoencoder:
    """The trained first tokenizer of a run, in evaluation mode."""
    tokenizer = build_tokenizer(load_config(folder), load_spec(folder))
    load_weights(tokenizer, *_file(folder, TOKENIZER))
    return tokenizer.eval().requires_grad_(False)


def load_prior(folder: str | Path, tokenizer: Autoencoder, device: torch.device | str = "cpu") -> LatentPrior:
    """The trained prior of a run, in evaluation mode. Raises :class:`RunError` if trained on other codes."""
    prior = build_prior(load_config(folder), load_spec(folder), tokenizer)
    load_weights(prior, *_file(folder, PRIOR), tokenizer)
    return prior.to(device).eval().requires_grad_(False)


def check_trained(folder: Path, name: str) -> bool:
    """Whether a run has a file of weights. Raises :class:`RunError`, naming the remedy, when it is damaged."""
    return facts_of(folder, name) is not None


def facts_of(folder: Path, name: str) -> dict[str, Any] | None:
    """What a file of weights states beside them, None without the file. Raises :class:`RunError` when it is damaged."""
    return load_tensors(*_file(folder, name))[1] if (folder / name).is_file() else None


def _file(folder: str | Path, name: str) -> tuple[Path, str, str]:
    """A file of weights, and the advice when it is missing or damaged."""
    folder = Path(folder)
    command = train_command(folder)
    if checkpoint_of(folder, name).is_file():
        advice = f"continue training: {command}", f"remove it and continue from the last checkpoint: {command}"
    else:
        files = " and ".join(map(str, ["it", *later_files(folder, name)]))
        advice = f"train it: {command}", f"there is no checkpoint of it; remove {files} and train again: {command}"
    return folder / name, *advice
