"""Sound through the core: signals are coded whole, decoders have the speaker as condition; commands."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from sounds import RATE, put, voice, write_timit, write_vctk

from worldmodel import collect, configs, convert, dream, evaluate, sample, speak, train
from worldmodel.config.cli import compose_config
from worldmodel.data.codes import encode_store
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import Windows
from worldmodel.errors import ConfigError, UnknownActionError
from worldmodel.nn.convnets import ConvEncoder
from worldmodel.runs.models import build_tokenizer
from worldmodel.speech.evaluation import codes as figures_of_codes
from worldmodel.speech.evaluation import voices
from worldmodel.speech.nn.mel import MelEncoder, expanded, mel_power, stretched
from worldmodel.speech.nn.spectra import MelSpectra
from worldmodel.speech.scores.classifiers import Budget, train_phone_classifier, train_speaker_classifier
from worldmodel.speech.scores.codes import leakage
from worldmodel.speech.separate import SeparateLevels
from worldmodel.speech.sound import to_samples
from worldmodel.speech.voice import VoiceModel, load_utterances
from worldmodel.tokenizers import VQVAE, Tokenizer, require_codes
from worldmodel.tokenizers.base import join
from worldmodel.training.objectives import TokenizerObjective
from worldmodel.types import Spec, to_float

SPEC = Spec("tiny", (1, 640), ("p225", "p226"), 25.0)
SMALL = {
    "speech": [
        "tokenizer.widths=[4,4,4,4,8,8]", "tokenizer.num_codes=8", "tokenizer.condition_width=4",
        "tokenizer.quantizer.width=4",
        "tokenizer.likelihood.outputs=8", "tokenizer.likelihood.width=8", "tokenizer.likelihood.hidden=8",
        "tokenizer.likelihood.layers=2",
    ],
    "speech_mel": [
        "tokenizer.widths=[16,16,16,16]", "tokenizer.num_codes=8", "tokenizer.condition_width=4",
        "tokenizer.quantizer.width=4",
        "tokenizer.likelihood.outputs=8", "tokenizer.likelihood.width=8", "tokenizer.likelihood.hidden=8",
        "tokenizer.likelihood.layers=2",
    ],
    "speech_conv": [
        "tokenizer.widths=[4,4,4,4,8,8]", "tokenizer.num_codes=8", "tokenizer.condition_width=4",
        "tokenizer.quantizer.width=4",
    ],
    "jukebox": [
        "tokenizer.widths=[[4,4,8],[4,4,4,4,8],[4,4,4,4,4,4,8]]", "tokenizer.num_codes=8",
        "tokenizer.condition_width=4", "tokenizer.quantizer.width=4",
    ],
    "codec": [
        "tokenizer.widths=[4,4,8,8]", "tokenizer.num_codes=8", "tokenizer.quantizer.num_codebooks=3",
        "tokenizer.quantizer.quantizer.width=4",
    ],
    "speech_spectra": [
        "tokenizer.widths=[8,8,8]", "tokenizer.num_codes=8", "tokenizer.condition_width=4",
        "tokenizer.quantizer.width=4",
        "tokenizer.likelihood.iterations=2",
    ],
    "phonemes": ["tokenizer.widths=[8,8,8]", "tokenizer.num_codes=8", "tokenizer.condition_width=4",
        "tokenizer.quantizer.width=4"],
}  # fmt: skip
SMALL_PRIOR = [
    "prior.trunk.width=8", "prior.trunk.model=8", "prior.trunk.heads=2", "prior.trunk.blocks=1", "prior.trunk.window=3",
    "prior.head.width=8", "prior.head.blocks=1",
]  # fmt: skip
SMALL_LEVELS = [
    *(setting for setting in SMALL_PRIOR if not setting.startswith("prior.head.blocks")),
    "prior.head.inner.width=8", "prior.head.inner.blocks=1",
]  # fmt: skip
QUICK = [f"training.{stage}.{name}" for stage in ("tokenizer", "prior") for name in ("batch=2", "evaluate_batches=1")]
TOKENIZERS = sorted(SMALL)
CONDITIONED = sorted(set(SMALL) - {"codec"})  # whose decoders have the speaker as condition


def make(name: str) -> Tokenizer:
    torch.manual_seed(0)
    config = compose_config([f"tokenizer={name}", *SMALL[name], "tokenizer.blocks=1"])
    return require_codes(build_tokenizer(config, SPEC)).eval()


def parts(tokenizer: Tokenizer) -> list[VQVAE]:
    """The VQ-VAEs that a tokenizer of sound consists of, the one that makes the sound last."""
    if isinstance(tokenizer, SeparateLevels):
        return list(tokenizer.models)
    assert isinstance(tokenizer, VQVAE)
    return [tokenizer]


def signal(windows: int, batch: int = 1) -> torch.Tensor:
    """(B, T, 1, 640) uint8 noise."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, windows, 1, 640), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_signal_is_coded_as_a_whole(name: str) -> None:
    tokenizer = make(name)
    assert tokenizer.joined and (tokenizer.condition_width > 0) == (name in CONDITIONED)
    frames = signal(5)[0]
    codes = tokenizer.encode_episode(frames)
    assert codes.shape == (5, *tokenizer.grid)
    assert torch.equal(codes.flatten(), tokenizer.encode(join(frames[None])).flatten())
    drawn = tokenizer.draw_episode(codes, 1, torch.Generator().manual_seed(0))
    assert drawn.shape == frames.shape and drawn.dtype == torch.uint8
    # A window is not coded by itself: what lies beside it changes its codes, too.
    other = frames.clone()
    other[2] = 255 - other[2]
    before = name != "codec"  # which is causal
    for model in parts(tokenizer):
        changed = model.vectors(join(other[None])) != model.vectors(join(frames[None]))
        assert changed[0].any(-1).unflatten(0, (5, -1)).any(1).tolist()[1:4] == [before, True, True]


@pytest.mark.parametrize("name", CONDITIONED)
def test_the_speaker_is_a_condition_of_the_decoder(name: str) -> None:
    for model in parts(make(name)):
        codes = model.encode(join(signal(3, 2)))
        waves = [model._outputs(model.read(codes, said)) for said in (torch.tensor([0, 1]), torch.tensor([1, 1]))]
        assert not torch.allclose(waves[0][0], waves[1][0]) and torch.allclose(waves[0][1], waves[1][1])
        unknown = model._outputs(model.read(codes, None))
        assert not torch.allclose(unknown[1], waves[0][1])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_of_sound_learns(name: str, tmp_path: Path) -> None:
    """A tone and noise, one for each speaker, get a lower loss by training."""
    store = tone_store(tmp_path)
    tokenizer = make(name).train()
    objective, windows = TokenizerObjective(tokenizer), Windows(store, "all", 3, whole=True)
    optimizer = torch.optim.Adam(tokenizer.parameters(), 1e-2 if name == "codec" else 3e-3)
    seen = []
    for step in range(40):
        generator = torch.Generator().manual_seed(step)
        losses = objective(windows.sample(4, generator), generator)
        loss = losses.terms["reconstruction"] + losses.terms["commitment"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(losses.terms["reconstruction"].item())
    assert np.mean(seen[-5:]) < 0.8 * np.mean(seen[:5])


def tone_store(folder: Path) -> EpisodeStore:
    write_vctk(folder / "set")
    assert collect.main(["source=vctk", f"source.path={folder / 'set'}", f"data={folder / 'data'}"]) == 0
    return EpisodeStore.open(folder / "data")


def test_in_a_scaled_encoder_signals_keep_their_size() -> None:
    for scaled, size in ((True, (0.3, 3.0)), (False, (0.0, 0.1))):
        torch.manual_seed(0)
        x = torch.randn(4, 1, 4096)
        encoder = ConvEncoder(1, 1, [32, 64, 64, 96, 128, 128], 0, scaled)
        for index, conv in enumerate(encoder.down):
            x = conv(x if index == 0 else x.relu())
        assert size[0] < x.std().item() < size[1]


def test_codes_of_a_store_are_those_of_whole_utterances(tmp_path: Path) -> None:
    store, tokenizer = tone_store(tmp_path), make("speech")
    codes = encode_store(store, tokenizer, tmp_path / "codes")
    for number in (0, 3):
        frames = torch.from_numpy(np.array(store.episode(number).frames))
        assert np.array_equal(codes.episode(number), tokenizer.encode_episode(frames).numpy())


def test_whole_windows_hang_over_no_end(tmp_path: Path) -> None:
    store = tone_store(tmp_path)
    sizes = store.frame_counts
    length = int(sizes.max()) - 1
    windows = Windows(store, "all", length, whole=True)
    drawn = windows.sample(200, torch.Generator().manual_seed(0))
    assert drawn.valid.all() and (drawn.actions >= 0).all()
    speakers = {store.episode(int(e)).condition for e in np.flatnonzero(sizes >= length)}
    assert set(drawn.actions.unique().tolist()) == speakers
    with pytest.raises(Exception, match="has 90 frames, the longest has"):
        Windows(store, "all", 90, whole=True).sample(1, torch.Generator())


def test_spectra_stand_over_the_middle_of_their_samples() -> None:
    wave = torch.zeros(1600)
    wave[5 * 160 + 80] = 1.0  # the middle of the sixth hop
    power = mel_power(wave, bands=20, hop=160, window=400, rate=16000)
    assert power.shape == (10, 20) and power.sum(1).argmax() == 5
    torch.testing.assert_close(power[4], power[6], atol=1e-5, rtol=1e-3)
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)
    loudest = mel_power(tone, bands=40, hop=160, window=400, rate=16000).mean(0).argmax()
    assert abs(int(loudest) - round(41 * np.log10(1 + 1000 / 700) / np.log10(1 + 8000 / 700)) + 1) <= 1


def test_spectra_are_stretched_along_the_mel_scale() -> None:
    mels = torch.arange(10.0).expand(3, 4, 10)
    found = stretched(mels, torch.tensor([1.0, 0.5, 1.2]))
    torch.testing.assert_close(found[0], mels[0])
    torch.testing.assert_close(found[1, 0], torch.arange(10.0) / 2)
    torch.testing.assert_close(found[2, 0], (torch.arange(10.0) * 1.2).clamp(max=9))


def test_a_still_encoder_does_not_hear_the_level() -> None:
    torch.manual_seed(0)
    frames = to_float(signal(4))
    loud = join(frames)
    quiet = torch.sign(loud) * torch.log1p(255 * expanded(loud).abs() * 0.3) / np.log(256)
    for subtract_mean, alike in ((True, True), (False, False)):
        encoder = MelEncoder(1, 1, [8, 8], 1, strides=(2, 2), subtract_mean=subtract_mean).eval()
        assert torch.allclose(encoder(loud), encoder(quiet), atol=1e-3) is alike


def test_a_wave_of_spectra_has_these_spectra() -> None:
    likelihood = MelSpectra(1, iterations=50)
    wave = torch.from_numpy(voice(0.48))[None, None]
    frames = to_float(torch.from_numpy(to_samples(wave.numpy())))
    meant = likelihood._target(frames)
    assert meant.shape == (1, 80, 48) and likelihood.loss(meant, frames) == 0
    written = likelihood._target(likelihood.mean(meant))
    loud = meant > meant.max() - 1.0  # within 17 dB of the loudest
    assert (written - meant)[loud].abs().mean() < 0.12  # 2 dB
    error = (likelihood.loss_and_frames(meant, frames).frames - frames).square().mean() / frames.square().mean()
    assert error < 0.05
    assert likelihood.log_prob(meant + 1, frames).mean().item() == pytest.approx(-1, abs=1e-5)


def test_from_recordings_to_another_voice(tmp_path: Path, say: Callable[..., str]) -> None:
    write_vctk(tmp_path / "set")
    put(tmp_path / "in.wav", voice(0.35, rate=22050), 22050)
    say(collect, "experiment=vctk", "source.path=set")
    small = [*SMALL["speech"], *SMALL_PRIOR, *QUICK, "training.tokenizer.length=2", "training.prior.targets=3"]
    say(train, "experiment=vctk", *small, "--stage", "tokenizer", "--steps", "3")
    output = say(convert, "experiment=vctk", "in.wav", "--speakers", "p226,p225", "--seed", "1")
    files = [line.split()[-1] for line in output.splitlines() if line.startswith("written")]
    assert [Path(file).name for file in files] == ["in-seed1-p226.wav", "in-seed1-p225.wav"]
    waves = [soundfile.read(file)[0] for file in files]
    assert all(len(wave) == round(0.35 * RATE) and wave.std() > 0 for wave in waves)
    assert (tmp_path / "runs/vctk-1/dreams/in-seed1.png").is_file()
    assert "prior" in say(speak, "experiment=vctk", "--speakers", "p225", code=2)
    say(train, "experiment=vctk", *small, "--steps", "3")
    say(speak, "experiment=vctk", "--speakers", "p225", "--seconds", "0.1", "--output", "said.flac")
    first = soundfile.read("said.flac")[0]
    assert len(first) == 0.1 * RATE
    say(speak, "experiment=vctk", "--speakers", "p225", "--seconds", "0.1", "--output", "again.flac")
    assert np.array_equal(first, soundfile.read("again.flac")[0])  # the same seed, the same speech


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default budgets of the classifiers are in signatures, where a setting for tests does not reach them; and no
    utterance is too short for them."""
    budget = Budget(steps=3, batch=4)
    monkeypatch.setattr(voices, "MIN_SECONDS", 0.01)
    monkeypatch.setattr(voices, "train_speaker_classifier", functools.partial(train_speaker_classifier, budget=budget))
    monkeypatch.setattr(voices, "leakage", functools.partial(leakage, steps=3))
    for module in (voices, figures_of_codes):
        monkeypatch.setattr(module, "train_phone_classifier", functools.partial(train_phone_classifier, budget=budget))


@pytest.mark.usefixtures("short_training")
def test_conversions_are_judged(spoken: Path, say: Callable[..., str]) -> None:
    write_timit(spoken / "timit", ("fvmh0", "mcpm0"))
    output = say(evaluate, f"runs={spoken / 'runs'}", "--timit", str(spoken / "timit"))
    for figure in (
        "converted, as the target",
        "other phones",
        "speaker predicted from the codes",
        "prior, bits a code",
        "speech from the prior",
    ):
        assert figure in output
    folder = spoken / "runs/vctk-1/evaluation"
    found = json.loads((folder / "metrics.json").read_text())
    assert found["conversion"]["conversions"] == 2 and found["conversion"]["sources"] == 2
    assert 0 <= found["conversion"]["pitch"]["resynthesised"]["kept"] <= 1 and "pitch, coded and decoded" in output
    assert found["bits"]["learned"]["value"] == pytest.approx(
        found["bits"]["wave"]["value"] + found["bits"]["prior"]["value"] * 250 / 16000, abs=0.01
    )
    assert (folder / "report.html").is_file() and len(list((folder / "sounds").glob("*.flac"))) == 7
    assert "--windows is for a run of an environment, and the run vctk-1 is of speech" in say(
        evaluate, f"runs={spoken / 'runs'}", "--windows", "3", code=2
    )
    assert "--timit no is no folder" in say(evaluate, f"runs={spoken / 'runs'}", "--timit", "no", code=2)


@pytest.mark.usefixtures("short_training")
def test_codes_are_read_as_phonemes(tmp_path: Path, say: Callable[..., str]) -> None:
    write_timit(tmp_path / "set", ("fvmh0", "faem0", "mcpm0", "marc0"))
    say(collect, "experiment=timit-phonemes", "source.path=set")
    small = [*SMALL["phonemes"], *QUICK, "training.tokenizer.length=2"]
    say(train, "experiment=timit-phonemes", *small, "--stage", "tokenizer", "--steps", "3")
    output = say(evaluate, "experiment=timit-phonemes")  # finds the alignments where the recordings came from
    assert "Codes as phonemes" in output and "k-means, log-mels" in output
    found = json.loads((tmp_path / "runs/timit-phonemes-1/evaluation/metrics.json").read_text())["phonemes"]
    assert found["hop"] == 640
    assert found["codes"]["all"]["frames"] == 28  # of si1 … si4: the others are read in both halves
    # Of several corpora, those with alignments are scored, and copies of their episodes are not.
    write_vctk(tmp_path / "other")
    say(collect, "source=vctk", "source.path=other")
    say(collect, "source=stores", "source.paths=[data/timit,data/vctk]", "source.repeat=[2,1]", "data=data/both")
    say(train, "experiment=timit-phonemes", "data=data/both", *small, "--stage", "tokenizer", "--steps", "3", "run=b")
    say(evaluate, "run=b", "--timit", "set")
    both = json.loads((tmp_path / "runs/b/evaluation/metrics.json").read_text())["phonemes"]
    assert both["codes"]["all"]["frames"] == 28
    # In one of these corpora alone, the speakers have the numbers that they have in the run.
    world = VoiceModel.load(tmp_path / "runs/b")
    found = {each.key: each.speaker for each in load_utterances(world, EpisodeStore.open(tmp_path / "data/vctk"))}
    assert found["p226_001"] == world.spec.action_index("p226") > 1


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (speak, ["--speakers", "p999"], "unknown action 'p999'; choose p225, p226"),
        (speak, ["--speakers", "p225,"], "a speaker is missing in 'p225,'"),
        (speak, ["--seconds", "-1"], "--seconds is -1; it must be above 0"),
        (speak, ["--seconds", "601"], "--seconds is 601; it must be at most 600"),
        (speak, ["--speakers", "p225,p226", "--output", "one.wav"], "there are 2 speakers"),
        (speak, ["--speakers", "p225", "--output", "one.mp3"], "must end in .wav, .flac"),
        (speak, ["--speakers", "p225", "--voice-temperature", "0"], "must be above 0"),
        (convert, ["no.wav"], "no.wav"),
        (convert, ["--speakers", "p225"], "FILE is missing; see python -m worldmodel.convert --help"),
        (convert, ["no.wav", "--seconds", "2"], "unrecognized arguments: --seconds"),
        (convert, ["no.wav", "--speakers", "p999"], "unknown action 'p999'"),
        (
            dream,
            ["--actions", "p225"],
            "vctk-1 is of speech, not of an environment; use python -m worldmodel.speak run=vctk",
        ),
        (dream, ["--convert", "in.wav"], "--convert is now a command: python -m worldmodel.convert FILE"),
        (
            sample,
            ["run=vctk-1"],
            "vctk-1 is of speech, not of images; use python -m worldmodel.speak run=vctk-1",
        ),
    ],
)
def test_bad_requests_are_one_line(
    command: ModuleType, flags: list[str], message: str, spoken: Path, say: Callable[..., str]
) -> None:
    output = say(command, f"runs={spoken / 'runs'}", *flags, code=2)
    assert message in output and output.count("\n") == 1


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run of speech."""
    folder = tmp_path_factory.mktemp("spoken")
    write_vctk(folder / "set")
    where = [f"data={folder / 'data'}", f"runs={folder / 'runs'}"]
    assert collect.main(["experiment=vctk", f"source.path={folder / 'set'}", where[0]]) == 0
    small = [*SMALL["speech"], *SMALL_PRIOR, *QUICK, "training.tokenizer.length=2", "training.prior.targets=3"]
    assert train.main(["experiment=vctk", *small, *where, "--steps", "2"]) == 0
    return folder


def test_the_same_in_python(spoken: Path) -> None:
    world = VoiceModel.load(spoken / "runs/vctk-1")
    assert (world.rate, world.window) == (16000, 640)
    wave = voice(0.2)
    converted = world.convert(wave, "p226", torch.Generator().manual_seed(0))
    assert converted.shape == wave.shape and np.abs(converted).max() <= 1
    with pytest.raises(UnknownActionError, match="p999"):
        world.convert(wave, "p999")
    with pytest.raises(ConfigError, match="one row of at least one number"):
        world.frames(np.zeros((2, 3), np.float32))


def test_every_tokenizer_of_sound_is_tested_here() -> None:
    from tiny import AUTOENCODERS, SOUND

    there = {path.stem for path in (Path(configs.__file__).parent / "tokenizer").glob("*.yaml")}
    assert set(TOKENIZERS) == there & SOUND == there - set(AUTOENCODERS)
