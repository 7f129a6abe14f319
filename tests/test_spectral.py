"""The loss of a codec: nothing for the same sound, more for more error, with gradients that lead to it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from worldmodel.speech.nn.mel import companded, expanded
from worldmodel.speech.nn.spectra import SpectralLoss


def voice(length: int = 8000, pitch: float = 130.0) -> Tensor:
    """A companded buzz, (1, 1, length)."""
    time = torch.arange(length) / 16_000
    wave = sum(0.3 / n * torch.sin(2 * math.pi * n * pitch * time) for n in range(1, 12))
    return companded(wave * 0.5)[None, None]


def test_the_same_sound_costs_nothing_and_noise_more_the_louder_it_is() -> None:
    loss, sound = SpectralLoss(1), voice()
    noise = torch.randn(sound.shape, generator=torch.Generator().manual_seed(0))
    losses = [loss.loss(companded(expanded(sound) + scale * noise), sound).item() for scale in (0, 0.001, 0.01, 0.1)]
    assert losses[0] < 1e-5 and losses == sorted(losses)
    parts = SpectralLoss(1, wave=0.0).loss(sound * 0.5, sound) + SpectralLoss(1, spectra=0.0).loss(sound * 0.5, sound)
    torch.testing.assert_close(loss.loss(sound * 0.5, sound), parts)


def test_a_spectrum_of_pressure_ten_times_as_loud_is_one_apart() -> None:
    quiet, loud = (0.05 * torch.randn(1, 1, 8000, generator=torch.Generator().manual_seed(0)) * s for s in (1, 10))
    distance = SpectralLoss(1).distance(companded(quiet), companded(loud.clamp(-1, 1)))
    assert distance.item() == pytest.approx(1, abs=0.05)


def test_gradients_lead_to_the_sound_and_are_finite_in_silence_and_beyond_the_range() -> None:
    loss, sound = SpectralLoss(1, spectra=0.1), voice(4000)
    outputs = (sound * 0.3).requires_grad_()
    optimizer = torch.optim.Adam([outputs], 0.01)
    first = loss.loss(outputs, sound).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss.loss(outputs, sound).backward()
        optimizer.step()
    assert loss.loss(outputs, sound).item() < 0.75 * first
    for odd in (torch.zeros(1, 1, 4000), torch.full((1, 1, 4000), 5.0)):
        odd.requires_grad_()
        loss.loss(odd, sound).backward()
        assert odd.grad is not None and odd.grad.isfinite().all()


def test_it_keeps_the_contract_of_a_likelihood_that_is_not_exact() -> None:
    loss, frames = SpectralLoss(channels=2), torch.rand(3, 2, 100) * 2 - 1
    outputs = torch.randn(3, 2, 100) * 2
    assert loss.outputs == 2 and not loss.exact
    assert loss.log_prob(outputs, frames).shape == frames.shape
    assert torch.equal(loss.mean(outputs), outputs.clamp(-1, 1)) and torch.equal(
        loss.sample(outputs), loss.mean(outputs)
    )
    assert loss.loss(outputs, frames).isfinite()  # longer windows are left out
    assert SpectralLoss(1).distance(torch.zeros(1, 1, 10), torch.ones(1, 1, 10)) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss.loss(outputs, frames), loss.loss(outputs, frames))
    assert not loss.state_dict()
    with pytest.raises(ValueError, match="2 windows and 1 numbers of bands"):
        SpectralLoss(1, windows=(64, 128), bands=(10,))
