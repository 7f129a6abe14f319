"""The programs of examples/, each run through its ``main`` at a tiny size, on one run of a world and one of speech."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from sounds import put, voice

from worldmodel.config.cli import compose_config
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError
from worldmodel.runs.folder import TOKENIZER, new_run
from worldmodel.runs.models import build_tokenizer, load_tokenizer
from worldmodel.speech.sound import read_sound
from worldmodel.training.checkpoint import save_tensors
from worldmodel.types import Spec

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = ["env.size=16", "device=cpu", "tokenizer.widths=[8,8]", "tokenizer.blocks=1", "tokenizer.num_codes=16",
        "prior.trunk.width=16", "prior.trunk.blocks=1", "prior.head.width=16", "training.tokenizer.steps=2",
        "training.prior.steps=2", "training.tokenizer.evaluate_batches=1",
        "training.prior.evaluate_batches=1"]  # fmt: skip


def example(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """As for ``python examples/NAME.py``, also in the processes that play."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        for path in EXAMPLES.glob("*.py"):  # other tests have modules of the same names
            patch.delitem(sys.modules, path.stem, raising=False)
        yield
        for path in EXAMPLES.glob("*.py"):
            sys.modules.pop(path.stem, None)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, importable: None) -> Path:
    """A folder in which own_environment.py was run."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert example("own_environment").main(*TINY, "collect.steps=400", "collect.workers=1") == 0
    return folder


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its run, seen from the folder."""
    monkeypatch.chdir(home)
    return "runs/own-environment-squares-v0-1"


def test_every_example_is_short_and_tested_here() -> None:
    text = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.stem}"' in text
        assert len(path.read_text().splitlines()) < 60, path
        assert f"python examples/{path.name}" in path.read_text()


def test_an_environment_is_recorded_learnt_and_dreamt(run: str) -> None:
    store = EpisodeStore.open("data/own-environment-squares-v0")
    assert store.spec.action_names == ("noop", "up", "down", "left", "right") and store.steps == 400
    assert {path.suffix for path in Path(run, "dreams").iterdir()} == {".mp4", ".gif", ".png"}


def test_a_quantizer_is_trained(run: str) -> None:
    environment = example("own_environment").SETTINGS[:2]
    assert example("own_tokenizer").main(*environment, *TINY, "--stage", "tokenizer") == 0
    tokenizer = load_tokenizer(Path("runs/binary"))
    codes = tokenizer.encode(torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8))
    assert tokenizer.codebook().shape == (16, 4) and codes.min() >= 0 and codes.max() < 16


def test_a_quantizer_passes_gradients_and_inverts_its_codes() -> None:
    quantizer = example("own_tokenizer").BinaryQuantizer(num_codes=16)
    codes = torch.arange(16)
    assert torch.equal(quantizer.encode(quantizer.lookup(codes)), codes)
    vectors = torch.randn(3, 4, requires_grad=True)
    quantized = quantizer(vectors)
    assert torch.allclose(quantized.vectors, quantizer.lookup(quantized.codes))
    quantized.vectors.sum().backward()
    assert torch.equal(vectors.grad, torch.ones(3, 4))
    with pytest.raises(ConfigError, match="power of two"):
        example("own_tokenizer").BinaryQuantizer(num_codes=12)


def test_a_dream_is_saved(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("dream_and_save").main(run, str(tmp_path / "dream"))
    assert {path.name for path in tmp_path.iterdir()} == {"dream.mp4", "dream.png"}
    assert "mean absolute difference" in capsys.readouterr().out


def test_a_planner_plays(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    rewards = example("plan_with_mpc").main(run, 9)
    assert 1 <= len(rewards) <= 9 and set(rewards) <= {0.0, 1.0}
    assert f"return {sum(rewards):.3f} in {len(rewards)} steps" in capsys.readouterr().out


def test_ppo_learns_in_the_dream(run: str) -> None:
    pytest.importorskip("stable_baselines3", reason="needs stable-baselines3")
    mean = example("ppo_in_the_dream").main(run, 200, policy="MlpPolicy", num_envs=4, horizon=50)
    assert 0 <= mean <= 1


def test_a_voice_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = compose_config(["experiment=vctk-spectra", "source.path=unused", f"runs={tmp_path / 'runs'}", "run=tiny",
                             "tokenizer.widths=[8,8,8]", "tokenizer.num_codes=8", "tokenizer.condition_width=4",
                             "tokenizer.quantizer.width=4", "tokenizer.likelihood.iterations=2"])  # fmt: skip
    spec = Spec("vctk", (1, 640), ("p225", "p226"), 25.0)
    torch.manual_seed(0)
    folder = new_run(config, spec)
    save_tensors(folder / TOKENIZER, build_tokenizer(config, spec).state_dict())
    wave = put(tmp_path / "in.wav", voice(0.3))
    example("convert_a_voice").main(wave, "p226", folder, tmp_path / "out.wav")
    converted = read_sound(tmp_path / "out.wav")
    assert len(converted) == len(read_sound(wave)) and np.abs(converted).max() > 0
    assert "speakers p225, p226" in capsys.readouterr().out
