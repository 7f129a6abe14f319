"""Training a whole world model on a world that is known exactly: stages, continuation, refusals."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from moving_square import SPEC, record
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from worldmodel.config.cli import compose_config
from worldmodel.data.codes import encode_store
from worldmodel.data.store import EpisodeStore
from worldmodel.dreaming.models import ImageModel
from worldmodel.errors import BusyError, ConfigError, DataError, RunError
from worldmodel.runs.folder import claim, load_config
from worldmodel.runs.models import load_prior, load_tokenizer
from worldmodel.runs.resume import fixed_settings
from worldmodel.runs.training import train
from worldmodel.train import main
from worldmodel.training.base import make_batches
from worldmodel.training.checkpoint import load_tensors
from worldmodel.training.fit import Fit
from worldmodel.training.hooks import Checkpoint, Measure, read_json_lines
from worldmodel.types import Segment
from worldmodel.world import WorldModel

QUICK = {"steps": 30, "batch": 4, "precision": "fp32", "log_every": 5, "evaluate_every": 20, "evaluate_batches": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    with EpisodeStore.writer(path, SPEC) as store:
        for seed in range(11):  # one is held out
            store.append(record(seed))
    return path


def settings(data: Path, runs: Path, **changes) -> DictConfig:
    """A tiny model; ``changes`` are dotted names with ``__`` for the dot."""
    partial = {"_partial_": True}
    quantizer = {"_target_": "worldmodel.quantizers.VectorQuantizer", "width": 4, **partial}
    config = OmegaConf.create(
        {
            "env": {"name": "square"},
            "data": str(data),
            "runs": str(runs),
            "run": None,
            "device": "cpu",
            "seed": 0,
            "tokenizer": {
                "_target_": "worldmodel.tokenizers.VQVAE",
                "quantizer": quantizer,
                "num_codes": 16,
                "widths": [8, 8],
                "blocks": 1,
            },
            "prior": {
                "_target_": "worldmodel.priors.Prior",
                "trunk": {"_target_": "worldmodel.priors.ConvTrunk", "width": 16, "blocks": 1, "history": 2, **partial},
                "head": {"_target_": "worldmodel.heads.TransformerHead", "width": 16, "heads": 2, **partial},
            },
            "training": compose_config().training,
        }
    )
    for stage in ("tokenizer", "prior"):
        config.training[stage].update(QUICK)
    config.tokenizer.loss_weights = {"commitment": 0.25}
    config.prior.loss_weights = {"forecast": 0.2, "reward": 0.1, "end": 0.1}
    for name, value in changes.items():
        OmegaConf.update(config, name.replace("__", "."), value)
    return config


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(settings(data, tmp_path_factory.mktemp("runs")))


def test_a_prior_without_a_past_or_outcomes_is_trained_and_drawn_from(data: Path, tmp_path: Path) -> None:
    part = {"_partial_": True}
    prior = {
        "_target_": "worldmodel.priors.Prior",
        "context": 0,
        "outcomes": False,
        "trunk": {"_target_": "worldmodel.priors.ConditionTrunk", "width": 8, **part},
        "head": {"_target_": "worldmodel.heads.PixelCNNHead", "width": 16, "layers": 2, **part},
    }
    config = settings(data, tmp_path)
    config.prior = {**prior, "loss_weights": {"forecast": 0.2}}
    folder = train(config)
    lines = [line for line in read_json_lines(folder / "metrics.jsonl") if line["stage"] == "prior"]
    names = {name.rpartition("train_")[2] for line in lines for name in line}
    assert {"codes", "forecast", "bits_per_frame"} <= names and not {"reward", "end"} & names
    model = ImageModel.load(folder, "cpu")
    drawn = model.sample(torch.tensor([0, 1]), torch.Generator().manual_seed(0))
    assert drawn.frames.shape == (2, *SPEC.frame_shape)
    config.prior.loss_weights = {"reward": 0.1}
    with pytest.raises(ConfigError, match="a weight for the loss term 'reward'; the terms are codes, forecast"):
        train(config)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    """From now on training is asked to stop after a step, by a signal, as from a scheduler."""
    original = Checkpoint.on_step

    def on_step(self: Checkpoint, fit: Fit) -> None:
        original(self, fit)
        if (fit.stage, fit.step) == (stage, step):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoint, "on_step", on_step)


def test_a_run_holds_the_planned_files(finished: Path) -> None:
    assert finished.name == "square-1"
    names = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "spec.json",
        "tokenizer.safetensors",
        "prior.safetensors",
        "metrics.jsonl",
        "metrics.png",
    } <= names
    assert {"checkpoints/tokenizer.safetensors", "checkpoints/prior.safetensors"} <= names
    assert any(name.startswith("tensorboard/") for name in names)
    assert not [name for name in names if ".part" in name or ".tmp" in name]
    assert load_tensors(finished / "tokenizer.safetensors", "")[1]["steps"] == 30


def test_metrics_of_both_stages_are_logged(finished: Path) -> None:
    lines = read_json_lines(finished / "metrics.jsonl")
    for stage, names in (
        ("tokenizer", {"loss", "reconstruction", "commitment", "psnr", "usage", "perplexity", "gradient_norm"}),
        ("prior", {"loss", "codes", "reward", "end", "bits_per_frame"}),
    ):
        mine = [line for line in lines if line["stage"] == stage and "loss" in line]
        assert [line["step"] for line in mine] == [5, 10, 15, 20, 25, 30]
        assert names <= set(mine[0])
        assert mine[-1]["loss"] < mine[0]["loss"]
        held_out = [line["step"] for line in lines if line["stage"] == stage and "loss" not in line]
        assert held_out == [20, 30]


def test_models_of_a_run_load_and_fit_together(finished: Path) -> None:
    tokenizer = load_tokenizer(finished)
    prior = load_prior(finished, tokenizer)
    frames = torch.randint(256, (4, *SPEC.frame_shape), dtype=torch.uint8)
    codes = tokenizer.encode(frames)[None]
    assert codes.shape == (1, 4, 4, 6)
    likelihood = prior.log_likelihood(codes, torch.zeros(1, 4, dtype=torch.int64))
    assert likelihood.shape == (1, 4) and bool((likelihood < 0).all())


def test_finished_run_is_left_alone(finished: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    assert train(settings(data, finished.parent)) == finished
    assert {path: path.stat().st_mtime_ns for path in before} == before
    out = capsys.readouterr().out
    assert "tokenizer is trained already" in out and "run=another-name" in out


@pytest.mark.parametrize("stage", ["tokenizer", "prior"])
def test_interrupted_training_goes_on_and_ends_the_same(
    stage: str, finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, stage, 13)
        with pytest.raises(KeyboardInterrupt):
            train(settings(data, tmp_path))
    assert not (tmp_path / "square-1" / f"{stage}.safetensors").exists()
    folder = train(settings(data, tmp_path))
    assert folder == tmp_path / "square-1"
    for name in ("tokenizer.safetensors", "prior.safetensors"):
        expected, _ = load_tensors(finished / name, "")
        found, _ = load_tensors(folder / name, "")
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
    losses = [
        [line.get("loss") for line in read_json_lines(run / "metrics.jsonl") if "loss" in line]
        for run in (finished, folder)
    ]
    assert losses[0] == losses[1]


def test_the_motion_of_a_pose_memory_is_estimated_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = {"_target_": "worldmodel.priors.pose.PoseMemory", "_partial_": True, "window": 6, "recent": 2}
    config = settings(data, tmp_path, prior__trunk__pose={**memory, "windows": 10, "steps": 2})
    with monkeypatch.context() as patch:
        interrupt_at(patch, "prior", 13)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert capsys.readouterr().out.count("motion of the camera") == 1
    checkpoint, _ = load_tensors(tmp_path / "square-1" / "checkpoints" / "prior.safetensors", "")
    folder = train(config)
    assert "motion of the camera" not in capsys.readouterr().out
    weights, _ = load_tensors(folder / "prior.safetensors", "")
    names = [name for name in weights if name.startswith("trunk.pose.")]
    assert weights["trunk.pose.scale"] > 0 and len(names) == 5
    for name in names:
        assert torch.equal(weights[name], next(value for key, value in checkpoint.items() if key.endswith(name)))
    assert WorldModel.load(folder, device="cpu").prior.lead == 6


def test_other_settings_start_another_run(data: Path, tmp_path: Path) -> None:
    def tokenizer(**changes) -> str:
        return train(settings(data, tmp_path, training__tokenizer__steps=2, **changes), "tokenizer").name

    assert tokenizer() == "square-1"
    assert tokenizer() == "square-1"
    assert tokenizer(seed=1) == "square-2"
    assert tokenizer(seed=1, run="mine") == "mine"
    with pytest.raises(ConfigError, match=r"'mine' was started with other settings \(tokenizer.blocks was 1, now 2\)"):
        tokenizer(seed=1, run="mine", tokenizer__blocks=2)
    path = tmp_path / "mine" / "config.yaml"
    path.write_text("".join(line for line in path.open() if "rewarded" not in line and "crc32" not in line))
    assert tokenizer(seed=1, run="mine") == "mine"
    with pytest.raises(ConfigError, match=r"\(training.tokenizer.rewarded was 0.0, now 0.5\)"):
        tokenizer(seed=1, run="mine", training__tokenizer__rewarded=0.5)


def test_an_unfinished_run_accepts_another_budget(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, "tokenizer", 4)
        with pytest.raises(KeyboardInterrupt):
            train(settings(data, tmp_path), "tokenizer")
    folder = train(settings(data, tmp_path, training__tokenizer__steps=8), "tokenizer")
    assert folder.name == "square-1"
    assert load_tensors(folder / "tokenizer.safetensors", "")[1]["steps"] == 8


def test_more_steps_continue_a_finished_stage(finished: Path, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "square-1")
    before = (folder / "tokenizer.safetensors").read_bytes()

    def prior(steps: int, **changes) -> tuple[int, int, int]:
        """Steps that the settings, the weights and the metrics state."""
        changes |= {"run": "square-1", "training__prior__steps": steps}
        assert train(settings(data, tmp_path, **changes)) == folder
        facts = load_tensors(folder / "prior.safetensors", "")[1]
        made = max(line["step"] for line in read_json_lines(folder / "metrics.jsonl") if line["stage"] == "prior")
        return load_config(folder).training.prior.steps, facts["steps"], made

    assert prior(20) == (30, 30, 30)
    assert prior(60) == (60, 60, 60)
    assert prior(60, training__prior__max_seconds=1e6) == (60, 60, 60)
    assert (folder / "tokenizer.safetensors").read_bytes() == before
    WorldModel.load(folder, device="cpu")


def test_more_steps_that_cannot_be_added_are_refused_and_nothing_is_written(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "square-1")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    longer = settings(data, tmp_path, run="square-1", training__tokenizer__steps=60)
    with pytest.raises(
        RunError,
        match=r"trained for 30 steps, and \S*prior\.safetensors depends .* --weights-of square-1, or .* --stage prior",
    ):
        train(longer)
    assert train(longer, more=False) == folder
    (folder / "checkpoints/prior.safetensors").unlink()
    with pytest.raises(RunError, match=r"the prior of square-1 was trained for 30 steps, and has no checkpoint to"):
        train(settings(data, tmp_path, run="square-1", training__prior__steps=60))
    del before[folder / "checkpoints/prior.safetensors"]
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_continuation_goes_on(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(finished, tmp_path / "square-1")
    longer = settings(data, tmp_path, run="square-1", training__prior__steps=60)
    with monkeypatch.context() as patch:
        interrupt_at(patch, "prior", 45)
        with pytest.raises(KeyboardInterrupt):
            train(longer)
    assert load_config(folder).training.prior.steps == 30  # as the weights
    assert train(longer) == folder
    assert load_tensors(folder / "prior.safetensors", "")[1]["steps"] == 60
    assert load_config(folder).training.prior.steps == 60


def test_a_run_is_trained_by_one_process(finished: Path, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "square-1")
    (folder / "prior.safetensors").unlink()
    before = (folder / "config.yaml").read_bytes()
    short = {"training__prior__steps": 2, "training__tokenizer__steps": 2}
    with claim(folder):
        with pytest.raises(BusyError, match=r"another process is training \S*square-1; wait for it, or .* run=…"):
            train(settings(data, tmp_path, run="square-1"))
        assert (folder / "config.yaml").read_bytes() == before
        assert train(settings(data, tmp_path, **short)).name == "square-2"
    assert train(settings(data, tmp_path, run="square-1")) == folder
    claim(folder).close()  # released after training


def test_a_copied_tokenizer_keeps_its_budget(finished: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "one")
    other = {"run": "two", "training__tokenizer__steps": 99, "training__prior__steps": 2, "prior__trunk__width": 8}
    folder = train(settings(data, tmp_path, **other), tokenizer_of="one")
    assert load_config(folder).training.tokenizer.steps == 30
    assert train(settings(data, tmp_path, **other)) == folder


def test_a_stage_with_patience_hands_over_its_best_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.0])
    monkeypatch.setattr(Measure, "__call__", lambda self, objective: {"held_out_loss": next(losses)})
    patient = {"training__tokenizer__patience": 1, "training__tokenizer__evaluate_every": 4}
    folder = train(settings(data, tmp_path, **patient), "tokenizer")
    facts = load_tensors(folder / "tokenizer.safetensors", "")[1]
    assert facts["steps"] == 13 and facts["kept_step"] == 8
    best, _ = load_tensors(folder / "checkpoints/best-tokenizer.safetensors", "")
    own = load_tokenizer(folder).state_dict()
    assert all(torch.equal(own[name], best[f"tokenizer.{name}"]) for name in own)


def test_training_begins_with_the_weights_of_a_run(finished: Path, data: Path, tmp_path: Path) -> None:
    still = {f"training.{stage}.{name}": value for stage in ("tokenizer", "prior") for name, value in
             {"learning_rate": 1e-12, "weight_decay": 0.0, "steps": 1, "ema": 0}.items()}  # fmt: skip
    shutil.copytree(finished, tmp_path / "one")
    known = settings(data, tmp_path, run="two", **still)
    folder = train(known, weights_of="one")
    for name, part in (("tokenizer", "decoder"), ("prior", "trunk")):
        there, here = (load_file(run / f"{name}.safetensors") for run in (finished, folder))
        parts = [key for key in here if key.startswith(part)]
        assert parts and all(torch.allclose(here[key], there[key], atol=1e-6) for key in parts)
    fresh = load_file(train(settings(data, tmp_path, run="three", **still)) / "prior.safetensors")
    assert not all(torch.allclose(fresh[key], here[key], atol=1e-3) for key in parts)
    with pytest.raises(ConfigError, match=r"start from the weights of one: tokenizer\.num_codes was"):
        train(settings(data, tmp_path, run="four", **{"tokenizer.num_codes": 5}), weights_of="one")
    with pytest.raises(RunError, match="unknown run 'none'"):
        train(settings(data, tmp_path, run="four"), weights_of="none")
    assert not (tmp_path / "four").exists()


def test_a_run_whose_loss_weights_were_settings_of_its_training_goes_on(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    """As earlier versions wrote it, with weights for a stage that the settings do not have."""
    folder = shutil.copytree(finished, tmp_path / "square-1")
    config = OmegaConf.load(folder / "config.yaml")
    for stage in ("tokenizer", "prior"):
        config.training[stage].weights = config[stage].pop("loss_weights")
    config.training.second.weights = {"commitment": 0.25, "forecast": 0.2}
    OmegaConf.save(config, folder / "config.yaml")
    known = load_config(folder)
    assert known.tokenizer.loss_weights == {"commitment": 0.25}
    assert known.prior.loss_weights == {"forecast": 0.2, "reward": 0.1, "end": 0.1}
    assert not any("weights" in known.training[stage] for stage in known.training)
    assert train(settings(data, tmp_path)) == folder


def test_prior_needs_a_tokenizer(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"tokenizer\.safetensors is missing"):
        train(settings(data, tmp_path / "runs"), "prior")
    assert not (tmp_path / "runs").exists()


def test_no_data_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        train(settings(tmp_path / "nothing", tmp_path / "runs"))
    with EpisodeStore.writer(tmp_path / "empty", SPEC):
        pass
    with pytest.raises(DataError, match=r"no finished episode yet; python -m worldmodel\.collect data=.* records more"):
        train(settings(tmp_path / "empty", tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_a_damaged_episode_is_named_once_set_aside_and_skipped(
    finished: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = EpisodeStore.open(shutil.copytree(data, tmp_path / "data"))
    lost = store.entries[store.split("train")[2]]
    with open(store.path / "shard-00000.frames", "r+b") as file:
        file.seek((lost.offset + 3) * 3 * 16 * 24)
        file.write(b"garbage")
    shutil.copytree(finished, tmp_path / "runs" / "square-1")
    (tmp_path / "runs" / "square-1" / "prior.safetensors").unlink()
    (tmp_path / "runs" / "square-1" / "checkpoints" / "prior.safetensors").unlink()
    folder = train(settings(store.path, tmp_path / "runs"))
    assert folder.name == "square-1" and (folder / "prior.safetensors").is_file()
    assert caplog.text.count("left out") == 1 and f"episode {lost.episode} in" in caplog.text
    left = EpisodeStore.open(store.path)
    assert lost not in left.entries and len(left) == 10
    codes = encode_store(left, load_tokenizer(folder), folder / "codes", progress=lambda done, of: pytest.fail("new"))
    assert len(codes.codes) == left.frames


@pytest.mark.parametrize("damage", ["cut", "flipped"])
@pytest.mark.parametrize("name", ["tokenizer.safetensors", "prior.safetensors"])
def test_damaged_weights_come_back_from_the_checkpoint(
    name: str, damage: str, finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(finished, tmp_path / "square-1") / name
    whole, before = path.read_bytes(), load_tensors(finished / name, "")[0]
    path.write_bytes(whole[:-9] if damage == "cut" else whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    for use in (lambda: train(settings(data, tmp_path)), lambda: WorldModel.load(path.parent, device="cpu")):
        with pytest.raises(RunError, match=rf"{name} is damaged .*; remove it and continue from the last") as e:
            use()
    assert "run=square-1" in str(e.value) and "\n" not in str(e.value)
    path.unlink()
    assert train(settings(data, tmp_path)) == path.parent
    after = load_tensors(path, "")[0]
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert "going on at step 30" in capsys.readouterr().out


def test_a_prior_of_another_tokenizer_is_refused(finished: Path, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "square-1")
    (folder / "tokenizer.safetensors").unlink()
    train(settings(data, tmp_path, training__tokenizer__steps=33), "tokenizer")  # goes on, and so it is another
    with pytest.raises(RunError, match=r"codes of another tokenizer .* remove it and \S*checkpoints/prior") as caught:
        WorldModel.load(folder, device="cpu")
    for name in ("prior.safetensors", "checkpoints/prior.safetensors"):
        assert name in str(caught.value)
        (folder / name).unlink()
    train(settings(data, tmp_path, training__tokenizer__steps=33))
    WorldModel.load(folder, device="cpu")


def test_a_full_disk_names_the_file_and_keeps_what_was_trained(finished: Path, data: Path, tmp_path: Path) -> None:
    """The limit on the size of a file stands in for the disk."""
    folder = shutil.copytree(finished, tmp_path / "square-1")
    for name in ("prior.safetensors", "checkpoints/prior.safetensors"):
        (folder / name).unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
        with pytest.raises(OSError, match="too large") as caught:
            train(settings(data, tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.filename == str(folder / "checkpoints" / "prior.safetensors")
    assert not [path for path in folder.rglob(".*") if path.is_file()]
    load_tokenizer(folder)
    assert train(settings(data, tmp_path)) == folder and (folder / "prior.safetensors").is_file()


def test_a_tokenizer_is_not_trained_anew_for_a_prior_of_other_codes(finished: Path, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "square-1")
    (folder / "checkpoints" / "tokenizer.safetensors").unlink()
    with open(folder / "tokenizer.safetensors", "r+b") as file:
        file.write(b"garbage")
    with pytest.raises(RunError, match=r"no checkpoint of it; remove it and \S*square-1/prior\.safetensors and ") as e:
        train(settings(data, tmp_path))
    (folder / "tokenizer.safetensors").unlink()
    with pytest.raises(RunError, match=r"prior\.safetensors was trained on the codes of .*later stages"):
        train(settings(data, tmp_path))
    for name in ("prior.safetensors", "checkpoints/prior.safetensors"):
        assert name in str(e.value)
        (folder / name).unlink()
    assert train(settings(data, tmp_path)) == folder


def test_damaged_checkpoint_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, "tokenizer", 4)
        with pytest.raises(KeyboardInterrupt):
            train(settings(data, tmp_path), "tokenizer")
    path = tmp_path / "square-1" / "checkpoints" / "tokenizer.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        RunError, match=r"checkpoints/tokenizer\.safetensors is damaged .* remove it to train this stage again"
    ):
        train(settings(data, tmp_path), "tokenizer")


def test_divergence_is_one_line(data: Path, tmp_path: Path) -> None:
    wild = settings(data, tmp_path, training__tokenizer__learning_rate=1e30, training__tokenizer__warmup_steps=0)
    with pytest.raises(RunError, match=r"lower training\.tokenizer\.learning_rate"):
        train(wild, "tokenizer")


def test_weight_of_a_missing_term_names_the_terms(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'perceptual'; the terms are reconstruction, commitment"):
        train(settings(data, tmp_path, tokenizer__loss_weights={"perceptual": 1.0}), "tokenizer")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer__quantizer__update": "magic"}, "tokenizer.quantizer.update is 'magic'; choose ema, loss"),
        ({"tokenizer__num_codes": 0}, "tokenizer.num_codes is 0; it must be at least 2"),
        ({"tokenizer__widths": [8, 0]}, r"tokenizer.widths is \[8, 0\]; an entry is 0; it must be at least 1"),
        ({"tokenizer__widths": []}, r"tokenizer.widths is \[\]; it must be a list of at least 1"),
        ({"tokenizer__widths": [8] * 5}, "cannot be halved 5 times"),
        ({"tokenizer__flavour": 1}, "there is no tokenizer.flavour; choose frame_shape, "),
        ({"prior__head__heads": 3}, "the prior does not work with these settings: "),
        ({"prior__head__order": "spiral"}, "prior.head.order is 'spiral'; choose checkerboard, quincunx, raster"),
        ({"prior__loss_weights": {"perceptual": 1}}, "'perceptual'; the terms are codes, "),
        ({"training__prior__steps": "many"}, "training.prior.steps is 'many'; it must be a whole number"),
        ({"training__prior__precision": "fp7"}, "training.prior.precision is 'fp7'; choose auto, fp32, bf16"),
        ({"training__prior__decay": "step"}, "training.prior.decay is 'step'; choose cosine, linear, none"),
        ({"training__prior__targets": 0}, "training.prior.targets is 0; it must be at least 1"),
        ({"training__prior__ema": float("nan")}, "training.prior.ema is nan; it must be a finite number"),
        ({"training__prior__learning_rate": 1e300}, "training.prior.learning_rate is 1e.300; it must be at most 1e.30"),
        ({"training__prior__betas": [0.9] * 3}, r"training.prior.betas is \[.*\]; it must be a list of at most 2"),
        ({"prior__loss_weights": 3}, "prior.loss_weights is 3; it must be values by name"),
        ({"prior__loss_weights": {"end": -1}}, "prior.loss_weights.end is -1; it must be at least 0"),
        ({"training__prior__speed": 1}, "there is no training.prior.speed; choose steps, max_seconds, "),
        ({"training__tokenizer__length": 0}, "training.tokenizer.length is 0; it must be at least 1"),
        ({"training__tokenizer": None}, "the setting training.tokenizer.steps is missing"),
    ],
)
def test_what_does_not_work_is_reported_before_anything_is_trained_or_written(
    changes: dict, message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(settings(data, tmp_path / "runs", **changes))
    assert not (tmp_path / "runs").exists()


def test_a_run_goes_on_when_an_episode_more_or_less_changes_the_window_of_its_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EpisodeStore.writer(tmp_path / "data", SPEC) as store:
        for seed in range(6):
            store.append(record(seed))
    with monkeypatch.context() as patch:
        interrupt_at(patch, "tokenizer", 4)
        with pytest.raises(KeyboardInterrupt):
            train(settings(tmp_path / "data", tmp_path), "tokenizer")
    with EpisodeStore.writer(tmp_path / "data", SPEC) as store:
        store.append(record(6))
    folder = train(settings(tmp_path / "data", tmp_path), "tokenizer")
    assert load_tensors(folder / "tokenizer.safetensors", "")[1]["steps"] == 30


def test_essence_leaves_out_budgets_and_machines(data: Path, tmp_path: Path) -> None:
    base = fixed_settings(settings(data, tmp_path))
    assert base == fixed_settings(settings(data, tmp_path, training__prior__steps=7, device="cuda"))
    assert base != fixed_settings(settings(data, tmp_path, training__prior__batch=7))
    assert base["tokenizer.num_codes"] == 16


def test_batches_are_a_function_of_step_and_rank() -> None:
    def sample(size: int, generator: torch.Generator) -> Segment:
        numbers = torch.randint(0, 1000, (size, 1), generator=generator)
        flags = torch.zeros(size, 1, dtype=torch.bool)
        return Segment(numbers, flags.float(), flags, flags, ~flags)

    first, second = make_batches(sample, 8, seed=0, rank=0), make_batches(sample, 8, seed=0, rank=1)
    assert torch.equal(first(5).actions, first(5).actions)
    assert not torch.equal(first(5).actions, first(6).actions)
    assert not torch.equal(first(5).actions, second(5).actions)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "0"], "--steps is 0; it must be at least 1"),
        (["--minutes", "-1"], "--minutes is -1; it must be above 0"),
        (["device=tpu"], "device 'tpu' is not available here"),
        (["data=nowhere"], "nowhere"),
        (["training.tokenizer.precision=fp7"], "training.tokenizer.precision is 'fp7'; choose auto, fp32, bf16"),
        (["training.devices=2"], "training.devices"),
        (["tokenizer._target_=nowhere.X"], "tokenizer._target_ is 'nowhere.X', which cannot be imported"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    argv: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"data={data}", f"runs={tmp_path}", "device=cpu", *argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_the_error_is_reported_to_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert main(["data=nowhere", f"runs={tmp_path}", "device=cpu"]) == 2
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(tmp_path / "error.json"))
    report = ChildFailedError("worldmodel.train", {0: failure}).format_msg()
    assert "error: no data at nowhere; python -m worldmodel.collect" in report


def test_minutes_are_shared_between_the_stages(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[DictConfig] = []
    monkeypatch.setattr("worldmodel.runs.training.train", lambda config, *rest: seen.append(config))
    assert main([f"data={data}", "--minutes", "3", "--steps", "9"]) == 0
    assert (seen[0].training.tokenizer.max_seconds, seen[0].training.prior.max_seconds) == pytest.approx((54, 126))
    assert seen[0].training.prior.steps == seen[0].training.tokenizer.steps == 9
    assert main([f"data={data}", "--minutes", "3", "--stage", "prior"]) == 0
    assert (seen[1].training.tokenizer.max_seconds, seen[1].training.prior.max_seconds) == (None, 180)
