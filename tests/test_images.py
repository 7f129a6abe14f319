"""The paper's images through the command line: every experiment collects, trains, is measured and draws."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_sources import write_cifar, write_images, write_recording

from worldmodel import collect, configs, dream, evaluate, sample, train
from worldmodel.config.cli import compose_config
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import Windows
from worldmodel.errors import ConfigError, UnknownActionError
from worldmodel.evaluation.images import score
from worldmodel.evaluation.openloop import silent
from worldmodel.heads import GridSpec
from worldmodel.priors import CaptionTrunk, ConditionTrunk
from worldmodel.runs.models import load_autoencoder, load_prior

SOUND = {"codec", "jukebox", "timit-phonemes", "vctk", "vctk-spectra"}  # tests/test_speech.py and those beside it
VIDEO = {
    "memory",
    "world-gpu",
    "agent-basic",
    "agent-health",
    "agent-minigrid",
    "atari100k",
    "dmlab-video",
    "dmlab-memory",
}  # whose frames follow one another
KNOWN = {path.stem for path in (Path(configs.__file__).parent / "experiment").glob("*.yaml")}
EXPERIMENTS = sorted(KNOWN - SOUND - VIDEO)
STAGES = ("tokenizer", "second", "prior")
QUICK = [f"training.{stage}.{name}" for stage in STAGES for name in ("steps=2", "batch=2", "evaluate_batches=1")]
HEAD = ["prior.head.width=8", "prior.head.layers=2", "prior.trunk.width=8"]
SMALL = {
    "cifar10": ["tokenizer.quantizer.slots=2", "tokenizer.num_codes=8", *HEAD],
    "cifar10-vae": ["tokenizer.latents=2", "prior.width=8", "prior.layers=2"],
    "cifar10-vimco": ["tokenizer.slots=2", "tokenizer.num_codes=8", "tokenizer.samples=3", *HEAD],
    "cifar10-captions": ["tokenizer.num_codes=8", "prior.head.width=8", "prior.trunk.width=8", "prior.trunk.heads=2"],
    "imagenet128": ["tokenizer.num_codes=8", *HEAD],
    "dmlab": ["tokenizer.num_codes=8", *HEAD],
    "dmlab-27bits": [
        "tokenizer.num_codes=8", "second.num_codes=4", "second.widths=[8,8]", "second.context=8", "second.head.width=8",
        "second.head.layers=2", *HEAD,
    ],
    "vqvae2": [
        "tokenizer.num_codes=8", "tokenizer.widths=[[8,8],[8]]", "prior.head.inner.width=8",
        "prior.head.inner.layers=2", "prior.head.width=8", "prior.trunk.width=8",
    ],
}  # fmt: skip


def write_source(name: str, folder: Path) -> str:
    """A tiny set in the layout of an experiment's source → the command line that collects it."""
    if name.startswith("cifar10"):
        write_cifar(folder / "cifar")
        return f"source.path={folder / 'cifar'}"
    if name.startswith("dmlab"):
        for number in range(10):  # the tenth is held out
            write_recording(folder / "lab/maze", number)
        return f"source.path={folder / 'lab'}"
    write_images(folder / "net", tuple(f"n{i % 2}/{i:02d}.png" for i in range(20)))
    return f"source.path={folder / 'net'}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_goes_from_files_to_pictures(name: str, tmp_path: Path, say: Callable[..., str]) -> None:
    experiment = f"experiment={name}"
    small = [*QUICK, *SMALL[name], "tokenizer.blocks=1", "device=cpu"]
    if name != "vqvae2":
        small.append("tokenizer.widths=[8,8]")
    size = ["source.size=32"] if name in ("imagenet128", "vqvae2") else []
    say(collect, experiment, write_source(name, tmp_path), *size)
    assert f"run {name}-1" in say(train, experiment, *small)
    assert "is trained already" in say(train, experiment, *small)
    output = say(evaluate, experiment)
    folder = tmp_path / "runs" / f"{name}-1"
    assert "reconstruction PSNR" in output and "reconstruction SSIM" in output
    assert (folder / "evaluation/report.html").is_file()
    found = json.loads((folder / "evaluation/metrics.json").read_text())
    bounds = [row["name"] for row in found["bits_per_dim"]]
    assert bounds == {
        "cifar10": ["fixed prior", "learned prior"],
        "cifar10-vae": ["fixed prior, 1 sample", "fixed prior, 50 samples", "learned prior, 1 sample"],
        "cifar10-vimco": [
            "fixed prior, 1 sample",
            "fixed prior, 50 samples",
            "fixed prior, likeliest codes",
            "learned prior, likeliest codes",
        ],
    }.get(name, [])
    assert ("scene" in found) == (name == "dmlab-27bits")
    assert ("classes" in found) == (name != "cifar10-vae")  # few, and looked at
    pictures = np.asarray(Image.open(folder / "evaluation/pictures.png"))
    assert pictures.ndim == 3 and pictures.std() > 0
    drawn = say(sample, experiment, "--count", "2", "--seed", "3")
    (path,) = [line.split()[-1] for line in drawn.splitlines() if line.startswith("written")]
    assert Path(path).suffix == ".png" and Path(path).is_file()
    first = Path(path).read_bytes()
    say(sample, experiment, "--count", "2", "--seed", "3")
    assert Path(path).read_bytes() == first  # the same seed, the same picture


@pytest.mark.parametrize(("name", "seen"), [("dmlab-video", "0 to 5"), ("dmlab-memory", "2 to 5")])
def test_deepmind_lab_is_dreamt(name: str, seen: str, tmp_path: Path, say: Callable[..., str]) -> None:
    experiment = f"experiment={name}"
    small = [*QUICK, "tokenizer.num_codes=8", "tokenizer.widths=[8,8]", "tokenizer.blocks=1", "prior.trunk.width=8"]
    if name == "dmlab-memory":  # these frames of 16×16 cannot be made six times smaller
        small += ["tokenizer.encoder.strides=[2,2]", "tokenizer.decoder.strides=[2,2]"]
    say(collect, experiment, write_source("dmlab", tmp_path))
    assert f"run {name}-1" in say(train, experiment, *small, "prior.trunk.blocks=1", "prior.head.width=8", "device=cpu")
    output = say(dream, experiment, "--actions", "noop*2", "--output", "dream.png")
    assert "dreamt    2 frames" in output and f"frames {seen} seen" in output
    assert np.asarray(Image.open(tmp_path / "dream.png")).std() > 0


def test_bits_are_those_of_every_held_out_image(tmp_path: Path, say: Callable[..., str]) -> None:
    """The table's figures, computed again from the models themselves, image by image."""
    say(collect, "source=cifar10", write_source("cifar10", tmp_path))
    say(train, "experiment=cifar10", *QUICK, *SMALL["cifar10"], "tokenizer.widths=[8,8]", "device=cpu")
    say(evaluate, "experiment=cifar10")
    folder = tmp_path / "runs/cifar10-1"
    found = json.loads((folder / "evaluation/metrics.json").read_text())
    store = EpisodeStore.open(tmp_path / "data/cifar10")
    model = load_autoencoder(folder)
    prior = load_prior(folder, model)
    totals = []
    for segment in Windows(store, "held_out").cover(1):
        assert segment.frames is not None
        x = segment.frames[:, 0]
        codes = model.encode(x)
        reconstruction = model.given(x, codes)
        nats = -prior.log_likelihood(codes[:, None], segment.actions)[:, 0]  # type: ignore[call-arg]
        unit = 3072 * np.log(2)
        totals.append([(float(reconstruction) + 8 * 8 * 2 * np.log(8)) / unit, float(reconstruction + nats) / unit])
    assert found["frames"] == len(totals) == 3
    for row, total in zip(found["bits_per_dim"], np.mean(totals, 0), strict=True):
        assert row["total"]["value"] == pytest.approx(total, rel=1e-4)
        assert row["reconstruction"] + row["latents"] == pytest.approx(total, rel=1e-4)
    assert found["grid"]["factor"] == pytest.approx(3072 * 8 / (8 * 8 * 2 * 3))
    assert len(found["usage"]["books"]) == 2
    # In batches that do not come out even.
    scored = score(model, prior, Windows(store, "held_out"), 0, silent, batch=2)
    assert len(scored.squared_error) == len(scored.rows[0].total) == 3
    unit = 3072 * np.log(2)
    for row, total in zip(scored.rows, np.array(totals).T, strict=True):
        np.testing.assert_allclose(row.total / unit, total, rtol=1e-4)


def test_runs_are_compared(tmp_path: Path, say: Callable[..., str]) -> None:
    argv = [*QUICK, *SMALL["cifar10"], "tokenizer.widths=[8,8]", "device=cpu", "--stage", "tokenizer"]
    say(collect, "source=cifar10", write_source("cifar10", tmp_path))
    for number in (1, 2):
        say(train, "experiment=cifar10", f"run=vq-{number}", f"seed={number}", *argv)
    assert "measure the run" in say(evaluate, "--compare", "vq-1,vq-2", code=2)
    for number in (1, 2):
        say(evaluate, f"run=vq-{number}")
    output = say(evaluate, "--compare", "vq-1,vq-2")
    assert "vq, fixed prior" in output and "(2 runs)" in output and (tmp_path / "runs/bits_per_dim.png").is_file()


def test_bad_requests_are_one_line(tmp_path: Path, say: Callable[..., str]) -> None:
    say(collect, "source=cifar10", write_source("cifar10", tmp_path))
    say(train, "experiment=cifar10", *QUICK, *SMALL["cifar10"], "tokenizer.widths=[8,8]", "device=cpu")
    for argv, message in (
        (["--classes", "unicorn"], "unknown action 'unicorn'; choose airplane, automobile, bird"),
        (["--classes", "bird,,bird"], "a class is missing"),
        (["--count", "0"], "--count is 0; it must be at least 1"),
        (["--output", "x.mp4"], "must end in .png"),
        (["experiment=cifar10-vae"], "there is no run of cifar10-vae"),
        (["experiment=mnist"], "there is no experiment 'mnist'; choose agent-basic, agent-health, agent-minigrid, "),
    ):
        error = say(sample, *argv, code=2)
        assert message in error and len(error.splitlines()) == 1, error
    for argv in (["--quick"], ["--windows", "9"], ["--top-k", "3"], ["--skip", "inverse"]):
        message = f"{argv[0]} is for a run of an environment, and the run cifar10-1 is of images"
        assert message in say(evaluate, *argv, code=2)
    error = say(dream, "--replay", "3", code=2)
    assert "the run cifar10-1 is of images, not of an environment; use python -m worldmodel.sample run=cifar" in error
    error = say(train, "experiment=imagenet128", code=2)
    assert "source=imagenet" in error or "no data at data/imagenet" in error
    error = say(train, "experiment=cifar10", "--stage", "second", code=2)
    assert "have no stage 'second'; choose tokenizer, prior" in error


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_name_their_runs(name: str) -> None:
    config = compose_config([f"experiment={name}"])
    assert config.stem == name and config.data == f"data/{config.source.name}"


def test_a_tokenizer_is_taken_over(tmp_path: Path, say: Callable[..., str]) -> None:
    argv = ["experiment=cifar10", *QUICK, *SMALL["cifar10"], "tokenizer.widths=[8,8]", "device=cpu"]
    say(collect, "source=cifar10", write_source("cifar10", tmp_path))
    say(train, *argv, "run=one", "--stage", "tokenizer")
    output = say(train, *argv, "run=two", "prior.trunk.drop=1", "--tokenizer-of", "one")
    assert "the tokenizer is trained already" in output
    one, two = tmp_path / "runs/one", tmp_path / "runs/two"
    assert (two / "tokenizer.safetensors").read_bytes() == (one / "tokenizer.safetensors").read_bytes()
    assert (two / "prior.safetensors").is_file()
    assert "already has a tokenizer" in say(train, *argv, "run=four", "seed=1", "--stage", "tokenizer") + say(
        train, *argv, "run=four", "seed=1", "--tokenizer-of", "one", code=2
    )
    error = say(train, *argv, "tokenizer.blocks=1", "run=three", "--tokenizer-of", "one", code=2)
    assert "tokenizer.blocks was 2, now 1" in error and not (tmp_path / "runs/three").exists()
    assert "drawn     9 in" in say(sample, "run=two", "--count", "9")
    assert "the prior of two is given no classes" in say(sample, "run=two", "--classes", "bird", code=2)
    assert "unknown run 'none'" in say(train, *argv, "run=three", "--tokenizer-of", "none", code=2)


def test_a_prior_that_never_looks_at_classes() -> None:
    trunk = ConditionTrunk(GridSpec((2, 2), torch.zeros(4, 2), tuple("abc")), drop=1.0).eval()
    actions = torch.tensor([[0], [1], [-1]])
    outputs = trunk(actions, actions)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    some = ConditionTrunk(GridSpec((2, 2), torch.zeros(4, 2), tuple("abc")), drop=0.5)
    many = torch.zeros(400, 1, dtype=torch.int64)
    hidden = (some(many, many)[:, 0, 0] == some.embed.weight[0]).all(-1).float().mean()
    assert 0.4 < hidden < 0.6
    assert not (some.eval()(many, many)[:, 0, 0] == some.embed.weight[0]).all(-1).any()


def test_captions_are_read_word_by_word() -> None:
    """Captions of the same words are the same; what the words of one are changes no other."""
    torch.manual_seed(0)
    names = ("a_red_bus", "two_birds", "a_blue-car")
    trunk = CaptionTrunk(GridSpec((2, 3), torch.zeros(4, 2), names), width=8, heads=2).eval()
    given = torch.tensor([[2, -1], [0, 0]])
    contexts = trunk(torch.zeros(2, 2, 2, 3).long(), given)
    assert contexts.shape == (2, 2, 6, 8)
    for row, step in ((0, 0), (0, 1), (1, 1)):  # each as if it were alone
        alone, _ = trunk.step((), torch.zeros(1, 2, 3).long(), given[row, step, None])
        torch.testing.assert_close(contexts[row, step], alone[0])
    assert trunk.learn("A blue car") == 2 and trunk.learn("red_bus") == trunk.learn("red bus") == 3
    new = trunk.contexts_of(torch.tensor([3, 0, 1, -1]))
    torch.testing.assert_close(new[1], contexts[1, 0])
    assert all(not torch.allclose(new[0], other, atol=1e-4) for other in new[1:])
    with pytest.raises(UnknownActionError, match="unknown word 'green'; choose a, birds, blue"):
        trunk.learn("a green bus")
    with pytest.raises(ConfigError, match="captions here have 1 to 3"):
        trunk.learn("a red red bus")


def test_pictures_are_drawn_for_captions_that_no_picture_had(tmp_path: Path, say: Callable[..., str]) -> None:
    write_images(tmp_path / "set", tuple(f"{i:02d}.png" for i in range(20)))
    for number in range(20):
        colour, thing = ("red", "blue")[number % 2], ("car", "bus")[number // 2 % 2]
        text = f"a {colour} {thing}\n" if (colour, thing) != ("red", "bus") else "a car"
        (tmp_path / f"set/{number:02d}.txt").write_text(text)
    say(collect, "source=images", "source.size=16", "source.path=set")
    say(
        train, "source=images", "tokenizer=gumbel", "tokenizer.num_codes=8", "tokenizer.widths=[8,8]", "prior=captions",
        "prior.head.width=8", "prior.trunk.width=8", "prior.trunk.heads=2", *QUICK, "device=cpu",
    )  # fmt: skip
    say(sample, "source=images", "--classes", "a red bus,a_blue_bus", "--count", "2", "--output", "drawn.png")
    assert np.asarray(Image.open(tmp_path / "drawn.png")).std() > 0
    output = say(sample, "source=images", "--classes", "a red lorry", code=2)
    assert "unknown word 'lorry'; choose a, blue, bus, car, red" in output


def test_each_stage_goes_on_where_it_was_and_none_stands_on_lost_codes(tmp_path: Path, say: Callable[..., str]) -> None:
    argv = ["experiment=dmlab-27bits", *QUICK, *SMALL["dmlab-27bits"], "tokenizer.widths=[8,8]", "device=cpu"]
    say(collect, "source=dmlab", write_source("dmlab", tmp_path))
    say(train, *argv, "--stage", "tokenizer")
    say(train, *argv, "--stage", "second")
    folder = tmp_path / "runs/dmlab-27bits-1"
    second = load_file(folder / "second.safetensors")
    assert not (folder / "prior.safetensors").exists()
    assert "the second tokenizer is trained already" in say(train, *argv)
    assert (folder / "prior.safetensors").is_file()
    (folder / "second.safetensors").unlink()
    say(train, *argv)  # from its checkpoint
    again = load_file(folder / "second.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in second.items())
    (folder / "second.safetensors").unlink()
    (folder / "checkpoints/second.safetensors").unlink()
    error = say(train, *argv, code=2)
    assert "prior.safetensors was trained on the codes of" in error and len(error.splitlines()) == 1


def test_another_experiment_in_between_is_no_hindrance(tmp_path: Path, say: Callable[..., str]) -> None:
    say(collect, "source=cifar10", write_source("cifar10", tmp_path))
    one = ["experiment=cifar10", *QUICK, *SMALL["cifar10"], "tokenizer.widths=[8,8]", "device=cpu"]
    two = ["experiment=cifar10-vae", *QUICK, *SMALL["cifar10-vae"], "tokenizer.widths=[8,8]", "device=cpu"]
    say(train, *one, "--stage", "tokenizer")
    say(train, *two, "--stage", "tokenizer")
    assert say(train, *one).startswith("run cifar10-1\n")
    assert (tmp_path / "runs/cifar10-1/prior.safetensors").is_file()
