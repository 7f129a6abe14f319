"""A codec on the command line: recordings, training, bitstreams and back; the prior as a model of the codes."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sounds import RATE, put, voice, write_vctk

from worldmodel import codec as codec_command
from worldmodel import collect, evaluate, train
from worldmodel.config.cli import compose_config
from worldmodel.errors import ConfigError, DataError
from worldmodel.priors import Prior
from worldmodel.runs.models import build_prior, build_tokenizer
from worldmodel.speech.codec.bitstream import Bitstream
from worldmodel.speech.codec.codec import Codec
from worldmodel.speech.codec.entropy import PriorModel, decode, encode
from worldmodel.speech.codec.run import COUNTS, load_codec
from worldmodel.speech.scores.codes import leakage
from worldmodel.tokenizers import VQVAE
from worldmodel.types import Spec

SPEC = Spec("tiny", (1, 640), ("p225", "p226"), 25.0)
SMALL = [
    "tokenizer.widths=[4,4,8,8]", "tokenizer.blocks=1", "tokenizer.num_codes=8", "tokenizer.quantizer.num_codebooks=3",
    "tokenizer.quantizer.quantizer.width=4",
    "prior.trunk.width=8", "prior.trunk.model=8", "prior.trunk.heads=2", "prior.trunk.blocks=1", "prior.trunk.window=3",
    "prior.head.width=8", "prior.head.layers=2",
]  # fmt: skip
QUICK = [
    *(f"training.{stage}.{name}" for stage in ("tokenizer", "prior") for name in ("batch=2", "evaluate_batches=1")),
    "training.tokenizer.length=4", "training.prior.targets=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> tuple[Codec, Prior]:
    """An untrained codec and a prior over its codes whose distributions are far from flat."""
    torch.manual_seed(0)
    config = compose_config(["experiment=codec", *SMALL])
    tokenizer = build_tokenizer(config, SPEC)
    prior = build_prior(config, SPEC, tokenizer).eval()
    assert isinstance(tokenizer, VQVAE) and isinstance(prior, Prior) and tokenizer.grid == (8, 3)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return Codec(tokenizer), prior


@pytest.mark.parametrize("used", [1, 2, 3])
def test_a_stream_costs_what_the_prior_expects_and_comes_back(tiny: tuple[Codec, Prior], used: int) -> None:
    codec, prior = tiny
    model = PriorModel(prior)
    grids = torch.randint(8, (5, 8, 3), generator=torch.Generator().manual_seed(0))
    codes = grids.flatten(0, 1).numpy()[:37, :used]  # the last window is not full
    threads = torch.get_num_threads()
    data, _ = encode(model, codes)
    assert (decode(model, data, 37, used) == codes).all() and torch.get_num_threads() == threads
    assert (next(model.predict(used)) == next(model.predict(used))).all()
    if used == 3:  # otherwise the rest is guessed
        _, bits = encode(model, grids.flatten(0, 1).numpy())
        with torch.no_grad():
            nats = -prior.log_likelihood(grids[None], torch.full((1, 5), -1)).sum()
        assert bits == pytest.approx(float(nats) / math.log(2), rel=1e-4)
    stream = codec.write(codes, 37 * codec.factor, model)
    assert (codec.read(stream, model) == codes).all()


def test_a_model_that_computes_otherwise_is_noticed(tiny: tuple[Codec, Prior]) -> None:
    codec, prior = tiny
    one, other = PriorModel(prior), PriorModel(prior)
    codes = np.random.default_rng(0).integers(8, size=(40, 3))
    stream = codec.write(codes, 40 * codec.factor, one)
    with torch.no_grad():
        changed = next(other.prior.head.parameters())
        before = changed.clone()
        changed.add_(0.5)
    try:
        with pytest.raises(DataError, match=r"rounds differently|codes are invalid"):
            codec.read(stream, other)
    finally:
        changed.data.copy_(before)


def test_a_head_in_another_order_is_no_entropy_model() -> None:
    config = compose_config(["tokenizer=speech", "prior=speech", "prior.head.order=quincunx"])
    prior = build_prior(config, SPEC, build_tokenizer(config, SPEC))
    assert isinstance(prior, Prior)
    with pytest.raises(ConfigError, match="choose prior=codec"):
        PriorModel(prior)


def test_steps_of_a_prior_over_slots_are_its_whole_pass(tiny: tuple[Codec, Prior]) -> None:
    _, prior = tiny
    codes = torch.randint(8, (2, 5, 8, 3), generator=torch.Generator().manual_seed(1))
    actions = torch.tensor([[0], [-1]]).expand(2, 5)
    with torch.no_grad():
        contexts = prior.contexts(codes, actions)
        state, previous = prior.trunk.begin(2), torch.full_like(codes[:, 0], -1)
        for step in range(5):
            found, state = prior.trunk.step(state, previous, actions[:, step])
            torch.testing.assert_close(found, contexts[:, step], atol=1e-5, rtol=1e-4)
            previous = codes[:, step]
        flat = codes.flatten(2).flatten(0, 1)
        logits = prior.head(flat, contexts.flatten(0, 1))
        head = prior.head.begin(contexts.flatten(0, 1))
        steps = torch.cat([prior.head.extend(head, flat, place, place + 1) for place in range(24)], 1)
        torch.testing.assert_close(steps, logits, atol=1e-4, rtol=1e-4)
        changed = codes.clone()
        changed[:, 0, 7, 2] = (changed[:, 0, 7, 2] + 1) % 8  # the very last code of a window changes the sound at once
        assert (prior.contexts(changed, actions)[:, 1, 0] != contexts[:, 1, 0]).any()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a codec, both stages trained a little, and one that is no codec."""
    folder = tmp_path_factory.mktemp("codec")
    write_vctk(folder / "set")
    put(folder / "in.wav", 0.2 * voice(0.35, rate=22050), 22050)
    where = [f"data={folder / 'data'}", f"runs={folder / 'runs'}"]
    assert collect.main(["experiment=codec", f"source.path={folder / 'set'}", where[0]]) == 0
    assert train.main(["experiment=codec", *SMALL, *QUICK, *where, "--steps", "2"]) == 0
    small = [line for line in SMALL if not any(word in line for word in ("widths", "quantizer", "head"))]
    other = ["tokenizer=phonemes", "prior=speech", "run=voices", "tokenizer.widths=[8,8,8]"]
    assert train.main(["experiment=codec", *other, *small, *QUICK, *where, "--steps", "1", "--stage", "tokenizer"]) == 0
    return folder


def say(capsys: pytest.CaptureFixture[str], folder: Path, *argv: str, code: int = 0, run: str = "codec-1") -> str:
    found = codec_command.main([f"runs={folder / 'runs'}", f"run={run}", *argv])
    out, err = capsys.readouterr()
    assert found == code, err
    return out if code == 0 else err


def test_a_file_becomes_a_bitstream_and_sound_again(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(trained / "in.wav")
    output = say(capsys, trained, "encode", source, "--kbps", "1.3", "--output", str(tmp_path))
    for figure in ("2 of 3: 1.20 kbit/s", "counts", "prior", "SI-SDR", "real time", "80 samples, 5 ms"):
        assert figure in output
    assert len(list((trained / "runs/codec-1").glob(COUNTS.format("*")))) == 1
    paths = [tmp_path / f"in-1.2k{suffix}" for suffix in (".wmc", ".wav", ".png")]
    assert all(path.is_file() for path in paths)
    stream = Bitstream.load(paths[0])
    assert stream.codebooks == 2 and stream.samples == round(0.35 * RATE) and stream.gain > 0
    say(capsys, trained, "decode", str(paths[0]), "--output", str(tmp_path / "again.wav"))
    first, again = (soundfile.read(path)[0] for path in (paths[1], tmp_path / "again.wav"))
    assert len(first) == stream.samples and np.array_equal(first, again)
    sizes = {}
    for entropy in ("none", "counts", "prior"):
        say(
            capsys,
            trained,
            "encode",
            source,
            "--kbps",
            "1.3",
            "--entropy",
            entropy,
            "--output",
            str(tmp_path / entropy),
        )
        say(capsys, trained, "decode", str(tmp_path / f"{entropy}.wmc"), "--output", str(tmp_path))
        assert np.array_equal(soundfile.read(tmp_path / f"{entropy}.wav")[0], first)
        sizes[entropy] = len(Bitstream.load(tmp_path / f"{entropy}.wmc").payload)
    assert len(stream.payload) == min(sizes.values())
    output = say(capsys, trained, "encode", source, "--kbps", "1.3", "--stream", "--output", str(tmp_path / "chunks"))
    assert "18 chunks of 20 ms" in output
    assert np.array_equal(soundfile.read(tmp_path / "chunks.wav")[0], first)
    say(capsys, trained, "decode", str(tmp_path / "chunks.wmc"), "--stream", "--output", str(tmp_path / "back.wav"))
    assert np.abs(soundfile.read(tmp_path / "back.wav")[0] - first).max() < 1e-3
    say(capsys, trained, "encode", source)  # all codebooks, into the run's folder
    assert (trained / "runs/codec-1/dreams/in-1.8k.wmc").is_file()


def test_silence_and_a_click_are_sounds_too(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, wave in (("silence", np.zeros(900, np.float32)), ("click", np.ones(1, np.float32))):
        put(tmp_path / f"{name}.wav", wave)
        output = say(capsys, trained, "encode", str(tmp_path / f"{name}.wav"), "--output", str(tmp_path / "out"))
        assert "not measured" in output and Bitstream.load(tmp_path / "out.wmc").samples == len(wave)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["encode", "no.wav"], "no.wav"),
        (["encode", "in.wav", "--kbps", "0.5"], "0.5 kbit/s are too few; this codec needs 0.6"),
        (["encode", "in.wav", "--kbps", "0"], "--kbps is 0; it must be above 0"),
        (["encode", "in.wav", "--output", "out.mp3"], "must end in .wmc"),
        (["encode", "in.wav", "in.wmc"], "'in.wmc' is neither a flag nor key=value"),
        (["encode", "in.wav", "--seconds", "3"], "unrecognized arguments: --seconds"),
        (["encode", "--kbps", "3"], "FILE is missing"),
        (["code", "in.wav"], "'code' is no action; choose encode or decode"),
        (["decode", "cut.wmc", "--kbps", "3"], "--kbps goes with encode"),
        (["decode", "cut.wmc", "--entropy", "none"], "--entropy goes with encode"),
        (["decode", "no.wmc"], "no.wmc: No such file"),
        (["decode", "in.wav"], "in.wav is no bitstream of this codec"),
        (["decode", "cut.wmc"], "damaged or cut short"),
        (["decode", "other.wmc"], "name the run that wrote it"),
        (["decode", "strange.wmc"], "entropy-coded by the model 737472616e676521"),
        (["decode", "good.wmc", "--output", "out.mp3"], "must end in .wmc, .wav, .flac"),
        (["encode", "in.wav", "run=voices"], "the run voices is no codec"),
    ],
)
def test_bad_requests_are_one_line(
    flags: list[str], message: str, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    codec = load_codec(trained / "runs/codec-1", "cpu")
    wave = voice(0.1)
    good = codec.write(codec.encode(wave), len(wave))
    good.save("good.wmc")
    Path("cut.wmc").write_bytes(good.to_bytes()[:-9])
    Bitstream(RATE, 80, 1, b"somebody", bytes(8), b"x").save("other.wmc")
    Bitstream(RATE, 80, 1, codec.fingerprint, b"strange!", b"x").save("strange.wmc")
    capsys.readouterr()
    run = "voices" if "run=voices" in flags else "codec-1"
    output = say(capsys, trained, *[flag for flag in flags if flag != "run=voices"], code=2, run=run)
    assert message in output and output.count("\n") == 1


def test_bitrates_are_evaluated(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldmodel.speech.evaluation.voices.leakage", functools.partial(leakage, steps=3))
    assert evaluate.main([f"runs={trained / 'runs'}", "run=codec-1"]) == 0
    output = capsys.readouterr().out
    for figure in ("1 of 3 codebooks, 0.60 kbit/s", "2 of 3", "3 of 3", "bits saved, counts", "bits saved, prior"):
        assert figure in output
