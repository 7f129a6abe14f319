"""Runs on disk: made whole, found by name or age, read with one clear line; models built from settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from worldmodel.errors import ConfigError, RunError
from worldmodel.runs import folder as runs_module
from worldmodel.runs.folder import CONFIG, PRIOR, SPEC, TOKENIZER, find_run, list_runs, load_config, load_spec, new_run
from worldmodel.runs.models import build_tokenizer, load_tokenizer, load_weights, resolve_device
from worldmodel.tokenizers import VQVAE
from worldmodel.training.checkpoint import save_tensors
from worldmodel.types import Spec

SPEC_HERE = Spec("toy/Env-v0", (3, 16, 16), ("noop", "left"), 8.75, {"level": 3})


def settings(tmp_path: Path, **changes) -> DictConfig:
    config = OmegaConf.create(
        {
            "env": {"name": "toy"},
            "runs": str(tmp_path / "runs"),
            "run": None,
            "tokenizer": {
                "_target_": "worldmodel.tokenizers.VQVAE",
                "quantizer": {"_target_": "worldmodel.quantizers.VectorQuantizer", "_partial_": True, "width": 4},
                "num_codes": 16,
                "widths": [8, 8],
                "blocks": 1,
            },
            "prior": {"_target_": "worldmodel.priors.Prior"},
            "training": {},
        }
    )
    return OmegaConf.merge(config, OmegaConf.create(changes))  # type: ignore[return-value]


def age(folder: Path, seconds: int) -> None:
    stamp = (folder / SPEC).stat().st_mtime - seconds
    os.utime(folder / SPEC, (stamp, stamp))


def test_new_runs_are_numbered_and_hold_settings_and_spec(tmp_path: Path) -> None:
    config = settings(tmp_path)
    first, second = new_run(config, SPEC_HERE), new_run(config, SPEC_HERE)
    assert (first.name, second.name) == ("toy-1", "toy-2")
    assert load_config(first) == config and load_spec(first) == SPEC_HERE
    assert sorted(path.name for path in first.iterdir()) == [CONFIG, SPEC]
    assert sorted(path.name for path in first.parent.iterdir()) == ["toy-1", "toy-2"]  # no draft is left


def test_a_named_run_is_never_overwritten(tmp_path: Path) -> None:
    config = settings(tmp_path, run="mine")
    folder = new_run(config, SPEC_HERE)
    with pytest.raises(RunError, match="'mine' exists already"):
        new_run(config, SPEC_HERE)
    assert load_spec(folder) == SPEC_HERE
    for name in ("../mine", "a/b", ".", ""):
        with pytest.raises(RunError, match="plain name"):
            new_run(settings(tmp_path, run=name), SPEC_HERE)


def test_a_failed_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, config: DictConfig) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs_module, "save_config", full)
    with pytest.raises(OSError):
        new_run(settings(tmp_path), SPEC_HERE)
    assert list((tmp_path / "runs").iterdir()) == []


def test_find_run_by_name_path_and_age(tmp_path: Path) -> None:
    config = settings(tmp_path)
    one, two, three = (new_run(config, SPEC_HERE) for _ in range(3))
    runs = tmp_path / "runs"
    assert find_run(runs) == three  # the same tick of the clock perhaps: the number decides
    age(three, 100)
    assert list_runs(runs) == ["toy-3", "toy-1", "toy-2"]
    assert find_run(runs) == two
    assert find_run(runs, "toy-1") == one
    assert find_run("elsewhere", one) == one
    (one / PRIOR).touch()
    assert find_run(runs, holding=PRIOR) == one
    (runs / "rubbish").mkdir()  # no settings: not a run
    with pytest.raises(RunError, match=r"^unknown run 'rubbish'; .* has toy-3, toy-1, toy-2$"):
        find_run(runs, "rubbish")


def test_no_run_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there are no runs in .*nowhere; train first: python -m worldmodel\.train"):
        find_run(tmp_path / "nowhere")
    new_run(settings(tmp_path), SPEC_HERE)
    with pytest.raises(RunError, match=r"has prior\.safetensors yet \(toy-1\); finish the training .* run=toy-1"):
        find_run(tmp_path / "runs", holding=PRIOR)


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "",
        "just text",
        "tokenizer: {}",
        "\x00\x01",
        "!!python/object:os.system {}",
        "{tokenizer: {}, prior: {}, training: tok}",
        "tokenizer: {}\nprior: {}\ntraining:\n  tokenizer: {steps: 1}\n  prior: st",  # cut, with its checksum
    ],
)
def test_damaged_settings_are_one_line(tmp_path: Path, text: str) -> None:
    folder = new_run(settings(tmp_path), SPEC_HERE)
    (folder / CONFIG).write_text(text)
    with pytest.raises(RunError, match=r"config\.yaml is damaged") as caught:
        load_config(folder)
    assert "\n" not in str(caught.value)


def test_a_changed_number_in_the_settings_is_noticed(tmp_path: Path) -> None:
    folder = new_run(settings(tmp_path), SPEC_HERE)
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("blocks: 1", "blocks: 2"))
    with pytest.raises(RunError, match=r"damaged \(wrong checksum; if you edited it, remove its last line\)"):
        load_config(folder)
    (folder / CONFIG).write_text(text.replace("blocks: 1", "blocks: 2").rpartition("# crc32")[0])
    assert load_config(folder).tokenizer.blocks == 2


def test_damaged_spec_is_one_line(tmp_path: Path) -> None:
    folder = new_run(settings(tmp_path), SPEC_HERE)
    for content in (b"{", b"\xff\xfe", b"[]"):
        (folder / SPEC).write_bytes(content)
        with pytest.raises(RunError, match=r"spec\.json is missing or damaged"):
            load_spec(folder)


def test_tokenizer_survives_save_and_load_bit_for_bit(tmp_path: Path) -> None:
    config = settings(tmp_path)
    folder = new_run(config, SPEC_HERE)
    tokenizer = build_tokenizer(config, SPEC_HERE)
    assert isinstance(tokenizer, VQVAE) and tokenizer.grid == (4, 4)
    frames = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    tokenizer(frames, torch.Generator().manual_seed(0))  # lays the codebook on data
    save_tensors(folder / TOKENIZER, tokenizer.state_dict(), {"steps": 1})
    loaded = load_tokenizer(folder)
    assert torch.equal(loaded.encode(frames), tokenizer.eval().encode(frames))
    codes = loaded.encode(frames)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_missing_weights_say_how_to_get_them(tmp_path: Path) -> None:
    folder = new_run(settings(tmp_path), SPEC_HERE)
    with pytest.raises(RunError, match=r"tokenizer\.safetensors is missing; train it: .* run=toy-1"):
        load_tokenizer(folder)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_tensors(path, nn.Linear(3, 2).state_dict())
    with pytest.raises(RunError, match=r"bias is \(2,\) where \(4,\) is expected and 1 more; train first"):
        load_weights(nn.Linear(3, 4), path, "train first")
    with pytest.raises(RunError, match="bias is unknown"):
        load_weights(nn.Linear(3, 2, bias=False), path, "train first")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_target_": "worldmodel.tokenizers.Nothing"}, "tokenizer._target_ is .*Nothing., which cannot be imported"),
        ({"_target_": "os.system"}, "os.system is not a module of PyTorch"),
        ({"quantizer": {"_target_": "builtins.print"}}, "tokenizer.quantizer._target_: builtins.print is not a module"),
        ({"_target_": "torch.nn.Identity"}, "torch.nn.Identity, which is no Autoencoder"),
        ({"width": 3}, "there is no tokenizer.width; choose frame_shape"),
        ({"widths": [8] * 5}, "16×16 cannot be halved 5 times"),
        ({"quantizer": {"update": "magic"}}, "tokenizer.quantizer.update is 'magic'; choose ema, loss"),
    ],
)
def test_models_that_cannot_be_built(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_tokenizer(settings(tmp_path, tokenizer=change), SPEC_HERE)
    assert "\n" not in str(caught.value)


def test_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device 'cuda' is not available here; choose auto, cpu"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda:0") and resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="choose auto, cpu, cuda, cuda:0, cuda:1"):
        resolve_device("cuda:2")
