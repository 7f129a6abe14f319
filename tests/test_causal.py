"""Causal networks of sound: streamed is the same as whole, and nothing reads the future."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.speech.nn.causal import Causal, CausalConv, CausalDecoder, CausalEncoder, CausalUnit, CausalUpsampling

LAYERS = {  # what it is, inputs that a chunk is a multiple of, channels in
    "plain": (lambda: CausalConv(2, 3, 3), 1, 2),
    "one wide": (lambda: CausalConv(2, 3, 1), 1, 2),
    "dilated": (lambda: CausalConv(2, 3, 3, dilation=9), 1, 2),
    "strided": (lambda: CausalConv(2, 3, 8, 4), 4, 2),
    "strided, no past": (lambda: CausalConv(2, 3, 4, 4), 4, 2),
    "strided and dilated": (lambda: CausalConv(2, 3, 3, 2, 3), 2, 2),
    "upsampling": (lambda: CausalUpsampling(2, 3, 8, 4), 1, 2),
    "upsampling, odd": (lambda: CausalUpsampling(2, 3, 7, 3), 1, 2),
    "upsampling, no past": (lambda: CausalUpsampling(2, 3, 3, 3), 1, 2),
    "unit": (lambda: CausalUnit(2, 3), 1, 2),
    "encoder": (lambda: CausalEncoder(1, 1, (4, 6), 2, strides=(2, 5)), 10, 1),
    "decoder": (lambda: CausalDecoder(1, 5, 1, (4, 6), 2, strides=(2, 5)), 1, 5),
}
CHUNKS = ([1] * 24, [24], [1, 2, 3, 18], [7, 17], [20, 0, 4])


def streamed(layer: Causal, x: Tensor, sizes: Sequence[int]) -> Tensor:
    state, parts = None, []
    for chunk in x.split(list(sizes), -1):
        out, state = layer.step(chunk, state)
        parts.append(out)
    return torch.cat(parts, -1)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_streamed_is_whole(name: str) -> None:
    make, unit, channels = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double()
    x = torch.randn(2, channels, 24 * unit, dtype=torch.float64)
    whole = layer(x)
    for sizes in CHUNKS:
        found = streamed(layer, x, [unit * size for size in sizes if size])
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-14)  # sums of another size may round otherwise
        single = streamed(layer.float(), x.float(), [unit * size for size in sizes if size])
        torch.testing.assert_close(single, whole.float(), rtol=0, atol=1e-5)
        layer.double()


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_the_past_does_not_hear_the_future(name: str) -> None:
    make, unit, channels = LAYERS[name]
    torch.manual_seed(0)
    layer = make()
    x = torch.randn(1, channels, 24 * unit)
    changed = torch.cat([x[..., : 12 * unit], torch.randn(1, channels, 12 * unit)], -1)
    before, after = layer(x), layer(changed)
    half = before.shape[-1] // 2
    torch.testing.assert_close(before[..., :half], after[..., :half], rtol=0, atol=1e-6)
    assert (before[..., half:] != after[..., half:]).any()


@torch.no_grad()
def test_layers_are_the_plain_ones_with_silence_in_front() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 24)
    down, up = CausalConv(2, 3, 8, 4, 1), CausalUpsampling(2, 3, 8, 4)
    torch.testing.assert_close(down(x), down.conv(F.pad(x, (4, 0))))
    torch.testing.assert_close(up(x), up.conv(x)[..., :96])


@torch.no_grad()
def test_a_state_is_not_changed_by_what_follows() -> None:
    torch.manual_seed(0)
    encoder = CausalEncoder(1, 1, (4, 6), 1, strides=(2, 5))
    _, state = encoder.step(torch.randn(1, 1, 40))
    chunk = torch.randn(1, 1, 20)
    first, _ = encoder.step(chunk, state)
    encoder.step(torch.randn(1, 1, 20), state)
    assert torch.equal(encoder.step(chunk, state)[0], first)


def test_shapes_gradients_and_size() -> None:
    widths = (24, 48, 96, 160)
    encoder, decoder = CausalEncoder(1, 1, widths, 2), CausalDecoder(1, 64, 1, widths, 2, outputs=3)
    assert encoder.factor == decoder.factor == 320
    places = encoder(torch.randn(2, 1, 640))
    assert places.shape == (2, 160, 2)
    out = decoder(torch.randn(2, 64, 2))
    assert out.shape == (2, 3, 640)
    (places.square().sum() + out.square().sum()).backward()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
    assert sum(p.numel() for p in parameters) < 1.5e6


@torch.no_grad()
def test_signals_keep_their_size_at_the_start() -> None:
    """Otherwise all places are alike, and the quantiser sees nothing of the sound."""
    torch.manual_seed(0)
    widths = (24, 48, 96, 160)
    places = CausalEncoder(1, 1, widths, 2)(0.4 * torch.randn(1, 1, 320 * 100))
    assert places.std(-1).mean() > 0.2 and places.std(-1).mean() > places.mean(-1).abs().mean()
    wave = CausalDecoder(1, 64, 1, widths, 2)(torch.randn(1, 64, 100))
    assert 0.1 < wave.std() < 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 widths and 4 strides"):
        CausalEncoder(1, 1, (8, 8, 8), 1)
    with pytest.raises(ConfigError, match=r"\(rank 1\), not for frames of rank 2"):
        CausalDecoder(2, 8, 3, (8, 8), 1, strides=(2, 2))
    with pytest.raises(ValueError, match="leaves out inputs at a stride of 4"):
        CausalConv(1, 1, 3, 4)
    with pytest.raises(ValueError, match="a chunk of 7 is no multiple of the stride, 2"):
        CausalEncoder(1, 1, (8,), 1, strides=(2,))(torch.zeros(1, 1, 7))
