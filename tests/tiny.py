"""Tiny models for tests, built from the very YAML files that users get."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from worldmodel import configs
from worldmodel.config.cli import compose_config
from worldmodel.priors import Prior
from worldmodel.priors.motion import Motion
from worldmodel.runs.models import build_prior, build_tokenizer
from worldmodel.tokenizers import Autoencoder, Tokenizer, require_codes
from worldmodel.types import Segment, Spec

SPEC = Spec("tiny", (3, 16, 16), ("noop", "forward", "left"), 10.0)
OTHER_LATENTS = {
    "gaussian",
    "hierarchy",
    "jukebox",
    "scene",
}  # priors of tokenizers of their own, with tests of their own
PRIORS = sorted({path.stem for path in (Path(configs.__file__).parent / "prior").glob("*.yaml")} - OTHER_LATENTS)
SOUND = {
    "codec",
    "jukebox",
    "phonemes",
    "speech",
    "speech_conv",
    "speech_mel",
    "speech_spectra",
}  # tokenizers of signals, in tests/test_speech.py
AUTOENCODERS = sorted({path.stem for path in (Path(configs.__file__).parent / "tokenizer").glob("*.yaml")} - SOUND)
SMALL_TOKENIZER = ("tokenizer.widths=[8,8]", "tokenizer.blocks=1")
# What else is made small; 16 codes where nothing is said.
SMALLER = {
    "vqvae2": ("tokenizer.num_codes=16", "tokenizer.widths=[[8,8],[8]]"),
    "fsq": ("tokenizer.quantizer.levels=[4,4]",),
    "vae": ("tokenizer.latents=3",),
    "vimco": ("tokenizer.num_codes=16", "tokenizer.slots=3", "tokenizer.width=4", "tokenizer.samples=4"),
    "vqvae_8x8x10": ("tokenizer.num_codes=16", "tokenizer.quantizer.slots=3", "tokenizer.quantizer.quantizer.width=4"),
}
# What a fit is given where a test does not care.
FIT = {
    "max_seconds": None,
    "learning_rate": 1e-3,
    "warmup_steps": 100,
    "decay": "cosine",
    "weight_decay": 0.0,
    "clip": 1.0,
    "muon": 0.0,
    "ema": 0.999,
    "precision": "fp32",
    "log_every": 50,
}
SHORT = {"conv_pose": ("prior.context=4", "prior.trunk.pose.window=4", "prior.trunk.pose.recent=1")}
SMALL_PRIOR = ("prior.trunk.width=16", "prior.head.width=16")


Model = TypeVar("Model", bound=torch.nn.Module)


def built_once(build: Callable[..., Model]) -> Callable[..., Model]:
    """Builds a model once and returns copies of it. The state of the random numbers afterwards is that of a build."""
    models: dict[str, tuple[Model, Tensor]] = {}

    @functools.wraps(build)
    def copied(*args: object, **options: object) -> Model:
        key = repr((args, options))
        if key not in models:
            models[key] = build(*args, **options), torch.get_rng_state()
        model, random_state = models[key]
        torch.set_rng_state(random_state)
        return copy.deepcopy(model)

    return copied


@built_once
def tiny_autoencoder(name: str, spec: Spec = SPEC) -> Autoencoder:
    """16×16 frames → 4×4 places."""
    overrides = [f"tokenizer={name}", *SMALL_TOKENIZER, *SMALLER.get(name, ("tokenizer.num_codes=16",))]
    torch.manual_seed(0)
    return build_tokenizer(compose_config(overrides), spec).eval()


def tiny_tokenizer(name: str = "vqvae", spec: Spec = SPEC) -> Tokenizer:
    """16×16 frames → 4×4 codes, or 4×4×3."""
    return require_codes(tiny_autoencoder(name, spec))


@built_once
def tiny_prior(name: str = "conv", spec: Spec = SPEC, spread: float = 3.0) -> Prior:
    """An untrained prior over 4×4 codes of 16; its weights are blown up so that its distributions are far from flat."""
    torch.manual_seed(0)
    depth = "prior.head.layers=3" if name == "pixelcnn" else "prior.trunk.blocks=1"
    small = [depth, "tokenizer.num_codes=16", *SHORT.get(name, ())]
    config = compose_config([f"prior={name}", *SMALL_TOKENIZER, *SMALL_PRIOR, *small])
    prior = build_prior(config, spec, tiny_tokenizer(spec=spec)).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 * spread)
    if name == "conv_pose":  # a motion that recalls columns of many frames
        turn, move = torch.tensor([0.0, 0.1, 1.3]), torch.tensor([[0.0, 0.0], [0.5, 0.2], [0.0, 0.0]])
        widths = torch.tensor([0.7, 5.0, 2.0])
        prior.trunk.pose.set_motion(Motion(turn, move, torch.tensor(13.0), widths, torch.tensor(1.0)))
    return prior


def random_segment(batch: int = 2, steps: int = 7, grid: tuple[int, ...] = (4, 4), codes: int = 16) -> Segment:
    """Random codes, actions, rewards and ends; the first action of each row is unknown."""
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(0, 3, (batch, steps), generator=generator)
    actions[:, 0] = -1
    flags = torch.zeros(batch, steps, dtype=torch.bool)
    return Segment(
        actions=actions,
        rewards=torch.randn(batch, steps, generator=generator),
        terminated=flags,
        truncated=flags,
        valid=~flags,
        codes=torch.randint(0, codes, (batch, steps, *grid), generator=generator),
    )


def frames(count: int, spec: Spec = SPEC) -> Tensor:
    """(count, C, H, W) uint8 noise."""
    return torch.randint(
        0, 256, (count, *spec.frame_shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
