"""Every tokenizer with every prior of configs/: either they fit together, or one line names a prior that fits."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from tiny import SPEC, tiny_autoencoder

from worldmodel.config.cli import choices, compose_config
from worldmodel.errors import ConfigError
from worldmodel.runs.models import build_tokenizer
from worldmodel.runs.stages import STAGES
from worldmodel.runs.training import rehearse_stage
from worldmodel.tokenizers import Autoencoder
from worldmodel.types import Spec

SOUND = Spec("sound", (1, 640), ("a", "b", "c"), 25.0)
ONE_GRID = {"captions", "codec", "conv", "conv_memory", "pixelcnn", "scene", "speech", "transformer"}
PICTURES = ONE_GRID | {"conv_pose"}  # grids of rows and columns
SLOTS, LEVELS = {"codec", "pixelcnn", "scene"}, {"hierarchy", "jukebox"}
FITTING = {
    "vqvae": PICTURES, "fsq": PICTURES, "gumbel": PICTURES, "vqvae_8x8x10": SLOTS, "vimco": SLOTS, "vqvae2": LEVELS,
    "vae": {"gaussian"}, "speech_spectra": ONE_GRID, "codec": SLOTS, "jukebox": LEVELS,
}  # fmt: skip
"""A tokenizer of each form of latents, and the priors that fit."""
SMALL = {
    "gaussian": ["prior.width=8", "prior.layers=1"],
    "hierarchy": ["prior.head.inner.layers=1", "prior.head.inner.width=8"],
    "pixelcnn": ["prior.head.layers=1", "prior.head.width=8"],
}


@functools.cache
def tokenizer_of(name: str) -> tuple[Spec, Autoencoder]:
    if name in ("speech_spectra", "codec", "jukebox"):
        torch.manual_seed(0)
        return SOUND, build_tokenizer(compose_config([f"tokenizer={name}"]), SOUND).eval()
    return SPEC, tiny_autoencoder(name)


@pytest.mark.parametrize("prior", choices()["prior"])
@pytest.mark.parametrize("name", FITTING)
def test_a_tokenizer_and_a_prior_fit_or_the_error_names_one_that_does(name: str, prior: str) -> None:
    spec, tokenizer = tokenizer_of(name)
    config = compose_config([f"tokenizer={name}", f"prior={prior}", *SMALL.get(prior, [])])
    if prior in FITTING[name]:
        rehearse_stage(config, spec, STAGES["prior"], tokenizer)
        return
    with pytest.raises(ConfigError, match=r"choose .*prior=") as caught:
        rehearse_stage(config, spec, STAGES["prior"], tokenizer)
    assert "cannot build" not in str(caught.value) and "\n" not in str(caught.value)
    advised = set(re.findall(r"prior=(\w+)", str(caught.value)))
    assert advised & FITTING[name], "one of the advised priors fits"
