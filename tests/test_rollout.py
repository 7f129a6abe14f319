"""The world model as a library: shapes, precision and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SPEC, frames, tiny_prior, tiny_tokenizer

from worldmodel import media
from worldmodel import world as rollout
from worldmodel.errors import ConfigError, UnknownActionError
from worldmodel.types import NO_ACTION
from worldmodel.world import WorldModel


@pytest.fixture
def world() -> WorldModel:
    return WorldModel(SPEC, tiny_tokenizer(), tiny_prior())


def seen(batch: int, steps: int = 3) -> torch.Tensor:
    return frames(batch * steps).unflatten(0, (batch, steps))


def test_a_dream_has_the_shapes_it_states(world: WorldModel) -> None:
    dream = world.imagine(seen(2), ["forward", "left", "noop", "left"], generator=torch.Generator().manual_seed(0))
    assert dream.codes.shape == (2, 4, 4, 4)
    assert dream.frames.shape == (2, 4, 3, 16, 16) and dream.frames.dtype == torch.uint8
    assert dream.rewards.shape == dream.ends.shape == dream.actions.shape == (2, 4)
    assert dream.actions[1].tolist() == [1, 2, 0, 2]
    assert ((dream.ends >= 0) & (dream.ends <= 1)).all()


def test_a_trajectory_does_not_depend_on_its_neighbours_in_the_batch(world: WorldModel) -> None:
    starts, actions = seen(3), torch.tensor([[1, 2, 0], [0, 0, 1], [2, 2, 2]])
    whole = world.imagine(starts, actions, temperature=0.0)
    for row in range(3):
        alone = world.imagine(starts[row], actions[row], temperature=0.0)
        assert torch.equal(alone.codes[0], whole.codes[row])


def test_samples_are_dreams_of_equal_starts(world: WorldModel) -> None:
    starts, actions = seen(2), torch.tensor([[1, 2, 0], [0, 0, 1]])
    drawn, repeated = (torch.Generator().manual_seed(7) for _ in range(2))
    samples = world.imagine(starts, actions, samples=3, generator=drawn)
    rows = torch.tensor([0, 0, 0, 1, 1, 1])
    same = world.imagine(starts[rows], actions[rows], generator=repeated)
    assert torch.equal(samples.codes, same.codes) and torch.equal(samples.seen, starts[rows])
    mean = samples.frames.double().unflatten(0, (2, 3)).mean(1)
    assert (samples.mean_frames(3).double() - mean).abs().max() <= 0.5 and samples.mean_frames(3).dtype == torch.uint8
    with pytest.raises(ConfigError, match="samples is 4; the number of dreams, 6, must be a multiple of it"):
        samples.mean_frames(4)
    with pytest.raises(ConfigError, match="samples is 0; give at least 1"):
        world.imagine(starts, actions, samples=0)


def test_a_saved_dream_shows_all_actions_that_are_known(
    world: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[media.Strip] = []
    monkeypatch.setattr(media, "save", lambda path, strips, rate, labels: saved.extend(strips))
    for known in (torch.tensor([[0, 1, 2], [NO_ACTION, 2, NO_ACTION]]), None):
        dream = world.imagine(seen(2), ["left", "forward"], seen_actions=known)
        dream.save(tmp_path / "dream.png", index=0)
        dream.save(tmp_path / "dream.png", index=1)
    unknown = (None, None, None, "left", "forward")
    names = [(None, "forward", "left", "left", "forward"), (None, "left", None, "left", "forward"), unknown, unknown]
    assert [strip.actions for strip in saved] == names
    assert {strip.seen for strip in saved} == {3}


def test_precision_is_of_decoder_and_trunk_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"check_kind": None, "load_spec": SPEC, "load_tokenizer": tiny_tokenizer, "load_prior": tiny_prior}
    for name, value in made.items():
        monkeypatch.setattr(rollout, name, lambda *_, value=value: value() if callable(value) else value)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        world = WorldModel.load(tmp_path, "cpu", precision)  # type: ignore[arg-type]
        assert {p.dtype for p in world.prior.trunk.parameters()} == {dtype}
        assert {p.dtype for p in world.tokenizer.decoder.parameters()} == {dtype}
        assert {p.dtype for p in world.tokenizer.encoder.parameters()} == {torch.float32}  # its codes are those cached
        assert torch.equal(world.tokenizer.encode(seen(8)[:, 0]), tiny_tokenizer().encode(seen(8)[:, 0]))
        assert {p.dtype for p in world.prior.head.parameters()} == {torch.float32}
        assert world.tokenizer.codebook().dtype == torch.float32
        dream = world.imagine(seen(1), torch.tensor([1, 2]), generator=torch.Generator().manual_seed(0))
        assert dream.frames.shape == (1, 2, 3, 16, 16)
    with pytest.raises(ConfigError, match=r"fp8.*auto, fp32 or bf16"):
        WorldModel.load(tmp_path, "cpu", "fp8")  # type: ignore[arg-type]


def test_what_does_not_fit_is_named(world: WorldModel) -> None:
    with pytest.raises(UnknownActionError, match="unknown action 'jump'"):
        world.imagine(seen(1), ["jump"])
    with pytest.raises(ConfigError, match="unknown action 7; choose 0 to 2"):
        world.imagine(seen(1), [7])
    with pytest.raises(ConfigError, match="horizon H of at least 1"):
        world.imagine(seen(1), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ConfigError, match="this run takes"):
        world.imagine(seen(1)[..., :8], [1])
    with pytest.raises(
        ConfigError, match=r"seen_actions are \(2,\); give \(3,\) or \(1, 3\), for each of the 3 seen frames"
    ):
        world.imagine(seen(1), [1], seen_actions=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"seen_actions are \(2, 3\); give \(3,\)"):
        world.imagine(seen(1), [1], seen_actions=np.zeros((2, 3), np.int64))
    with pytest.raises(ConfigError, match="unknown action -2"):
        world.imagine(seen(1), [1], seen_actions=[-1, -2, 0])


def test_actions_may_be_tensors_arrays_or_names_and_the_first_seen_one_is_not_used(world: WorldModel) -> None:
    def dream(actions: Any, seen_actions: Any) -> torch.Tensor:
        return world.imagine(seen(1), actions, seen_actions=seen_actions, temperature=0.0).codes

    wanted = dream(torch.tensor([1, 2]), torch.tensor([[NO_ACTION, 0, 2]]))
    assert torch.equal(dream(np.array([1, 2]), np.array([1, 0, 2])), wanted)
    assert torch.equal(dream(["forward", "left"], ["left", "noop", "left"]), wanted)
