"""Long dreams on worlds whose motion is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_square import MOVES, PLACES, SPEC, Tokenizer, World, pictures, record
from torch import Tensor, nn

from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation import long_report
from worldmodel.evaluation.inverse import InverseDynamics
from worldmodel.evaluation.long import Extent, Long, contrast, held_actions, measure, recorded_starts
from worldmodel.types import Episode

EXTENT = Extent(dreams=3, steps=4 * PLACES, span=PLACES)


class ExactClassifier(InverseDynamics):
    """Reads the action from the places of the square."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        first, second = (Tokenizer().encode(frames)[:, 0] for frames in (before, after))
        return ((first[:, None] + MOVES) % PLACES == second[:, None]).float()


class GreyTokenizer(Tokenizer):
    """Has one more code, that of a grey frame."""

    num_codes = PLACES + 1

    def decode(self, codes: Tensor) -> Tensor:
        return torch.cat([pictures(), torch.full((1, *SPEC.frame_shape), 99, dtype=torch.uint8)])[codes[:, 0]]


class GreyWorld(World):
    """Dreams nothing but grey frames."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = GreyTokenizer()

    def imagine(self, frames: Tensor, actions: Tensor, **options: Any) -> Any:
        dream = super().imagine(frames, actions, **options)
        return dataclasses.replace(dream, codes=torch.full_like(dream.codes, PLACES))


def right(steps: int) -> Episode:
    """The square goes to the right, so that a run of PLACES frames shows every place once."""
    frames = pictures()[torch.arange(steps + 1) % PLACES].numpy()
    return Episode.from_steps(frames, np.full(steps, 2), np.zeros(steps, np.float32), False, True)


def held_out(path: Path, *episodes: Episode) -> EpisodeStore:
    with EpisodeStore.writer(path, SPEC) as writer:
        for episode in episodes:
            writer.append(episode, held_out=True)
    return EpisodeStore.open(path)


def measured(world: World, store: EpisodeStore, classifier: InverseDynamics | None = None, seed: int = 0) -> Long:
    episodes = store.split("held_out")
    return measure(world, store, episodes, 4, EXTENT, (1.0, 0.0), classifier, seed)  # type: ignore[arg-type]


def dreams(found: Long) -> list[dict[str, Any]]:
    return [dream for kind in found.figures["dreamt"].values() for dream in kind.values()]


def test_a_world_that_replays_real_frames_equals_the_reference(tmp_path: Path) -> None:
    found = measured(World(), held_out(tmp_path / "data", *(right(40) for _ in range(4))), ExactClassifier())
    real = found.figures["real"]
    assert real["distance"] == {"value": 0.0, "low": 0.0, "high": 0.0} and real["obeyed"] == 1.0
    assert len(dreams(found)) == 4
    for dream in dreams(found):
        assert (dream["ratio"]["value"], dream["ratio"]["low"], dream["ratio"]["high"]) == (1.0, 1.0, 1.0)
        for end in ("first", "last"):
            assert dream[end]["distance"] == 0.0 and dream[end]["obeyed"]["value"] == 1.0
            assert dream[end]["plainer"]["value"] == real["plainer"] == real["plainer_coded"]


def test_a_world_that_dreams_one_grey_frame_is_plain_and_far_from_real_codes(tmp_path: Path) -> None:
    found = measured(GreyWorld(), held_out(tmp_path / "data", *(record(seed) for seed in range(6))), ExactClassifier())
    for dream in dreams(found):
        for end in ("first", "last"):
            assert dream[end]["plainer"] == {"value": 1.0, "low": 1.0, "high": 1.0, "samples": EXTENT.dreams}
            assert dream[end]["distance"] == pytest.approx(1.0)


def test_actions_that_are_not_obeyed_lower_the_shares(tmp_path: Path) -> None:
    store = held_out(tmp_path / "data", *(record(seed) for seed in range(6)))
    obedient, random = (dreams(measured(World(chance), store, ExactClassifier())) for chance in (1.0, 0.0))
    assert all(dream[end]["obeyed"]["value"] == 1.0 for dream in obedient for end in ("first", "last"))
    shares = [dream[end]["obeyed"]["value"] for dream in random for end in ("first", "last")]
    assert np.mean(shares) == pytest.approx(1 / 3, abs=0.1)


def test_without_a_classifier_the_same_seed_gives_the_same_figures(tmp_path: Path) -> None:
    store = held_out(tmp_path / "data", *(record(seed) for seed in range(6)))
    found, again, other = (measured(World(0.5), store, seed=seed) for seed in (0, 0, 1))
    assert found.figures == again.figures != other.figures
    assert found.figures["real"]["obeyed"] is None
    assert all(dream["ratio"] is dream["first"]["obeyed"] is None for dream in dreams(found))
    names = [name for name, _ in long_report.lines(found.figures)]
    assert names[0] == "Long dreams, 3 of 48 steps, frames 1–12 and 37–48" and not any("obeyed" in n for n in names)
    assert [panel.title for panel in long_report.panels(found.figures)] == [
        "Long dreams: frames plainer than real ones"
    ]


def test_recorded_actions_go_on_with_other_episodes_and_the_first_ones_again(tmp_path: Path) -> None:
    store = held_out(tmp_path / "data", record(1), record(2))
    extent = Extent(dreams=4, steps=400, span=50)
    starts = recorded_starts(store, store.split("held_out"), 4, extent, np.random.default_rng(0))
    recorded = [record(seed).actions[1:].tolist() for seed in (1, 2)]
    cycle = 10 * (recorded[0] + recorded[1])
    for row, seen in zip(starts.actions.tolist(), starts.seen_actions.tolist(), strict=True):
        walk = seen[1:] + row[:-50]
        assert any(cycle[i : i + len(walk)] == walk for i in range(len(recorded[0] + recorded[1])))
        assert row[-50:] == row[:50]
    assert starts.seen.shape == (4, 4, *SPEC.frame_shape)
    assert torch.equal(starts.real.actions.reshape(4, 50), starts.actions[:, :50])
    assert (ExactClassifier()(starts.real.before, starts.real.after).argmax(1) == starts.real.actions).all()


def test_held_actions_are_held_and_the_last_are_the_first() -> None:
    extent = Extent(dreams=5, steps=600, span=60, hold=(3, 7))
    actions = held_actions(extent, [0, 2], np.random.default_rng(0))
    assert actions.shape == (5, 600) and set(actions.unique().tolist()) == {0, 2}
    assert torch.equal(actions[:, -60:], actions[:, :60])
    for row in actions[:, :-60].tolist():
        changes = np.flatnonzero(np.diff(row)) + 1
        assert np.diff(changes, prepend=0).min() >= 3  # a drawn action may be that before it


def test_contrast_is_that_of_patches_not_of_texture() -> None:
    halves = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    halves[:, :, :8] = 200
    checks = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    checks[..., ::2] = 200
    assert contrast(torch.cat([halves, checks])).tolist() == [100.0, 0.0]


def test_the_picture_has_a_block_for_each_kind_and_temperature(tmp_path: Path) -> None:
    found = measured(World(), held_out(tmp_path / "data", record(0), record(1)))
    assert found.shown == (0, 1, 10, 48)
    assert set(found.frames) == {(kind, heat) for kind in ("recorded", "held") for heat in ("1", "0")}
    assert all(frames.shape == (3, 4, *SPEC.frame_shape) for frames in found.frames.values())
    height, width, colours = long_report.picture(found).shape
    assert height > 2 * 3 * 16 and width > 2 * 4 * 24 and colours == 3


@pytest.mark.parametrize(
    "wrong", [{"dreams": 0}, {"span": 0}, {"steps": 10, "span": 6}, {"hold": (0, 3)}, {"hold": (5, 2)}]
)
def test_an_extent_that_does_not_fit_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give"):
        Extent(**wrong)


def test_episodes_without_a_step_after_the_seen_frames_are_refused(tmp_path: Path) -> None:
    store = held_out(tmp_path / "data", right(3))
    with pytest.raises(DataError, match=r"no held-out episode in .* has a step after 4 frames"):
        measured(World(), store)
