"""Sound goes out: files hold what was given, whole; the page of spectrograms shows it."""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from sounds import RATE, voice

from worldmodel.errors import ConfigError, DataError
from worldmodel.speech.media import log_mels, save_sound, spectrogram
from worldmodel.speech.sound import read_sound


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".FLAC"])
def test_a_wave_is_written_whole_with_16_bits(suffix: str, tmp_path: Path) -> None:
    wave = voice(0.2)
    file = save_sound(tmp_path / f"deep/a{suffix}", wave, RATE)
    np.testing.assert_allclose(read_sound(file, RATE), wave, atol=5e-5)
    info = soundfile.info(str(file))
    assert (info.samplerate, info.channels, info.subtype) == (RATE, 1, "PCM_16")
    assert [path.name for path in file.parent.iterdir()] == [f"a{suffix}"]
    save_sound(file, np.array([-3.0, 0.0, 3.0]), RATE)
    np.testing.assert_allclose(read_sound(file, RATE), [-1, 0, 1], atol=1e-4)


def test_what_cannot_be_written_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    file = save_sound(tmp_path / "a.wav", voice(0.1), RATE)
    before = file.read_bytes()
    for wave in (np.zeros((2, 9)), np.zeros(0), np.array([np.nan])):
        with pytest.raises(DataError, match="cannot write"):
            save_sound(file, wave, RATE)
    assert file.read_bytes() == before
    with pytest.raises(ConfigError, match=r"must end in \.wav, \.flac"):
        save_sound(tmp_path / "a.mp3", voice(0.1), RATE)


def test_the_loudest_band_is_that_of_the_tone() -> None:
    time = np.arange(RATE) / RATE
    for hertz in (300.0, 1000.0, 4000.0):
        mels = log_mels(0.5 * np.sin(2 * np.pi * hertz * time), RATE)
        assert mels.shape == (201, 80) and mels.dtype == np.float32
        centres = librosa.mel_frequencies(82, fmax=RATE / 2, htk=True)[1:-1]
        assert (mels[5:-5].argmax(1) == np.abs(centres - hertz).argmin()).all()
        quieter = log_mels(0.05 * np.sin(2 * np.pi * hertz * time), RATE)
        assert np.median(mels.max(1) - quieter.max(1)) == pytest.approx(20, abs=0.1)


def test_the_page_has_a_row_for_every_wave() -> None:
    one = spectrogram([("a", voice(0.5))], RATE)
    two = spectrogram([("a", voice(0.5)), ("b", voice(0.3, 200))], RATE, "both")
    assert one.dtype == np.uint8 and one.shape[2] == two.shape[2] == 3
    assert two.shape[0] > 1.7 * one.shape[0] and two.shape[1] == one.shape[1]
    assert len(np.unique(one.reshape(-1, 3), axis=0)) > 100
    np.testing.assert_array_equal(one, spectrogram([("a", voice(0.5))], RATE))
    assert spectrogram([("silence", np.zeros(800, np.float32))], RATE).size
    for nothing in ([], [("a", np.zeros(0, np.float32))]):
        with pytest.raises(DataError, match="no sound to show"):
            spectrogram(nothing, RATE)
