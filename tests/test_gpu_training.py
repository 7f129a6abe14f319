"""One update of every stage of every experiment on a make-believe GPU, and the host waits and kernels of an update."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from fake_cuda import Gpu
from lightning_fabric import Fabric
from tiny import AUTOENCODERS, SMALL_TOKENIZER, SPEC, frames, tiny_autoencoder
from torch import nn

from worldmodel.config.cli import choices, compose_config
from worldmodel.quantizers import GumbelQuantizer, VectorQuantizer
from worldmodel.runs.stages import Stage, stage_settings, stages_of
from worldmodel.runs.training import blank_window
from worldmodel.tokenizers import Autoencoder, Tokenizer
from worldmodel.training.fit import Fit
from worldmodel.training.objectives import MARGIN
from worldmodel.training.optim import BatchedMuon
from worldmodel.types import Segment, Spec

IMAGE = Spec("images", (3, 32, 32), tuple(f"class_{n}" for n in range(10)), 1.0)
LARGE = Spec("large", (3, 64, 64), ("a", "b"), 1.0)
LAB = Spec("lab", (3, 84, 84), ("noop", "forward", "left"), 15.0)
SOUND = Spec("sound", (1, 640), ("p1", "p2", "p3"), 25.0)
WAITS = {"cifar10-vimco tokenizer": 1, "codec tokenizer": 1}
"""Host waits of an update where there are any: for the numbers of decoded samples and of the vectors of a codebook."""
LAUNCHES = {"default prior": 500, "prior=conv prior": 405}
"""Largest numbers of kernels of an update."""
SMALL = {
    "imagenet128": ("tokenizer.widths=[8,8]", "prior.head.layers=2", "prior.head.width=16"),
    "vqvae2": ("prior.head.inner.layers=2", "prior.head.inner.width=16"),
    "jukebox": ("training.prior.targets=2", "prior.trunk.blocks=1", "tokenizer.blocks=1"),
    "codec": ("prior.trunk.blocks=1", "prior.head.layers=2"),
    "cifar10": ("prior.head.layers=2",),
    "world-gpu": ("prior.trunk.blocks=1", "tokenizer.blocks=1"),
    "cifar10-vimco": ("tokenizer.samples=3", "tokenizer.widths=[16,16]", "prior.head.layers=2"),
}


def spec_of(source: str) -> Spec:
    if source == "cifar10":
        return IMAGE
    if source in ("imagenet", "images"):
        return LARGE
    if source == "dmlab":
        return LAB
    return SOUND if source in ("vctk", "timit") else Spec("world", (3, 64, 64), ("noop", "forward", "left"), 10.0)


def fits(name: str) -> Iterator[tuple[Stage, Fit, Segment]]:
    """The stages of an experiment with their settings, at a batch of two."""
    chosen = {"default": [], "prior=conv": ["prior=conv"]}.get(name, [f"experiment={name}"])
    config = compose_config([*chosen, *SMALL.get(name, ())])
    spec = spec_of(str(config.source.name).split("/")[0])
    fabric = Fabric(accelerator="cuda", devices=[0])
    torch.manual_seed(0)
    tokenizer: Autoencoder | None = None
    for stage in stages_of(config):
        model, settings = stage.build(config, spec, tokenizer), stage_settings(config, stage)
        varied = stage.name == "prior" and settings.augment is not None
        length = getattr(settings, "targets", getattr(settings, "length", 1)) + stage.lead(model)
        one = blank_window(length + (MARGIN if varied else 0), spec, None if varied else tokenizer)
        parts = {name: value for name, value in vars(one).items() if value is not None}
        batch = Segment(**{name: value.expand(2, *value.shape[1:]).clone() for name, value in parts.items()})
        fit = Fit(fabric, stage.objective(config, model, tokenizer, 10), settings, stage.name)
        fit.objective.train()
        yield stage, fit, batch
        tokenizer = stage.extended(tokenizer, model.cpu())


@pytest.mark.parametrize("name", ["default", "prior=conv", *choices()["experiment"]])
def test_an_update_of_every_experiment(name: str) -> None:
    with Gpu() as gpu:
        for stage, fit, batch in fits(name):
            if name in ("default", "prior=conv", "cifar10-captions"):
                fit.update(batch)  # initialises the codebook, or measures its inputs
            for part in fit.objective.modules():
                if isinstance(part, VectorQuantizer | GumbelQuantizer):
                    part.known_started = True
            gpu.forget()
            fit.update(batch)
            assert sum(gpu.waits.values()) == WAITS.get(f"{name} {stage.name}", 0), gpu.report()
            assert sum(gpu.launches.values()) <= LAUNCHES.get(f"{name} {stage.name}", math.inf), gpu.report()
            fit.check_finite()


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_every_tokenizer_encodes_and_decodes_as_on_a_cpu(name: str) -> None:
    model, seen = tiny_autoencoder(name), frames(3)
    latents = model.encode(seen)
    pictures = model.decode(latents)
    with Gpu() as gpu:
        other = tiny_autoencoder(name).to("cuda")
        found = other.encode(seen.to("cuda"))
        assert not gpu.waits, gpu.report()
        if isinstance(model, Tokenizer):
            assert torch.equal(found.cpu(), latents)
        drawn = other.decode(latents.to("cuda")).cpu()
        assert (drawn.int() - pictures.int()).abs().max() <= 1


def test_padding_is_left_out_without_a_wait() -> None:
    config = compose_config([*SMALL_TOKENIZER, "tokenizer.num_codes=16"])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    stage = stages_of(config)[0]
    window = blank_window(3, SPEC, None)
    parts = {name: value.expand(2, *value.shape[1:]) for name, value in vars(window).items() if value is not None}
    batch = Segment(**{**parts, "valid": valid, "frames": frames(6).unflatten(0, (2, 3))})
    assert torch.equal(batch.steps_of(batch.frames), batch.frames[valid]) and batch.padded
    model = stage.build(config, SPEC, None)
    with Gpu() as gpu:
        moved = batch.to("cuda")
        gpu.forget()
        assert moved.padded and torch.equal(moved.steps_of(moved.frames).cpu(), batch.frames[valid])
        assert sum(gpu.waits.values()) == 1  # of .cpu() above
        stage.objective(config, model, None).to("cuda")(moved, torch.Generator("cuda"))


def test_muon_in_batches_gives_the_updates_of_torchs() -> None:
    torch.manual_seed(0)
    shapes = [(8, 8), (8, 24), (24, 8), (8, 8), (16, 40), (3, 5), (40, 7), (128, 64)]
    first = [torch.randn(shape) for shape in shapes]
    gradients = [[torch.randn(shape) for shape in shapes] for _ in range(3)]

    def trained(kind: type[torch.optim.Muon], device: str) -> list[torch.Tensor]:
        parameters = [nn.Parameter(value.clone().to(device)) for value in first]
        optimizer = kind(parameters, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for step in gradients:
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = gradient.clone().to(device)
            optimizer.step()
        return [parameter.detach().cpu() for parameter in parameters]

    wanted = trained(torch.optim.Muon, "cpu")
    for one, two in zip(wanted, trained(BatchedMuon, "cpu"), strict=True):
        assert torch.equal(one, two)
    with Gpu():
        found = trained(BatchedMuon, "cuda")
    for one, two, start in zip(wanted, found, first, strict=True):
        assert (one - two).abs().max() < 0.02 * (one - start).abs().max()
