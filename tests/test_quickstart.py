"""The journey of a new user through the real command line, in small: collect, train, dream, evaluate, again."""

from __future__ import annotations

from pathlib import Path

import pytest

from worldmodel import quickstart
from worldmodel.__main__ import main
from worldmodel.types import Spec

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


@pytest.mark.parametrize("minutes", ["1", "inf", "nan"])
def test_a_budget_that_is_none_is_named(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert quickstart.main(["--minutes", minutes]) == 2
    assert f"--minutes {minutes} is no budget" in capsys.readouterr().err


def test_an_error_in_the_actions_is_reported_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [f"data={tmp_path}/data", f"runs={tmp_path}/runs", *SMALL]
    assert quickstart.main(["--actions", "forwards", *where]) == 2
    assert "unknown action 'forwards'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("prior=pixelcnn", "dreams need a tokenizer of codes and a prior that reads earlier frames"),
        ("tokenizer=vae", "VAE makes no codes, and this prior is over codes; choose prior=gaussian"),
    ],
)
def test_what_cannot_dream_is_reported_before_anything_is_collected(
    choice: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quickstart.main([f"data={tmp_path}/data", f"runs={tmp_path}/runs", choice]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_dreamt_of_by_default_fits_the_environment() -> None:
    doom = Spec("doom", (3, 64, 64), ("noop", "forward", "left", "right"), 8.75)
    assert quickstart.script(None, doom) == "forward*8,left*8,forward*8,right*8"
    basic = Spec("basic", (3, 64, 64), ("noop", "move_left", "attack"), 8.75)
    assert quickstart.script(None, basic) == "noop,move_left,attack"
    assert quickstart.script("attack*3", basic) == "attack*3"


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
    assert capsys.readouterr().err.strip() == "error: unknown action 'forwards'; choose noop, forward, left, right"
