"""Loading and saving of the trained models of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.data.codes import fingerprint
from worldmodel.errors import ConfigError, RunError
from worldmodel.priors import LatentPrior
from worldmodel.runs.build import build_prior, build_second, build_tokenizer
from worldmodel.runs.folder import (
    PRIOR,
    SECOND,
    TOKENIZER,
    TRAIN_FIRST,
    checkpoint_of,
    later_files,
    load_config,
    load_spec,
    train_command,
)
from worldmodel.tokenizers import Autoencoder, Tokenizer, require_codes
from worldmodel.tokenizers.scene import Stacked
from worldmodel.training.checkpoint import check_fit, load_tensors, save_tensors


def resolve_device(name: str) -> torch.device:
    """``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` or ``cuda:1`` → device. Raises :class:`ConfigError`."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    choices = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if name not in choices:
        raise ConfigError(f"device {name!r} is not available here; choose {', '.join(choices)}")
    if name == "auto":
        name = "cuda" if count else "cpu"
    return torch.device("cuda:0" if name == "cuda" else name)


def save_weights(path: Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
    """Write a state dict with JSON metadata of its training."""
    save_tensors(path, weights, meta)


def load_weights(
    module: nn.Module,
    path: Path,
    remedy: str = TRAIN_FIRST,
    if_damaged: str | None = None,
    tokenizer: Autoencoder | None = None,
) -> None:
    """Load a state dict into a module, in place.

    Raises :class:`RunError` when the file does not fit, or when it was trained on the codes of another tokenizer than
    ``tokenizer``, if given.
    """
    tensors, facts = load_tensors(path, remedy, if_damaged)
    # Older files lack the fact.
    if tokenizer is not None and facts.get("tokenizer") not in (None, fingerprint(tokenizer)):
        folder = path.parent
        raise RunError(
            f"{path} was trained on the codes of another tokenizer than {folder / TOKENIZER} is now; "
            f"remove it and {checkpoint_of(folder, path.name)} and train it again: {train_command(folder)}"
        )
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
    if not (folder / name).is_file():
        return False
    load_tensors(*_file(folder, name))
    return True


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
