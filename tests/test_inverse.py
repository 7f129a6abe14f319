"""The inverse-dynamics classifier on a world whose motion is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from moving_square import World, record, windows

from worldmodel.evaluation.inverse import (
    Budget,
    InverseDynamics,
    Pairs,
    Reading,
    balanced_actions,
    balanced_pairs,
    dream_pairs,
    obeyed,
    read,
    train_classifier,
)
from worldmodel.evaluation.openloop import silent

CPU = torch.device("cpu")
BUDGET = Budget(pairs=900, steps=120, batch=64)


@pytest.fixture(scope="module")
def training() -> Pairs:
    return balanced_pairs([record(seed) for seed in range(20)], 3, BUDGET.pairs, np.random.default_rng(0))


@pytest.fixture(scope="module")
def classifier(training: Pairs) -> InverseDynamics:
    return train_classifier(training, 3, BUDGET, CPU, 0, silent, None)


@pytest.fixture(scope="module")
def real() -> Pairs:
    return balanced_pairs([record(seed) for seed in range(100, 110)], 3, 300, np.random.default_rng(1))


def test_pairs_are_balanced_and_aligned(training: Pairs) -> None:
    assert torch.bincount(training.actions).tolist() == [300, 300, 300]
    columns = [
        (frames[:, 0, 6] > 200).float().argmax(-1) // 2 for frames in (training.before, training.after)
    ]  # the square is the only thing so bright
    moves = torch.tensor([0, -1, 1])[training.actions]
    assert torch.equal((columns[0] + moves) % 12, columns[1])


def test_every_action_follows_every_other_equally_often() -> None:
    episode = record(0)
    runs = np.repeat(np.random.default_rng(0).integers(0, 3, episode.steps), 5)[: episode.steps]
    episode.actions[1:] = runs  # held for a while, as explorers do
    place = np.arange(len(episode.frames)) % 256
    episode.frames[:] = place[:, None, None, None]  # a frame shows its index
    pairs = balanced_pairs([episode], 3, 900, np.random.default_rng(0))
    steps = pairs.before[:, 0, 0, 0].long()
    before = torch.from_numpy(episode.actions)[steps]
    table = torch.bincount(pairs.actions * 3 + before, minlength=9)
    assert steps.min() > 0
    assert set(table.tolist()) <= {0, 50, 75, 100, 150, 300}
    assert torch.bincount(pairs.actions, minlength=3).tolist() == [300] * len(set(runs.tolist()))


def test_a_rare_action_is_drawn_again_and_a_missing_one_left_out() -> None:
    episode = record(0)
    episode.actions[1:] = 1
    episode.actions[3] = 2
    pairs = balanced_pairs([episode], 3, 40, np.random.default_rng(0))
    assert torch.bincount(pairs.actions, minlength=3).tolist() == [0, 20, 20]
    assert len(pairs.before[pairs.actions == 2].unique(dim=0)) == 1


def test_actions_of_dreams_are_balanced() -> None:
    actions = balanced_actions(30, 8, [0, 1, 2], np.random.default_rng(0))
    assert actions.shape == (30, 8) and torch.bincount(actions.flatten()).tolist() == [80, 80, 80]
    assert len(actions.unique(dim=0)) > 20  # shuffled, not a cycle
    assert set(balanced_actions(5, 4, [0, 2], np.random.default_rng(0)).flatten().tolist()) == {0, 2}


def dreamt(obedience: float) -> Pairs:
    seen = windows(60, 4, seed=200)
    actions = balanced_actions(60, 8, [0, 1, 2], np.random.default_rng(2))
    assert seen.frames is not None
    return dream_pairs(
        World(obedience),  # type: ignore[arg-type]
        seen.frames,
        seen.actions,
        actions,
        temperature=0.0,
        batch=25,
    )


def test_an_obedient_dream_is_read_like_reality(classifier: InverseDynamics, real: Pairs) -> None:
    truth = read(classifier, real, 3)
    found = obeyed(read(classifier, dreamt(1.0), 3), truth, 8)
    assert truth.correct.mean() > 0.97
    assert found["ratio_to_real"]["value"] == pytest.approx(1.0, abs=0.03)
    assert np.array(found["confusion"]).sum() == 480 and np.trace(found["confusion"]) > 460
    assert found["accuracy_by_step"] == pytest.approx([1.0] * 8, abs=0.1)
    assert found["unchanged"] == [1.0, 0.0, 0.0]  # standing still shows no motion, the others do


def test_a_dream_that_ignores_its_actions_is_found_out(classifier: InverseDynamics, real: Pairs) -> None:
    found = obeyed(read(classifier, dreamt(0.0), 3), read(classifier, real, 3), 8)
    assert found["accuracy"] == pytest.approx(1 / 3, abs=0.07)
    assert found["accuracy_by_action"] == pytest.approx([1 / 3] * 3, abs=0.15)
    half = obeyed(read(classifier, dreamt(0.5), 3), read(classifier, real, 3), 8)
    assert found["ratio_to_real"]["high"] < half["ratio_to_real"]["low"] < half["ratio_to_real"]["high"] < 0.9


def test_accuracy_is_told_for_each_action() -> None:
    confusion = np.array([[3, 1, 0], [0, 0, 0], [1, 0, 1]])
    reading = Reading(np.array([1.0, 0.0]), confusion, np.zeros(3))
    assert reading.to_json()["accuracy_by_action"] == [0.75, None, 0.5]


def test_the_classifier_is_kept_for_the_same_pairs_only(tmp_path: Path, training: Pairs) -> None:
    path, calls = tmp_path / "evaluation" / "inverse.safetensors", []
    budget = Budget(pairs=900, steps=2, batch=32)

    def fetch(pairs: Pairs) -> InverseDynamics:
        return train_classifier(pairs, 3, budget, CPU, 0, lambda *work: calls.append(work), path)

    first = fetch(training)
    assert len(calls) == 2
    second = fetch(training)
    assert len(calls) == 2  # not trained again
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    fetch(Pairs(training.before, training.after, training.actions.roll(1)))
    assert len(calls) == 4
    path.write_bytes(b"damaged")
    fetch(training)
    assert len(calls) == 6


def test_training_leaves_the_global_generator_alone(training: Pairs) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train_classifier(training, 3, Budget(pairs=900, steps=1, batch=8), CPU, 0, silent, None)
    assert torch.equal(torch.rand(3), expected)
