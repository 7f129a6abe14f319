"""A codec: streamed is whole, files say what they are, and a model of the codes makes them shorter."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.errors import ConfigError, DataError
from worldmodel.nn.convnets import ConvDecoder, ConvEncoder
from worldmodel.quantizers import ResidualQuantizer, VectorQuantizer
from worldmodel.speech.codec.bitstream import Bitstream, pack, unpack, width_of
from worldmodel.speech.codec.codec import Codec
from worldmodel.speech.codec.entropy import CodeModel, CountModel, decode, encode
from worldmodel.speech.nn.causal import CausalDecoder, CausalEncoder
from worldmodel.speech.nn.mel import expanded
from worldmodel.speech.nn.spectra import SpectralLoss
from worldmodel.tokenizers import VQVAE

STRIDES = (2, 5)
FACTOR = 10


def tokenizer(seed: int = 0, stages: int = 4, **options: object) -> VQVAE:
    torch.manual_seed(seed)
    settings: dict[str, object] = {
        "quantizer": partial(ResidualQuantizer, stages, partial(VectorQuantizer, width=6)),
        "encoder": partial(CausalEncoder, strides=STRIDES),
        "decoder": partial(CausalDecoder, strides=STRIDES),
        "likelihood": SpectralLoss,
        "widths": [4, 8],
        "num_codes": 20,
    }
    made = VQVAE((1, 40), **settings | options)  # type: ignore[arg-type]
    wave = torch.randint(64, 192, (2, 1, 400), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made(wave, torch.Generator().manual_seed(0))  # lays the codebooks on something
    return made


def noise(samples: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def compress(codec: Codec, wave: np.ndarray, codebooks: int | None = None, model: CodeModel | None = None) -> Bitstream:
    return codec.write(codec.encode(wave, codebooks), len(wave), model)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(tokenizer())


@pytest.fixture(scope="module")
def counts(codec: Codec) -> CountModel:
    return CountModel([codec.encode(noise(4000, seed)) for seed in range(3)], codec.num_codes)


def test_training_it_is_training_any_tokenizer() -> None:
    made = tokenizer(stages=3)
    frames = torch.randint(64, 192, (2, 1, 400), dtype=torch.uint8)
    result = made.train()(frames, torch.Generator().manual_seed(0))
    sum(result.losses.values()).backward()
    assert result.losses.keys() == {"reconstruction", "commitment"} and result.codes.shape == (2, 40, 3)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_codes_are_those_of_the_tokenizer_and_fewer_codebooks_the_first_of_them(codec: Codec) -> None:
    wave = noise(203)
    codes = codec.encode(wave)
    assert codes.shape == (21, 4) and codes.dtype == np.int64
    for used in range(1, 5):
        assert (codec.encode(wave, used) == codes[:, :used]).all()
        assert codec.decode(codes[:, :used]).shape == (210,)
    whole = codec.tokenizer.expected_frames(torch.from_numpy(codes)[None])
    np.testing.assert_allclose(codec.decode(codes), expanded(whole.clamp(-1, 1))[0, 0].detach().numpy(), atol=1e-6)
    assert codec.encode(noise(0)).shape == (0, 4) and codec.decode(np.zeros((0, 2), np.int64)).shape == (0,)


@pytest.mark.parametrize("sizes", [[203], [1] * 203, [7, 0, 96, 100], [10, 190, 3]])
@pytest.mark.parametrize("used", [1, 4])
def test_streamed_is_whole(codec: Codec, sizes: list[int], used: int) -> None:
    wave = noise(203)
    codes, sounds, come = [], [], 0
    received, decoded = itertools.tee(codec.encode_stream(np.split(wave, np.cumsum(sizes)[:-1]), used))
    for size, part, sound in zip([*sizes, 7], received, codec.decode_stream(decoded), strict=True):
        codes.append(part)
        sounds.append(sound)
        come += size  # the end fills the last position up
        assert sum(map(len, sounds)) == come // codec.latency * codec.latency  # never later than it says
    whole = codec.encode(wave, used)
    assert (np.concatenate(codes) == whole).all()
    np.testing.assert_allclose(np.concatenate(sounds), codec.decode(whole), atol=1e-5)


def test_what_looks_ahead_is_coded_whole_only() -> None:
    ahead = Codec(tokenizer(encoder=ConvEncoder, decoder=ConvDecoder))
    assert not ahead.causal and ahead.encode(noise(41)).shape == (11, 4)
    for stream in (ahead.encode_stream([noise(41)]), ahead.decode_stream([ahead.encode(noise(41))])):
        with pytest.raises(ConfigError, match="ConvEncoder and ConvDecoder read ahead"):
            next(stream)


def test_bits_buy_codebooks(codec: Codec) -> None:
    assert codec.bits_per_second(1) == 5 * 1600
    assert [codec.codebooks_of(kbps) for kbps in (8, 15.9, 16, 1000)] == [1, 1, 2, 4]
    with pytest.raises(ConfigError, match=r"7\.9 kbit/s are too few; this codec needs 8"):
        codec.codebooks_of(7.9)
    stream = compress(codec, noise(1600), codec.codebooks_of(24))
    assert stream.codebooks == 3 and stream.bits_per_second == pytest.approx(24_000)


def test_a_single_codebook_is_all_or_nothing() -> None:
    plain = Codec(tokenizer(quantizer=partial(VectorQuantizer, width=6)))
    stream = compress(plain, noise(95))
    assert stream.codebooks == 1 and plain.decode(plain.read(stream)).shape == (100,)
    with pytest.raises(ConfigError, match="exactly 1 codebooks, not 2"):
        plain.encode(noise(95), 2)


@pytest.mark.parametrize("size", [1, 2, 3, 20, 256, 1024, 1025])
def test_packed_codes_come_back_in_as_few_bytes_as_their_bits(size: int) -> None:
    codes = np.random.default_rng(0).integers(size, size=(37, 3))
    codes[0] = size - 1
    data = pack(codes, size)
    assert len(data) == (37 * 3 * width_of(size) + 7) // 8
    assert (unpack(data, (37, 3), size) == codes).all()
    with pytest.raises(ValueError, match="not all in"):
        pack(np.array([size]), size)
    if size > 1:
        with pytest.raises(DataError, match=r"need \d+ bytes, not"):
            unpack(data[:-1], (37, 3), size)
    if size == 20:
        with pytest.raises(DataError, match="code 31 is none of 20"):
            unpack(b"\xff" * len(data), (37, 3), size)


@pytest.mark.parametrize("modelled", [False, True])
def test_files_come_back(codec: Codec, counts: CountModel, modelled: bool, tmp_path: Path) -> None:
    model = counts if modelled else None
    for samples in (0, 1, 10, 203):
        wave = noise(samples)
        stream = compress(codec, wave, 3, model)
        stream.save(tmp_path / "a" / "wave.wmc")
        found = Bitstream.load(tmp_path / "a" / "wave.wmc")
        assert found == stream and found.rate == 16_000 and found.seconds == samples / 16_000
        assert (codec.read(found, model) == codec.encode(wave, 3)).all()
        assert (tmp_path / "a" / "wave.wmc").stat().st_size == 38 + len(stream.payload)


def test_a_damaged_foreign_or_newer_file_is_one_clear_line(codec: Codec, tmp_path: Path) -> None:
    path = tmp_path / "wave.wmc"
    good = compress(codec, noise(203)).to_bytes()

    def line(data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(DataError) as caught:
            Bitstream.load(path)
        assert "\n" not in str(caught.value) and "wave.wmc" in str(caught.value)
        return str(caught.value)

    assert "no bitstream of this codec" in line(b"RIFF....WAVE") and "no bitstream" in line(b"")
    assert "version 9" in line(good[:4] + b"\x09" + good[5:])
    for length in range(4, len(good), 7):
        assert "cut short" in line(good[:length])
    for position in range(5, len(good), 7):
        assert "checksum" in line(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
    assert "checksum" in line(good + b"x")
    liar = dataclasses.replace(Bitstream.of_bytes(good), codebooks=0)
    assert "contradicts itself" in line(liar.to_bytes())
    with pytest.raises(DataError, match=r"cannot read .*none\.wmc: No such file"):
        Bitstream.load(tmp_path / "none.wmc")
    with pytest.raises(DataError, match="2³² samples"):
        dataclasses.replace(liar, samples=2**32).to_bytes()


def test_another_codec_or_model_is_refused(codec: Codec, counts: CountModel) -> None:
    stream = compress(codec, noise(203), 2)
    other = Codec(tokenizer(seed=1))
    with pytest.raises(DataError, match=f"written by the codec {codec.fingerprint.hex()}, and this one is"):
        other.read(stream)
    assert Codec(tokenizer()).fingerprint == codec.fingerprint
    with pytest.raises(DataError, match=r"4 at 16,000 Hz$"):
        codec.read(dataclasses.replace(stream, codebooks=5))
    with pytest.raises(DataError, match="need"):
        codec.read(dataclasses.replace(stream, samples=2**31))
    coded = compress(codec, noise(203), 2, counts)
    with pytest.raises(DataError, match=r"entropy-coded by the model .* none was given"):
        codec.read(coded)
    fewer = CountModel([codec.encode(noise(4000, 9))], codec.num_codes)
    with pytest.raises(DataError, match=f"and this one is {fewer.fingerprint.hex()}"):
        codec.read(coded, fewer)
    with pytest.raises(ConfigError, match="of 4 codebooks of 99 codes"):
        compress(codec, noise(203), 2, CountModel([np.zeros((3, 4), np.int64)], 99))
    assert (codec.read(stream, counts) == codec.read(stream)).all()  # fixed width needs none


class Oracle(CodeModel):
    """Predicts the next code almost surely: of the code c before, (7 c + 3) mod K."""

    num_codes, num_codebooks, fingerprint = 64, 3, b"oracle.."

    def __init__(self, chance: Callable[[int], float]):
        self.chance = chance

    def predict(self, num_codebooks: int) -> Generator[np.ndarray, int, None]:
        code = 0
        while True:
            chances = np.full(64, (1 - self.chance(code)) / 63)
            chances[(7 * code + 3) % 64] = self.chance(code)
            code = yield chances


def test_a_code_costs_what_its_probability_says_and_the_improbable_can_be_sent() -> None:
    sure = Oracle(lambda code: 0.99)
    expected, state = [], 0
    for _ in range(900):
        state = (7 * state + 3) % 64
        expected.append(state)
    codes = np.array(expected).reshape(300, 3)
    for model, bits in ((sure, -900 * np.log2(0.99)), (Oracle(lambda code: 1 / 64), 900 * 6.0)):
        data, spent = encode(model, codes)
        assert spent == pytest.approx(bits) and bits <= 8 * len(data) + 1 and 8 * len(data) <= bits + 64
        assert (decode(model, data, 300, 3) == codes).all() and decode(model, data, 0, 3).shape == (0, 3)
    never = Oracle(lambda code: 1.0)
    wrong = np.zeros((20, 3), np.int64)
    assert (decode(never, encode(never, wrong)[0], 20, 3) == wrong).all()
    with pytest.raises(DataError, match="words of 4 bytes"):
        decode(sure, data[:-1], 300, 3)


def chain(places: int, seed: int) -> np.ndarray:
    """Codes of two stages: the first follows itself, the second the first, each three times in four."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(16, size=(places, 2))
    for place in range(places):
        if place and generator.random() < 0.75:
            codes[place, 0] = (codes[place - 1, 0] * 3 + 1) % 16
        if generator.random() < 0.75:
            codes[place, 1] = (codes[place, 0] + 5) % 16
    return codes


def test_counts_find_what_codes_follow_and_come_near_the_entropy() -> None:
    model = CountModel([chain(3000, seed) for seed in range(3)], 16)
    for context in ((0, 16, 16), (1, 16, 3), (1, 16, 4)):
        chances = model.probabilities(*context)
        assert chances.shape == (16,) and (chances > 0).all() and chances.sum() == pytest.approx(1)
    # 3/4 + 1/64 for one code, 1/64 for each of 15 others
    entropy = -(49 / 64) * np.log2(49 / 64) - 15 / 64 * np.log2(1 / 64)
    for used, tolerance in ((2, 0.03), (1, 0.05)):
        _, bits = encode(model, chain(2000, 9)[:, :used])
        assert bits / (2000 * used) == pytest.approx(entropy, rel=tolerance)


def test_counts_of_codes_without_order_cost_next_to_nothing_more_than_fixed_width() -> None:
    random = [np.random.default_rng(seed).integers(16, size=(1000, 2)) for seed in range(4)]
    _, bits = encode(CountModel(random[:3], 16), random[3])
    assert 4 <= bits / 2000 < 4.03  # leave-one-out counts give no weight to pairs that occur once


def test_counts_are_saved_and_refused_without_codes(counts: CountModel, tmp_path: Path) -> None:
    counts.save(tmp_path / "counts.safetensors")
    found = CountModel.load(tmp_path / "counts.safetensors")
    assert found.fingerprint == counts.fingerprint
    assert (found.probabilities(1, 20, 2) == counts.probabilities(1, 20, 2)).all()
    content = bytearray((tmp_path / "counts.safetensors").read_bytes())
    content[-3] ^= 1
    for bad in (b"nothing of the kind", b"", bytes(content)):
        (tmp_path / "counts.safetensors").write_bytes(bad)
        with pytest.raises(DataError, match=r"counts\.safetensors is no entropy model"):
            CountModel.load(tmp_path / "counts.safetensors")
    with pytest.raises(DataError, match="cannot read"):
        CountModel.load(tmp_path / "none.safetensors")
    with pytest.raises(DataError, match="there are none"):
        CountModel([np.zeros((0, 4), np.int64)], 16)
