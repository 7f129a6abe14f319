"""What training shows a tokenizer instead of the examples."""

from __future__ import annotations

import pytest
import torch
from test_speech import make
from torch import Tensor

from worldmodel.speech.augment import VariedSounds, resampled
from worldmodel.speech.nn.mel import expanded
from worldmodel.training.objectives import TokenizerObjective
from worldmodel.types import Segment, to_float, to_uint8


def sounds(count: int = 6, samples: int = 640) -> Tensor:
    return torch.randint(60, 196, (count, 1, samples), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_sounds_keep_their_shape_and_lie_on_levels() -> None:
    frames = sounds()
    shown = VariedSounds(0.5, 6, 0.1)(frames, torch.Generator().manual_seed(1))
    assert shown.shape == frames.shape and shown.dtype == torch.uint8
    again, other = (VariedSounds(0.5, 6, 0.1)(frames, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert torch.equal(shown, again) and not torch.equal(shown, other)


def test_alone_at_their_own_loudness_sounds_are_at_most_turned_upside_down() -> None:
    frames = sounds(32)
    shown = VariedSounds(share=0, gain=0)(frames, torch.Generator().manual_seed(0))
    kept, turned = ((to_float(shown) - sign * to_float(frames)).abs().amax((1, 2)) < 1e-6 for sign in (1, -1))
    assert bool((kept ^ turned).all()) and 0 < int(kept.sum()) < 32


def test_a_mixture_is_the_sum_of_two_of_the_batch() -> None:
    frames = to_uint8(to_float(sounds(4)) / 2)  # soft: nothing is clipped
    shown = VariedSounds(share=1, gain=0)(frames, torch.Generator().manual_seed(0))
    waves, mixtures = expanded(to_float(frames)), expanded(to_float(shown))
    signed = torch.cat([waves, -waves])
    sums = signed[:, None] + signed[None]
    nearest = (mixtures[:, None, None] - sums[None]).abs().amax((-1, -2)).flatten(1).amin(1)
    assert nearest.max() < 0.03 * mixtures.abs().max()  # half a sample value


def test_loudness_varies_by_what_is_asked_for() -> None:
    frames = to_uint8(to_float(sounds(1)) / 2).expand(4000, -1, -1)[..., :16]
    shown = VariedSounds(share=0, gain=3)(frames, torch.Generator().manual_seed(0))
    power = [expanded(to_float(values)).square().mean((1, 2)) for values in (shown, frames)]
    decibels = 10 * torch.log10(power[0] / power[1])
    assert decibels.std().item() == pytest.approx(3, abs=0.15) and abs(decibels.mean().item()) < 0.2


def test_speed_moves_every_frequency_by_as_much() -> None:
    time = torch.arange(3200) / 16_000
    waves = torch.sin(2 * torch.pi * 500 * time).expand(3, 1, -1)
    speeds = torch.tensor([0.9, 1.0, 1.1])
    resampled_waves = resampled(waves, speeds)
    wanted = torch.sin(2 * torch.pi * 500 * time * speeds[:, None])
    inner = slice(16, 2800)  # at a tenth faster the end is a mirror image
    assert torch.allclose(resampled_waves[:, 0, inner], wanted[:, inner], atol=2e-3)
    assert torch.allclose(resampled_waves[1], waves[1], atol=1e-5) and resampled_waves.abs().max() < 1.1
    mirrored = torch.sin(2 * torch.pi * 500 * (2 * 3199 / 16_000 - time * 1.1))
    assert torch.allclose(resampled_waves[2, 0, -200:-20], mirrored[-200:-20], atol=2e-3)


def test_only_training_is_shown_something_else() -> None:
    tokenizer = make("codec")
    objective = TokenizerObjective(tokenizer, augment=VariedSounds(0.5))
    segment = Segment(
        actions=torch.zeros((2, 3), dtype=torch.int64),
        rewards=torch.zeros((2, 3)),
        terminated=torch.zeros((2, 3), dtype=torch.bool),
        truncated=torch.zeros((2, 3), dtype=torch.bool),
        valid=torch.ones((2, 3), dtype=torch.bool),
        frames=sounds(6).unflatten(0, (2, 3)),
    )
    shown: list[Tensor] = []
    tokenizer.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    for training in (False, True):
        objective.train(training)(segment, torch.Generator().manual_seed(0))
    assert torch.equal(shown[0].flatten(), sounds(6).flatten()) and not torch.equal(shown[0], shown[1])
