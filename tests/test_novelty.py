"""The novelty explorer: surprise in bits worked out by hand, ways chosen for it, and collecting with a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import corridor
import numpy as np
import pytest
import torch
from corridor_run import save_run

from worldmodel import collect
from worldmodel.agents.novelty import CodeCounts, NoveltyExplorer
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError

Say = Callable[..., str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    save_run(folder)
    return folder


def test_surprise_falls_with_what_was_seen() -> None:
    seen = CodeCounts(positions=2, num_codes=4, prior=1.0)
    assert seen.bits(torch.tensor([0, 3])) == pytest.approx(4)  # nothing seen: 2 bits a place
    for grid in ([0, 1], [0, 2], [0, 1], [0, 1]):
        seen.add(torch.tensor(grid))
    # (4 + 1) / 8 and (3 + 1) / 8; the other grid (0 + 1) / 8 and (0 + 1) / 8
    found = seen.bits(torch.tensor([[[0, 1]], [[1, 3]]]))
    assert found.shape == (2, 1) and found.flatten().tolist() == pytest.approx([np.log2(8 / 5) + 1, 6])


def explorer(runs: Path, **options: Any) -> NoveltyExplorer:
    made = NoveltyExplorer(folder=runs, weights={"left": 1, "right": 1}, default_run=(2, 2), horizon=4, num_sequences=6,
                           turns=(), **options)  # fmt: skip
    made.begin(("left", "right"), np.random.default_rng(0))
    return made


def test_the_way_of_the_most_novel_frames_is_taken(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[list[int]]] = []
    frame = np.zeros(corridor.SPEC.frame_shape, np.uint8)

    def prefers_right(self: NoveltyExplorer, actions: list[list[int]]) -> torch.Tensor:
        asked.append(actions)
        return torch.tensor(actions).float().sum(1)

    monkeypatch.setattr(NoveltyExplorer, "novelty", prefers_right)
    made = explorer(runs)
    actions = [made.act(frame) for _ in range(40)]
    assert len(asked) == 20 and all(len(way) == 4 for ways in asked for way in ways)  # at every run's end
    for place, ways in enumerate(asked):  # the first run of the best way, held for its steps
        best = max(range(6), key=lambda way: (sum(ways[way]), -way))
        assert actions[2 * place : 2 * place + 2] == ways[best][:2]


def test_imagined_frames_are_judged_by_what_was_seen(runs: Path) -> None:
    made = explorer(runs)
    frame = np.zeros(corridor.SPEC.frame_shape, np.uint8)
    made.act(frame)
    assert made.code_counts.frames == 1 and made.code_counts.counts.sum() == 16
    ways = [[0] * 4, [1] * 4, [0, 1, 0, 1]]
    before = made.novelty(ways)
    assert before.shape == (3,) and (before > 0).all() and before.unique().numel() > 1
    made.code_counts.counts += 1000  # all codes alike: log₂ 16 = 4 bits a place, whatever is imagined
    made.code_counts.frames += 16000
    assert made.novelty(ways).tolist() == pytest.approx([64] * 3, rel=1e-3)
    made.begin(("left", "right"), np.random.default_rng(1))
    assert made.code_counts.frames > 16000  # other episodes count


def test_it_collects_through_the_command(say: Say, runs: Path, tmp_path: Path) -> None:
    words = (*corridor.CHOOSE, "explorer=novelty", f"runs={runs}", "explorer.num_sequences=2", "explorer.horizon=3")
    assert "distinct places" in say(collect, *words, "--steps", "40")
    assert EpisodeStore.open(tmp_path / "data" / "corridor-corridor-v0").steps == 40


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["runs=nothing"], "there are no runs in nothing"),
        (["explorer.run=gone"], "unknown run 'gone'"),
        (["explorer.num_sequences=0"], "explorer.num_sequences is 0; it must be at least 1"),
        (["env.action_names=[up,down]"], "was trained with the actions left, right, and this environment has up, down"),
    ],
)
def test_what_cannot_be_is_one_line(argv: list[str], message: str, say: Say, runs: Path) -> None:
    words = [*corridor.CHOOSE, "explorer=novelty", *argv]
    err = say(collect, *words, *([] if "runs=nothing" in argv else [f"runs={runs}"]), "--steps", "20", code=2)
    assert message in err


def test_numbers_out_of_range_are_refused(runs: Path) -> None:
    with pytest.raises(ConfigError, match=r"horizon is 2\.5"):
        NoveltyExplorer(folder=runs, horizon=2.5)  # type: ignore[arg-type]
