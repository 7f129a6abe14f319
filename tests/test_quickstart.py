"""The journey of a new user through the real command line, in small: collect, train, dream, evaluate, again."""

from __future__ import annotations

from pathlib import Path

import pytest

from worldmodel import quickstart
from worldmodel.__main__ import main

SMALL = [
    "collect.steps=700",
    "collect.workers=1",
    "collect.longest=60",
    "tokenizer.widths=[8,16,16]",
    "tokenizer.blocks=1",
    "prior.trunk.width=16",
    "prior.trunk.blocks=1",
    "prior.head.width=16",
]


def test_too_small_a_budget_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert quickstart.main(["--minutes", "1"]) == 2
    assert "--minutes 1 leaves no time" in capsys.readouterr().err


def test_collect_train_dream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = [f"data={tmp_path}/data", f"runs={tmp_path}/runs", *SMALL]
    assert main(["collect", *where]) == 0
    steps = ["training.tokenizer.steps=3", "training.prior.steps=3"]
    assert main(["train", *steps, *where]) == 0
    assert main(["dream", "--actions", "forward*2,left*2", *where]) == 0
    for suffix in (".mp4", ".gif", ".png"):
        assert list((tmp_path / "runs").glob(f"*/dreams/*{suffix}"))
    capsys.readouterr()
    assert main(["dream", "--actions", "forwards", *where]) == 2
    assert capsys.readouterr().err.strip() == (
        "error: unknown action 'forwards'; this run knows noop, forward, left, right"
    )
