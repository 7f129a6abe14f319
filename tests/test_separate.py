"""Levels by themselves, as in Jukebox: three VQ-VAEs, their codes in one row, a prior that draws the coarse first."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import soundfile
import torch
from sounds import RATE, put, voice, write_vctk
from test_speech import QUICK, SMALL, SMALL_LEVELS, make, signal
from torch import Tensor

from worldmodel import collect, convert, evaluate, speak, train
from worldmodel.errors import ConfigError
from worldmodel.heads import Ancestral, Predictive, TransformerHead
from worldmodel.heads.hierarchy import HierarchyHead
from worldmodel.likelihoods import Categorical
from worldmodel.priors import ConvTrunk, Prior
from worldmodel.priors.frame_transformer import FrameTransformer
from worldmodel.quantizers import ProductQuantizer, VectorQuantizer
from worldmodel.speech.augment import VariedSounds
from worldmodel.speech.nn.wavenet import WaveNetLikelihood
from worldmodel.speech.scores.codes import leakage
from worldmodel.speech.separate import SeparateLevels
from worldmodel.tokenizers import VQVAE
from worldmodel.tokenizers.base import join
from worldmodel.training.objectives import MARGIN, PriorObjective, TokenizerObjective
from worldmodel.types import Segment

LEVELS = ((5,), (20,), (80,))
NAMES = ("p225", "p226")
small_head = partial(HierarchyHead, width=8, inner=partial(TransformerHead, width=8, blocks=1, heads=2, order="raster"))
small_trunk = partial(FrameTransformer, width=8, blocks=1, heads=2, window=3, model=8, embed=4, spread=2)


def levels() -> SeparateLevels:
    tokenizer = make("jukebox")
    assert isinstance(tokenizer, SeparateLevels)
    return tokenizer


def pictures(**changes: object) -> SeparateLevels:
    torch.manual_seed(0)
    options = {"widths": [[8], [8, 8]], "blocks": 1, "num_codes": 16, **changes}
    return SeparateLevels((3, 16, 16), partial(VectorQuantizer, width=4), **options).eval()  # type: ignore[arg-type]


def random_codes(tokenizer: SeparateLevels, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, tokenizer.num_codes, (*shape, *tokenizer.grid), generator=generator)


def test_the_rates_are_those_of_jukebox() -> None:
    tokenizer = levels()
    assert tokenizer.levels == LEVELS and tokenizer.grid == (105,) and tokenizer.names == ["128x", "32x", "8x"]
    assert tokenizer.codebook().shape == (3, 8, 4)


@pytest.mark.parametrize("windows", [1, 2, 7])
def test_codes_of_a_signal_stand_window_by_window(windows: int) -> None:
    tokenizer = levels()
    wave = join(signal(windows, 2))
    rows = tokenizer.encode(wave).unflatten(1, (windows, 105))
    own = [tokenizer.models[number].encode(wave) for number in range(3)]
    for window in range(windows):
        begin = 0
        for whole, (size,) in zip(own, LEVELS, strict=True):
            there = rows[:, window, begin : begin + size]
            assert torch.equal(there, whole[:, window * size : (window + 1) * size])
            begin += size


@pytest.mark.parametrize("windows", [1, 2, 7])
def test_rows_and_levels_are_the_same_codes(windows: int) -> None:
    tokenizer = levels()
    codes = random_codes(tokenizer, windows).flatten()[None]
    apart = tokenizer.books(codes)
    assert [part.shape for part in apart] == [(1, windows * size) for (size,) in LEVELS]
    assert torch.equal(tokenizer.merge(apart), codes)
    for number, part in enumerate(apart):  # a level decodes its codes of all windows at once
        own = tokenizer.models[number].decode(part, torch.tensor([1]))
        assert torch.equal(tokenizer.models[number].decode(tokenizer.part(codes, number), torch.tensor([1])), own)
    drawn = tokenizer.draw_episode(codes[0].unflatten(0, (windows, 105)), 1)
    assert torch.equal(join(drawn[None]), own)  # the finest makes the sound


def test_levels_do_not_see_each_other() -> None:
    tokenizer = levels()
    codes = random_codes(tokenizer, 2)
    before = [tokenizer.models[n].expected_frames(part) for n, part in enumerate(tokenizer.books(codes))]
    for changed in range(3):
        apart = tokenizer.books(codes)
        apart[changed] = (apart[changed] + 1) % 8
        other = tokenizer.merge(apart)
        for number in range(3):
            same = torch.equal(tokenizer.models[number].expected_frames(tokenizer.part(other, number)), before[number])
            assert same is (number != changed)


def test_the_loss_of_a_level_teaches_this_level_alone() -> None:
    tokenizer = levels().train()
    wave = join(signal(3))
    for number in range(3):
        tokenizer.zero_grad()
        made = tokenizer(wave, torch.Generator().manual_seed(0), torch.tensor([0]))
        own = tokenizer.models[number](wave, torch.Generator().manual_seed(0), torch.tensor([0]))
        sum(own.losses.values()).backward()
        for other in range(3):
            touched = any(weight.grad is not None for weight in tokenizer.models[other].parameters())
            assert touched is (number == other)
    assert made.figures is not None and list(made.figures) == [f"reconstruction_{name}" for name in tokenizer.names]
    mean = torch.stack(list(made.figures.values())).mean()
    torch.testing.assert_close(made.losses["reconstruction"].detach(), mean)


def test_training_reports_every_level() -> None:
    frames = signal(3, 2)
    flags = torch.zeros(2, 3, dtype=torch.bool)
    segment = Segment(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3), flags, flags, ~flags, frames=frames)
    found = TokenizerObjective(levels().train())(segment, torch.Generator().manual_seed(0))
    assert {"reconstruction_8x", "reconstruction_32x", "reconstruction_128x", "psnr", "usage"} <= set(found.metrics)
    assert set(found.terms) == {"reconstruction", "commitment"}


def test_each_level_can_be_heard() -> None:
    tokenizer = levels()
    frames = signal(1)[0]
    stages = tokenizer.reconstructions(frames)
    assert [name for name, _ in stages] == ["128x", "32x", "8x"]
    assert all(wave.shape == frames.shape for _, wave in stages)
    assert torch.equal(stages[-1][1], tokenizer.decode(tokenizer.encode(frames)))


def test_pictures_have_levels_too() -> None:
    tokenizer = pictures()
    assert tokenizer.levels == ((4, 4), (8, 8)) and tokenizer.grid == (80,)
    frames = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    codes = tokenizer.encode(frames)
    assert codes.shape == (3, 80) and torch.equal(codes[:, :16], tokenizer.models[0].encode(frames).flatten(1))
    assert torch.equal(tokenizer.decode(codes), tokenizer.models[1].decode(tokenizer.models[1].encode(frames)))
    exact = pictures(likelihood=Categorical)
    bound = exact.bound(frames)
    torch.testing.assert_close(bound.total - bound.reconstruction, torch.full((3,), 80 * math.log(16)))
    made = exact(frames)
    assert made.nats is not None
    torch.testing.assert_close(made.nats * 3 * 16 * 16, bound.total.mean(), rtol=1e-4, atol=1e-4)


def test_levels_may_end_in_a_wavenet() -> None:
    torch.manual_seed(0)
    wavenet = partial(WaveNetLikelihood, outputs=8, width=8, layers=2, hidden=8, group=4)
    tokenizer = SeparateLevels(
        (1, 640), partial(VectorQuantizer, width=4), [[4] * 3, [4] * 5], 1, 8, wavenet, condition_width=4, num_actions=2
    )
    wave, said = join(signal(2)), torch.tensor([1])
    made = tokenizer(wave, torch.Generator().manual_seed(0), said)
    assert made.nats is not None and made.codes is not None
    tokenizer.eval()
    codes = tokenizer.encode(wave)
    assert tokenizer.given(wave, codes, said).shape == (1,)
    assert tokenizer.draw(codes, said, torch.Generator().manual_seed(0)).shape == wave.shape


@pytest.mark.parametrize("widths", [[[8, 8]], [[8, 8], [8]], [[8], [8]]])
def test_levels_become_coarser(widths: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="levels"):
        pictures(widths=widths)


def test_levels_fit_the_frames_and_have_one_code_a_place() -> None:
    with pytest.raises(ConfigError, match="cannot be halved 5 times"):
        pictures(widths=[[8], [8] * 5])
    quantizer = partial(ProductQuantizer, slots=2, quantizer=partial(VectorQuantizer, width=4))
    with pytest.raises(ConfigError, match="one whole code"):
        SeparateLevels((3, 16, 16), quantizer, [[8], [8, 8]], num_codes=16)


def make_prior() -> Prior:
    torch.manual_seed(0)
    prior = Prior(levels(), NAMES, small_trunk, small_head, context=0, outcomes=False).double().eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return prior


def test_finer_codes_follow_from_coarser_ones_and_from_the_windows_before() -> None:
    prior, actions = make_prior(), torch.tensor([[0, 0, 0]])
    codes = random_codes(levels(), 1, 3)
    before = prior(codes, actions)
    for level, place in ((0, 0), (0, 4), (1, 0), (1, 19), (2, 0), (2, 79)):
        row = place + (0, 5, 25)[level]
        changed = codes.clone()
        changed[0, 1, row] = (changed[0, 1, row] + 1) % 8
        moved = (prior(changed, actions) - before).abs().amax(-1)[0] > 1e-12
        assert not moved[0].any() and not moved[1, : row + 1].any() and moved[2].any()
        for finer in range(level + 1, 3):  # all that lies below it
            times, begin = 4 ** (finer - level), (0, 5, 25)[finer]
            assert moved[1, begin + place * times : begin + (place + 1) * times].all()


def test_windows_drawn_one_by_one_are_as_likely_as_together() -> None:
    prior, actions = make_prior(), torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])
    codes = random_codes(levels(), 2, 4)
    state = prior.begin(2)
    contexts = []
    for step in range(4):
        context, _ = prior.trunk.step(state.trunk, state.previous, actions[:, step])
        contexts.append(context)
        state = prior.observe(state, codes[:, step], actions[:, step])
    torch.testing.assert_close(torch.stack(contexts, 1), prior.contexts(codes, actions))


def test_both_samplers_draw_the_same_codes() -> None:
    prior, actions = make_prior(), torch.tensor([0, 1, 0])
    drawn = []
    for sampler in (Ancestral(), Predictive()):
        generator, state = torch.Generator().manual_seed(3), prior.begin(3)
        rows = []
        for _ in range(2):
            step, state = prior.step(state, actions, sampler, generator)
            rows.append(step.codes)
        drawn.append(torch.stack(rows))
    assert drawn[0].shape == (2, 3, 105) and torch.equal(*drawn) and len(drawn[0].unique()) > 4


def test_a_trunk_of_one_grid_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="several grids, and ConvTrunk is for one; choose prior=hierarchy, or prior=jukebox"
    ):
        Prior(levels(), NAMES, partial(ConvTrunk, width=8), small_head)
    with pytest.raises(ConfigError, match="several grids, and TransformerHead is for one"):
        Prior(levels(), NAMES, small_trunk, TransformerHead)


def test_from_recordings_to_speech_by_levels(
    tmp_path: Path, say: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_vctk(tmp_path / "set")
    put(tmp_path / "in.wav", voice(0.35), RATE)
    say(collect, "experiment=jukebox", "source.path=set")
    small = [*SMALL["jukebox"], *SMALL_LEVELS, *QUICK, "training.tokenizer.length=2", "training.prior.targets=3"]
    say(train, "experiment=jukebox", *small, "--steps", "2")
    say(speak, "experiment=jukebox", "--speakers", "p225", "--seconds", "0.1", "--output", "said.flac")
    assert len(soundfile.read("said.flac")[0]) == 0.1 * RATE
    say(convert, "experiment=jukebox", "in.wav", "--speakers", "p226", "--output", "other.wav")
    assert len(soundfile.read("other.wav")[0]) == round(0.35 * RATE)
    monkeypatch.setattr("worldmodel.speech.evaluation.voices.leakage", functools.partial(leakage, steps=2))
    output = say(evaluate, "experiment=jukebox")
    assert "From 128x only" in output and "prior, bits a code" in output
    found = json.loads((tmp_path / "runs/jukebox-1/evaluation/metrics.json").read_text())
    assert list(found["levels"]) == ["128x", "32x", "8x"] and len(found["codes"]["books"]) == 3
    assert found["codes"]["a_second"] == 2625 and found["leakage"]["speakers"] == 2
    rates = [level["bits_a_second"] for level in found["levels"].values()]
    assert sum(rates) == found["codes"]["bits_a_second"] == 2625 * 3


def test_a_vqvae_of_one_level_is_a_level() -> None:
    """What a level learns by itself it learns here, too: same weights, same codes."""
    tokenizer = levels()
    alone = VQVAE((1, 640), partial(VectorQuantizer, width=4), [4, 4, 8], 1, 8, condition_width=4, num_actions=2).eval()
    keys = {key for key in alone.state_dict() if not key.startswith("likelihood")}
    own = tokenizer.models[-1].state_dict()
    alone.load_state_dict({key: own[key] for key in keys}, strict=False)
    wave = join(signal(3))
    assert torch.equal(alone.encode(wave), tokenizer.books(tokenizer.encode(wave))[-1])


def test_a_prior_learns_from_varied_sounds_what_it_would_learn_from_their_codes() -> None:
    tokenizer, frames = levels(), signal(4 + MARGIN, 2)
    prior = Prior(tokenizer, NAMES, small_trunk, small_head, context=0, outcomes=False)
    segments = []
    prior.losses = lambda segment, generator: segments.append(segment) or ({}, {})  # type: ignore[assignment]
    flags = torch.zeros(2, 4 + MARGIN, dtype=torch.bool)
    actions = torch.arange(4 + MARGIN).expand(2, -1)
    batch = Segment(actions, flags.float(), flags, flags, ~flags, frames=frames)
    objective = PriorObjective(prior, tokenizer, VariedSounds())
    for seed in range(4):
        objective(batch, torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        first = int(torch.randint(640, (), generator=generator))
        varied = VariedSounds()(join(frames), generator)[..., first : first + (3 + MARGIN) * 640]
        codes = tokenizer.encode(varied).unflatten(1, (3 + MARGIN, 105))[:, 1:-1]
        assert torch.equal(segments[-1].codes, codes) and codes.shape == (2, 4, 105)
        assert segments[-1].frames is None and segments[-1].actions.tolist() == [[1, 2, 3, 4]] * 2
    assert not torch.equal(segments[0].codes, segments[1].codes)
