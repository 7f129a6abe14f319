"""Speech comes in: any rate and layout, trimmed, of one loudness, what is bad named; phones fit the windows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sounds import RATE, put, sphere, tiny_speech, tiny_timit, tiny_vctk, voice, write_timit, write_vctk
from test_sources import shared
from test_take_in import take_in

from worldmodel.data.sources import Stores, fill
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, DataError
from worldmodel.speech.sound import (
    LOUDNESS,
    PEAK,
    SILENCE,
    active,
    levels,
    normalise,
    read_sound,
    to_frames,
    to_samples,
    to_wave,
    trim,
)
from worldmodel.speech.sources import (
    FOLDING,
    NO_PHONE,
    PHONEMES,
    TIMIT,
    VCTK,
    Phones,
    SpeechFolder,
    frame_phones,
    phone_files,
    phoneme_index,
    read_phones,
)

# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_the_frequency_of_a_sine_and_its_level(rate: int, tmp_path: Path) -> None:
    time = np.arange(rate) / rate
    file = put(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 1000 * time), rate)
    wave = read_sound(file)
    assert wave.dtype == np.float32 and len(wave) == RATE
    inner = wave[2000:14000]
    spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner))))
    assert np.fft.rfftfreq(len(inner), 1 / RATE)[spectrum.argmax()] == pytest.approx(1000, abs=1.5)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2000, 14000) / RATE)
    np.testing.assert_allclose(inner, expected, atol=2e-3)


def test_nothing_folds_back_from_above(tmp_path: Path) -> None:
    time = np.arange(48000) / 48000
    wave = read_sound(put(tmp_path / "a.flac", 0.5 * np.sin(2 * np.pi * 12000 * time), 48000))
    assert np.abs(wave[1000:-1000]).max() < 1e-3


def test_channels_are_averaged_and_formats_agree(tmp_path: Path) -> None:
    wave = voice(0.2)
    stereo = np.stack([wave, np.zeros_like(wave)], 1)
    np.testing.assert_allclose(read_sound(put(tmp_path / "a.wav", stereo)), wave / 2, atol=2e-5)
    kinds = {"a.flac": {}, "b.wav": {"subtype": "FLOAT"}, "c.wav": {"subtype": "PCM_24"}, "D.WAV": {}}
    for name, options in kinds.items():
        np.testing.assert_allclose(read_sound(put(tmp_path / name, wave, **options)), wave, atol=5e-5)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def overwritten(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 300] = b"\xa5" * 300
    file.write_bytes(content)


def holding(value: float) -> Callable[[Path], object]:
    wave = voice()
    wave[100] = value
    return lambda file: soundfile.write(file, wave, RATE, subtype="FLOAT", format="WAV")


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    (".flac", cut, "cannot be read .damaged or no sound"),
    (".flac", overwritten, "cannot be read .damaged or no sound"),
    (".wav", cut, r"is cut off: [\d,]+ of 4,800 samples are missing"),
    (".WAV", cut, r"is cut off: [\d,]+ of 4,800 samples are missing"),
    (".wav", lambda file: file.write_bytes(file.read_bytes()[:30]), "damaged or no sound|is cut off"),
    (".WAV", lambda file: file.write_bytes(sphere(voice(), coding="pcm,embedded-shorten-v2.00")), "by shorten"),
    (".wav", lambda file: file.write_bytes(b""), "is empty"),
    (".flac", lambda file: file.write_bytes(b"<html>not found</html>"), r"no sound: Format not recognised"),
    (".wav", lambda file: soundfile.write(file, voice()[:0], RATE), "holds no sample"),
    (".wav", holding(np.nan), "no numbers"),
    (".wav", holding(np.inf), "no numbers"),
    (".wav", lambda file: file.unlink(), "No such file"),
    (".wav", lambda file: (file.unlink(), file.mkdir()), "cannot be read"),
]


@pytest.mark.parametrize(("suffix", "damage", "message"), DAMAGES, ids=[str(n) for n in range(len(DAMAGES))])
def test_a_bad_file_is_one_line_with_its_name(
    suffix: str, damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    file = put(tmp_path / f"bad{suffix}", voice())
    damage(file)
    with pytest.raises(DataError, match=message) as caught:
        read_sound(file)
    assert f"bad{suffix}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_wav_from_a_pipe_has_no_length_and_is_whole(tmp_path: Path) -> None:
    file = put(tmp_path / "a.wav", voice())
    content = file.read_bytes()
    wanted = read_sound(file)
    for size in (0, 0x7FFFF000, 0x7FFFFFFF, 0xFFFFFF00, 0xFFFFFFFF):  # as GStreamer, SoX, arecord and ffmpeg write it
        length = size.to_bytes(4, "little")
        file.write_bytes(content[:4] + length + content[8:40] + length + content[44:])
        np.testing.assert_array_equal(read_sound(file), wanted)
    file.write_bytes(content[:40] + bytes(4) + b"LIST" + bytes(4))  # no sample, and then another chunk
    with pytest.raises(DataError, match="holds no sample"):
        read_sound(file)


def test_a_flac_from_a_pipe_has_no_length_and_is_whole(tmp_path: Path) -> None:
    file = put(tmp_path / "a.flac", voice())
    wanted, content = read_sound(file), bytearray(file.read_bytes())
    content[21] &= 0xF0  # the number of samples, 36 bits
    content[22:26] = bytes(4)
    file.write_bytes(content)
    np.testing.assert_array_equal(read_sound(file), wanted)
    cut(file)
    with pytest.raises(DataError, match="damaged or no sound"):
        read_sound(file)


def test_intact_sound_that_is_not_supported_is_not_called_damaged(tmp_path: Path) -> None:
    file = put(tmp_path / "a.wav", voice())
    content = bytearray(file.read_bytes())
    content[20:22] = b"\xff\0"
    file.write_bytes(content)
    with pytest.raises(
        DataError, match=r"a\.wav is a WAV file of compression 0x00ff, which is not supported .* ffmpeg -i"
    ):
        read_sound(file)
    file.write_bytes(b"\0\0\0\x1cftypM4A \0\0")
    with pytest.raises(
        DataError, match=r"a\.wav is a file of format M4A, which is not supported here; convert it: ffm"
    ):
        read_sound(file)


def test_the_only_utterances_are_not_held_out(tmp_path: Path) -> None:
    put(tmp_path / "wav48_silence_trimmed/p225/p225_003_mic1.flac", voice())
    source = VCTK(str(tmp_path))
    assert [source.read(index).held_out for index in range(len(source))] == [False]


# ------------------------------------------------------------------------------------------- trimming, loudness, frames


def test_silence_at_the_ends_is_cut_and_pauses_are_kept() -> None:
    generator = np.random.default_rng(0)
    noise = (3e-4 * generator.standard_normal(3 * RATE)).astype(np.float32)
    wave = noise.copy()
    wave[16000:24000] += voice(0.5)
    wave[32000:36000] += voice(0.25)
    wave[4000:4020] += 0.5  # a click is no speech
    trimmed = trim(wave, RATE)
    start = 16000 - 0.05 * RATE
    assert len(trimmed) == pytest.approx(36000 + 0.05 * RATE - start, abs=0.06 * RATE)
    lag = np.abs(wave[:, None] - trimmed[0]).ravel().argmin()
    assert lag == pytest.approx(start, abs=0.04 * RATE)
    np.testing.assert_array_equal(trimmed, wave[lag : lag + len(trimmed)])
    assert len(trim(voice(), RATE)) == len(voice())
    assert len(trim(noise, RATE)) == 0 and len(trim(0 * noise, RATE)) == 0 and len(trim(0 * noise + 0.7, RATE)) == 0


def test_rumble_is_no_speech() -> None:
    time = np.arange(2 * RATE) / RATE
    wave = (0.1 * np.sin(2 * np.pi * 20 * time)).astype(np.float32)
    wave[8000:16000] += voice(0.5)
    assert len(trim(wave, RATE)) < 0.7 * RATE


@pytest.mark.parametrize("gain", [0.02, 1.0, 3.0])
def test_the_active_part_has_one_loudness(gain: float) -> None:
    wave = np.concatenate([np.zeros(RATE, np.float32), gain * voice(0.5), np.zeros(RATE, np.float32)]) + 0.01
    result = normalise(wave, RATE)
    voiced = result[RATE + 800 : RATE + 7200]
    assert 10 * np.log10(np.mean(voiced**2)) == pytest.approx(LOUDNESS, abs=0.5)
    assert result.dtype == np.float32 and abs(result.mean()) < 1e-5


def test_a_peak_is_never_clipped_and_silence_not_raised() -> None:
    spiky = 0.05 * voice(0.5)
    spiky[::400] = 0.9
    assert np.abs(normalise(spiky, RATE, -3.0)).max() == pytest.approx(PEAK, abs=1e-4)
    hush = np.full(1000, 1e-5, np.float32)
    np.testing.assert_array_equal(normalise(hush, RATE), hush)
    assert not active(hush, RATE).any() and len(levels(hush, RATE)) == 7


@pytest.mark.parametrize(("samples", "count"), [(1, 0), (320, 0), (321, 1), (640, 1), (960, 1), (961, 2), (1280, 2)])
def test_more_than_half_a_window_is_filled_up_with_silence(samples: int, count: int) -> None:
    wave = np.full(samples, 0.5, np.float32)
    frames = to_frames(wave)
    assert frames.shape == (count, 1, 640) and frames.dtype == np.uint8
    flat = frames.reshape(-1)
    assert (flat[:samples] == to_samples(np.float32(0.5))).all() and (flat[samples:] == SILENCE).all()
    np.testing.assert_allclose(to_wave(frames).ravel()[: min(samples, len(flat))], 0.5, atol=0.02)


# ---------------------------------------------------------------------------------------------------------------- VCTK


def test_both_layouts_of_vctk_are_read_alike(tmp_path: Path) -> None:
    new, old = VCTK(str(write_vctk(tmp_path / "new"))), VCTK(str(write_vctk(tmp_path / "old", old=True)))
    assert new.spec == old.spec and new.keys == old.keys
    assert new.spec.frame_shape == (1, 640) and new.spec.rate == 25.0 and new.spec.action_names == ("p225", "p226")
    assert new.keys == [f"{speaker}_{n:03d}" for speaker in ("p225", "p226") for n in (1, 2, 3, 4)]
    item = new.read(6)
    assert item.key == "p226_003" and item.held_out and not new.read(5).held_out
    episode = item.episode
    assert episode.terminated and not episode.truncated and episode.condition == 1
    assert episode.actions.tolist() == [1] * len(episode.frames) and not episode.rewards.any()
    wave = normalise(trim(read_sound(tmp_path / "new/wav48_silence_trimmed/p226/p226_003_mic1.flac"), RATE), RATE)
    np.testing.assert_array_equal(episode.frames, to_frames(wave))
    assert VCTK(str(tmp_path / "new/wav48_silence_trimmed")).keys == new.keys  # the same from nearer


def test_settings_of_vctk(tmp_path: Path) -> None:
    folder = str(write_vctk(tmp_path, ("p225", "p226", "s5"), 9))
    source = VCTK(folder, window=320, rate=8000, loudness=None, speakers=["s5", "p225"], mic="mic2")
    assert source.spec.action_names == ("p225", "s5") and source.spec.frame_shape == (1, 320)
    assert source.spec.rate == 25.0 and len(source) == 18 and source.keys[0] == "p225_001_mic2"
    assert [source.keys[i] for i in range(18) if source.read(i).held_out] == [
        f"{speaker}_{number}_mic2" for speaker in ("p225", "s5") for number in ("003", "008")
    ]
    loud = to_wave(VCTK(folder, loudness=None).read(0).episode.frames)
    np.testing.assert_allclose(np.abs(loud).max(), 2 * np.abs(to_wave(source.read(0).episode.frames)).max(), rtol=0.1)
    with pytest.raises(DataError, match=r"unknown speaker 'p999'; .* has p225, p226, s5$"):
        VCTK(folder, speakers=["p225", "p999"])


def test_speakers_without_texts_or_recordings(tmp_path: Path) -> None:
    write_vctk(tmp_path, ("p225", "p315"), 1)
    (tmp_path / "txt/p225").mkdir(parents=True)
    (tmp_path / "txt/p225/p225_001.txt").write_text("Please call Stella.")
    (tmp_path / "wav48_silence_trimmed/p280").mkdir()
    (tmp_path / "wav48_silence_trimmed/log.txt").write_text("…")
    assert VCTK(str(tmp_path)).spec.action_names == ("p225", "p315")


@pytest.mark.parametrize("source", [VCTK, TIMIT])
def test_a_folder_without_speech_is_one_line(source: Callable[[str], object], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; source\.path=… names the folder of"):
        source(str(tmp_path / "none"))
    put(tmp_path / "song.wav", voice())
    with pytest.raises(DataError, match=r"there is no recording .* names the folder of"):
        source(str(tmp_path))


def test_what_is_silent_or_bad_is_named_and_the_others_come_in(tmp_path: Path) -> None:
    source = tiny_vctk(tmp_path / "set")
    folder = tmp_path / "set/wav48_silence_trimmed/p225"
    put(folder / "p225_001_mic1.flac", np.zeros(8000, np.float32))
    cut(folder / "p225_002_mic1.flac")
    put(folder / "p225_003_mic1.flac", voice(0.01))
    with EpisodeStore.writer(tmp_path / "data", source.spec) as store:
        filled = fill(store, source)
        assert filled.added == 5 and len(filled.unreadable) == 3
        for reason, name, why in zip(
            filled.unreadable,
            ("001", "002", "003"),
            ("is silent", "damaged or no sound", "160 samples"),
            strict=True,
        ):
            assert f"p225_{name}_mic1.flac {why}" in reason or (f"p225_{name}" in reason and why in reason)
        put(folder / "p225_001_mic1.flac", voice())
        assert fill(store, source).added == 1


# --------------------------------------------------------------------------------------------------------------- TIMIT

SPEAKERS = ("fvmh0", "mcpm0", "faem0", "marc0", "mbma1", "fjsp0")


@pytest.mark.parametrize("original", [False, True])
def test_both_layouts_of_timit_are_read_alike(original: bool, tmp_path: Path) -> None:
    folder = write_timit(tmp_path, SPEAKERS, original)
    source = TIMIT(str(folder))
    assert source.spec.action_names == tuple(sorted(SPEAKERS)) and len(source) == 18
    assert source.keys[:3] == ["faem0/sa1", "faem0/si3", "faem0/sx26"]
    held_out = {source.keys[i].partition("/")[0] for i in range(18) if source.read(i).held_out}
    assert held_out == {"fjsp0", "mbma1"}  # every second of the sorted women, and of the sorted men
    episode = source.read(0).episode
    assert len(episode.frames) == 7  # seven and a half windows, of which the half is dropped
    assert phone_files(folder).keys() == set(source.keys)
    assert phone_files(folder)["fvmh0/sa1"].suffix == (".PHN" if original else ".phn")


def test_silence_stays_in_timit_so_that_phones_fit(tmp_path: Path) -> None:
    wave = np.concatenate([np.zeros(6400, np.float32), voice(0.2), np.zeros(6400, np.float32)])
    put(tmp_path / "dr1-fvmh0/sa1.flac", wave)
    put(tmp_path / "dr1-fvmh0/sa1.wav", wave)  # of two with one key, one
    frames = TIMIT(str(tmp_path)).read(0).episode.frames
    assert len(TIMIT(str(tmp_path))) == 1 and len(frames) == 25
    assert (frames[:10] == SILENCE).all() and (frames[-10:] == SILENCE).all() and not (frames[10:15] == SILENCE).all()


# ------------------------------------------------------------------------------------------- any folder, several stores


def test_any_folder_of_speech_has_a_folder_per_speaker(tmp_path: Path) -> None:
    source = tiny_speech(tmp_path / "set")
    put(tmp_path / "set/anna/1.flac", voice())  # of two with one key, one
    put(tmp_path / "set/ben/.hidden/9.wav", voice())
    put(tmp_path / "set/carl the first/1.WAV", voice(rate=8000), 8000)
    put(tmp_path / "set/beside.wav", voice())
    (tmp_path / "set/ben/notes.txt").write_text("…")
    grown = SpeechFolder(str(tmp_path / "set"))
    assert grown.spec.action_names == ("anna", "ben", "carl_the_first", "set")
    assert set(grown.keys) == {*source.keys, "carl the first/1", "beside"} and len(source) == 5
    for index, key in enumerate(grown.keys):
        item = grown.read(index)
        assert grown.spec.action_names[item.episode.condition] == {"beside": "set"}.get(
            key, key.split("/")[0].replace(" ", "_")
        )
        assert item.key == key and len(item.episode.frames) in (7, 8)
    with pytest.raises(DataError, match="does not exist"):
        SpeechFolder(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"there is no recording below .*; known are \.wav, \.flac"):
        SpeechFolder(str(tmp_path / "empty"))


def test_a_tenth_of_the_utterances_or_of_the_speakers_is_held_out(tmp_path: Path) -> None:
    for speaker in range(40):
        for number in range(5):
            put(tmp_path / f"s{speaker}/{number}.wav", voice(0.1))
    utterances, speakers = SpeechFolder(str(tmp_path)), SpeechFolder(str(tmp_path), held_out="speakers")
    assert utterances.keys == speakers.keys
    assert 8 < sum(each.held_out for each in utterances.utterances) < 35
    chosen = {each.speaker for each in speakers.utterances if each.held_out}
    assert 1 <= len(chosen) <= 10
    assert all(each.held_out == (each.speaker in chosen) for each in speakers.utterances)
    few = tiny_speech(tmp_path / "few")
    assert sum(each.held_out for each in few.utterances) >= 1
    (tmp_path / "one").mkdir()
    put(tmp_path / "one/1.wav", voice())
    assert not SpeechFolder(str(tmp_path / "one")).utterances[0].held_out


def test_stores_are_merged_with_all_speakers_and_their_held_out_episodes(tmp_path: Path) -> None:
    parts = [tiny_timit(tmp_path / "timit"), tiny_vctk(tmp_path / "vctk")]
    for source in parts:
        with EpisodeStore.writer(tmp_path / f"data/{source.spec.env_id}", source.spec) as store:
            fill(store, source)
    paths = [str(tmp_path / f"data/{name}") for name in ("timit", "vctk")]
    merged = Stores(paths, "both")
    assert merged.spec.action_names == ("faem0", "fvmh0", "marc0", "mcpm0", "p225", "p226")
    assert merged.spec.env_id == "both" and merged.spec.rate == 25.0
    assert merged.keys == [f"{source.spec.env_id}/{key}" for source in parts for key in source.keys]
    with EpisodeStore.writer(tmp_path / "data/both", merged.spec) as store:
        assert fill(store, merged).added == len(parts[0]) + len(parts[1])
        assert fill(store, merged).added == 0
        for entry, index in zip(store.entries, range(len(store)), strict=True):
            name, _, key = str(entry.key).partition("/")
            source = parts[name == "vctk"]
            item, episode = source.read(source.keys.index(key)), store.episode(index)
            np.testing.assert_array_equal(item.episode.frames, episode.frames)
            own = source.spec.action_names[item.episode.condition]
            assert store.spec.action_names[episode.condition] == own and entry.held_out == item.held_out


def test_training_episodes_of_a_store_may_be_repeated(tmp_path: Path) -> None:
    parts = [tiny_timit(tmp_path / "timit"), tiny_vctk(tmp_path / "vctk")]
    for source in parts:
        with EpisodeStore.writer(tmp_path / f"data/{source.spec.env_id}", source.spec) as store:
            fill(store, source)
    paths = [str(tmp_path / f"data/{name}") for name in ("timit", "vctk")]
    merged = Stores(paths, repeat=[3, 1])
    training = [key for index, key in enumerate(parts[0].keys) if not parts[0].read(index).held_out]
    copies = [f"timit/{key}#{copy}" for copy in (2, 3) for key in training]
    assert set(merged.keys) == {*Stores(paths).keys, *copies} and len(merged) == len(set(merged.keys))
    for index, key in enumerate(merged.keys):
        assert "#" not in key or not merged.read(index).held_out
    with pytest.raises(ConfigError, match=r"source\.repeat has 1 numbers for 2 stores"):
        Stores(paths, repeat=[2])


def test_stores_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    for source in (tiny_vctk(tmp_path / "set"), VCTK(str(tmp_path / "set"), window=320, name="short")):
        with EpisodeStore.writer(tmp_path / source.spec.env_id, source.spec) as store:
            fill(store, source)
    vctk, short = str(tmp_path / "vctk"), str(tmp_path / "short")
    with pytest.raises(
        DataError, match=r"short has frames of \(1, 320\) at 50 a second, and .*; they cannot be merged"
    ):
        Stores([vctk, short])
    with pytest.raises(DataError, match=r"two stores hold data of the same name \(vctk@"):
        Stores([vctk, vctk])
    with pytest.raises(DataError, match="none"):
        Stores([vctk, str(tmp_path / "none")])


# -------------------------------------------------------------------------------------------------------------- phones


def names_of(found: np.ndarray) -> list[str | None]:
    return [None if place == NO_PHONE else PHONEMES[place] for place in found]


def test_a_window_has_the_phoneme_that_overlaps_it_most() -> None:
    edges = np.array([0, 600, 1000, 1500, 2000, 2600])
    aligned = Phones(edges[:-1], edges[1:], ("h#", "aa", "kcl", "pau", "q"))
    # 600 of h#; 360 of aa against 280 of kcl; kcl 220 + pau 420, one phoneme; pau 80 against 560 of q; then 40 of q
    assert names_of(frame_phones(aligned, 6)) == ["sil", "aa", "sil", None, None, None]
    assert names_of(frame_phones(aligned, 4, hop=1000)) == ["sil", "sil", None, None]
    together = Phones(np.array([0, 200, 420]), np.array([200, 420, 640]), ("pcl", "aa", "h#"))
    assert names_of(frame_phones(together, 1)) == ["sil"]  # 420 in two parts against 220
    tie = Phones(np.array([0, 320]), np.array([320, 640]), ("s", "aa"))
    assert names_of(frame_phones(tie, 1)) == ["s"]
    assert frame_phones(tie, 0).shape == (0,)


def test_the_foldings_are_those_of_lee_and_hon() -> None:
    assert len(PHONEMES) == 39 and len(set(FOLDING) - {"#"}) == 61
    some = {"ao": "aa", "zh": "sh", "ax-h": "ah", "epi": "sil", "h#": "sil", "dcl": "sil", "nx": "n", "dx": "dx"}
    for phone, name in some.items():
        assert PHONEMES[phoneme_index(phone)] == name
    assert phoneme_index("q") == NO_PHONE
    with pytest.raises(DataError, match="unknown phone 'xx'; TIMIT has"):
        phoneme_index("xx")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no phone"), ("0 10", "no alignment"), ("0 x aa", "no alignment"), ("9 3 aa", "ends before"), ("ä", "no al")],
)
def test_an_alignment_that_is_none_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.phn"
    file.write_text(text)
    with pytest.raises(DataError, match=rf"a\.phn .*{message}"):
        read_phones(file)
    file.write_text("0 10 H#\n10 20 aa\n")
    assert read_phones(file).phones == ("h#", "aa")
    with pytest.raises(DataError, match="cannot be read"):
        read_phones(tmp_path / "b.phn")


# ---------------------------------------------------------------------------------------------------- the command line


def test_each_corpus_is_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_vctk(tmp_path / "vctk")
    write_timit(tmp_path / "timit", SPEAKERS, original=True)
    data = tmp_path / "data"
    argv = ["source=vctk", f"source.path={tmp_path / 'vctk'}", f"data={data}/v"]
    code, out, err = take_in(capsys, *argv, "source.speakers=[p226]")
    assert (code, err) == (0, "")
    seconds = EpisodeStore.open(data / "v").frames / 25
    there = f"{seconds * 25:,.0f} frames ({seconds:.0f} s) in 4 episodes (1 held out), 1 speakers (p226)"
    assert out.splitlines()[1] == f"now       {there}, at {data}/v"
    code, out, err = take_in(capsys, "source=timit", f"source.path={tmp_path / 'timit'}", f"data={data}/t")
    assert (code, err) == (0, "") and "18 episodes (6 held out), 6 speakers (faem0, fjsp0, fvmh0, …), at" in out
    for override, message in (
        ("source.speakers=[p999]", "unknown speaker 'p999'"),
        ("source.speakers=p225", "source.speakers is 'p225'; it must be a list"),
        ("source.window=0", "source.window is 0; it must be at least 1"),
        ("source.mic=mic3", "source.mic is 'mic3'"),
        ("source.loudness=3", "source.loudness is 3"),
    ):
        code, _, err = take_in(capsys, *argv, override)
        assert code == 2 and message in err and len(err.splitlines()) == 1


# ------------------------------------------------------------------------------------------------------ the real thing


def test_the_real_vctk_is_read() -> None:
    source = VCTK(shared("vctk"))
    place = source.keys.index("p225_023")
    held_out = [key for key in source.keys if key.endswith("_023")]
    assert len(held_out) > 5 and source.read(place).held_out
    for index in (0, place, len(source) - 1):
        wave = to_wave(source.read(index).episode.frames).ravel()
        info = soundfile.info(str(source.utterances[index].file))
        assert 0.5 * info.duration < len(wave) / RATE <= info.duration + 0.04
        assert -27 < 10 * np.log10(np.mean(wave**2)) < -22


def test_phones_of_the_real_timit_fit_its_windows() -> None:
    """Where the alignment says silence it is quiet, where it says a vowel it is not."""
    folder = shared("timit")
    source, files = TIMIT(folder), phone_files(folder)
    assert set(source.keys) == set(files)
    quiet, loud = [], []
    for index in range(0, len(source), 16):
        frames = source.read(index).episode.frames
        found = names_of(frame_phones(read_phones(files[source.keys[index]]), len(frames)))
        power = 10 * np.log10((to_wave(frames).reshape(len(frames), -1) ** 2).mean(1) + 1e-9)
        quiet += [value for value, name in zip(power, found, strict=True) if name == "sil"]
        loud += [value for value, name in zip(power, found, strict=True) if name in ("aa", "ae", "iy", "ay", "ow")]
    assert np.median(loud) - np.median(quiet) > 15
