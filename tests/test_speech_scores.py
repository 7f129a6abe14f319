"""The scores of speech against their definitions, written out the slow way, and on vowels of known voice."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from worldmodel.evaluation.metrics import ratio_of_means
from worldmodel.speech import sound
from worldmodel.speech.nn.mel import mel_filters
from worldmodel.speech.scores import bigrams, classifiers
from worldmodel.speech.scores import codes as codes_of
from worldmodel.speech.scores import waves as waves_of
from worldmodel.speech.scores.classifiers import (
    Budget,
    SpeakerClassifier,
    speaker_shares,
    train_speaker_classifier,
    windows,
)

RATE = waves_of.RATE
VOWELS = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480]])  # Hz, a i u e
SILENCE = len(VOWELS)
SCALES = (0.82, 1.0, 1.2)  # of the formants: the lengths of three vocal tracts
PART = 1600  # samples of a vowel


def utterance(seed: int, scale: float = 1.0, parts: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Vowels in random order at random heights and one silence, a little noise, at a random level: wave, labels."""
    generator = np.random.default_rng(seed)
    order = generator.integers(len(VOWELS), size=parts)
    order[generator.integers(1, parts)] = SILENCE
    time = np.arange(PART) / RATE
    waves = []
    for vowel in order:
        f0 = generator.uniform(90, 200)
        harmonics = f0 * np.arange(1, int(7000 / f0))
        formants = VOWELS[vowel % len(VOWELS)] * scale
        heights = (1 / (1 + np.square((harmonics[:, None] - formants) / 90))).sum(1)
        phases = generator.uniform(0, 2 * np.pi, len(harmonics))
        sound = heights @ np.cos(2 * np.pi * harmonics[:, None] * time + phases[:, None])
        waves.append(sound * (vowel != SILENCE))
    wave = np.concatenate(waves)
    wave = wave / np.abs(wave).max() * generator.uniform(0.1, 0.8) + 1e-4 * generator.normal(size=len(wave))
    return wave.astype(np.float32), np.repeat(order, PART // waves_of.HOP)


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(seed).normal(size=int(seconds * RATE))).astype(np.float32)


# Pairs of phones


def test_a_place_is_0_for_speech_of_the_same_order_and_1_for_shuffled_speech() -> None:
    generator = np.random.default_rng(0)
    follows = generator.dirichlet(np.full(8, 0.2), size=8) * (1 - np.eye(8)) + 1e-6
    follows /= follows.sum(1, keepdims=True)

    def spoken() -> np.ndarray:
        phones = [0]
        for _ in range(200):
            phones.append(int(generator.choice(8, p=follows[phones[-1]])))
        return np.array(phones)

    real, alike, held_out = ([spoken() for _ in range(10)] for _ in range(3))
    others = {
        "alike": alike,
        "random": [generator.permutation(each) for each in alike],
        "few": [np.array([0, 1] * 999)],
    }
    found = bigrams.bigram_figures(real, others, held_out, 8)
    bits, places = ({name: each["value"] for name, each in found[key].items()} for key in ("bits", "place"))
    assert bits["real"] < bits["shuffled"] and found["phones"] <= 1999
    assert abs(places["alike"]) < 0.1 and abs(places["random"] - 1) < 0.2 and places["few"] > 1


def test_runs_of_a_phone_count_once_and_short_ones_do_not() -> None:
    labels = np.array([1, 1, 1, 2, 1, 1, 1, 3, 3, 3, 3])
    assert bigrams.without_repeats(labels).tolist() == [1, 2, 1, 3]
    assert bigrams.without_repeats(labels, 3).tolist() == [1, 3]


# Features


def test_a_tone_is_in_its_band_and_frames_lie_on_their_samples() -> None:
    time = np.arange(RATE) / RATE
    mels = waves_of.log_mel(np.sin(2 * np.pi * 1000 * time).astype(np.float32))
    assert mels.shape == (100, 80)
    wanted = 2595 * math.log10(1 + 1000 / 700) / (2595 * math.log10(1 + 8000 / 700) / 81) - 1
    assert (mels[5:-5].argmax(1) - wanted).abs().max() <= 0.5
    click = np.zeros(RATE, dtype=np.float32)
    click[50 * 160 : 51 * 160] = noise(0.01)
    assert int(waves_of.log_mel(click).sum(1).argmax()) == 50
    assert len(waves_of.log_mel(click[:-1])) == 99


def test_log_mels_are_the_filtered_power_of_a_plain_transform() -> None:
    wave = noise(0.1)
    padded = np.pad(wave, 176, mode="reflect")
    frame = padded[3 * 160 : 3 * 160 + 512]
    hann = np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400), 56)
    power = np.abs(np.fft.rfft(frame * hann)) ** 2
    wanted = np.log(power @ mel_filters(waves_of.BANDS, 512, waves_of.RATE).numpy())
    assert waves_of.log_mel(wave)[3].numpy() == pytest.approx(wanted, rel=1e-4)


def test_mel_filters_sum_to_one_between_the_outer_centres() -> None:
    filters = mel_filters(40, 512, waves_of.RATE)
    inside = filters.sum(1)[5:-20]
    assert torch.allclose(inside, torch.ones(len(inside)), atol=1e-5)
    with pytest.raises(ValueError, match="too narrow"):
        mel_filters(300, 512, waves_of.RATE)


def test_the_cepstrum_is_the_cosine_series_of_log_amplitude() -> None:
    mels = torch.randn(7, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cepstrum = waves_of.mel_cepstrum(mels, 79)
    place = (torch.arange(80, dtype=torch.float64) + 0.5) / 80 * torch.pi
    series = sum(cepstrum[:, d, None] * torch.cos(place * d) for d in range(80))
    assert torch.allclose(torch.as_tensor(series), mels / 2, atol=1e-5)
    with pytest.raises(ValueError, match="from 0 to 79"):
        waves_of.mel_cepstrum(mels, 80)


def test_normalising_and_pooling() -> None:
    rows = torch.randn(103, 5) * 3 + 7
    rows[:, 4] = 2.0
    done = waves_of.normalised(rows)
    assert done.mean(0).abs().max() < 1e-5
    assert torch.allclose(done[:, :4].square().mean(0), torch.ones(4), atol=1e-4)
    assert bool((done[:, 4] == 0).all())
    assert torch.allclose(waves_of.pooled(rows)[1], rows[4:8].mean(0)) and len(waves_of.pooled(rows)) == 25


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros((2, 800), np.float32), r"\(n,\) floats"),
        (np.zeros(800, np.int16), r"\(n,\) floats"),
        (np.zeros(100, np.float32), "too short"),
        (np.full(800, np.nan, np.float32), "not finite"),
    ],
)
def test_what_is_no_wave_is_refused(wave: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        waves_of.log_mel(wave)


# Alignment


def least_total(cost: np.ndarray) -> float:
    """The total of the best path by plain recursion, row by row."""
    total = np.full((cost.shape[0] + 1, cost.shape[1] + 1), np.inf)
    total[0, 0] = 0
    for i, j in np.ndindex(*cost.shape):
        total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    return float(total[-1, -1])


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (9, 9), (13, 5), (4, 17)])
def test_warping_finds_the_least_total(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(sum(shape))
    a, b = generator.normal(size=(shape[0], 3)), generator.normal(size=(shape[1], 3))
    cost = np.linalg.norm(a[:, None] - b, axis=-1)
    path = waves_of.dtw(a, b)
    assert path[0].tolist() == [0, 0] and path[-1].tolist() == [shape[0] - 1, shape[1] - 1]
    assert {tuple(step) for step in np.diff(path, axis=0)} <= {(1, 1), (1, 0), (0, 1)}
    assert cost[path[:, 0], path[:, 1]].sum() == pytest.approx(least_total(cost))


def test_warping_undoes_a_change_of_tempo() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 4))
    path = waves_of.dtw(rows, np.repeat(rows, 3, axis=0))
    assert path.tolist() == [[i // 3, i] for i in range(60)]


def test_distortion_is_the_difference_of_spectra_in_decibels() -> None:
    wave, _ = utterance(0)
    assert waves_of.mel_cepstral_distortion(wave, wave) == pytest.approx(0, abs=1e-4)
    assert waves_of.mel_cepstral_distortion(wave, wave * 0.1) == pytest.approx(0, abs=1e-3)
    # To the last coefficient and frame by frame, it is the root mean square difference of log-mels without their mean.
    a, b = noise(0.3), noise(0.3, 1)
    levels = [10 / math.log(10) * waves_of.log_mel(w, floor=1e-30).double() for w in (a, b)]
    gap = levels[0] - levels[1]
    wanted = (gap - gap.mean(1, keepdim=True)).square().mean(1)
    # A cosine series gives every coefficient the square ½ on average.
    cepstra = waves_of.mel_cepstra(a, 79) - waves_of.mel_cepstra(b, 79)
    gaps = 10 / math.log(10) * np.sqrt(2 * np.square(cepstra).sum(1))
    assert gaps.mean() == pytest.approx(float(wanted.sqrt().mean()), rel=1e-4)
    assert waves_of.mel_cepstral_distortion(a, b, 79) <= gaps.mean()


def test_distortion_tells_words_from_voices() -> None:
    wave, _ = utterance(0)
    slower = np.concatenate([wave[i : i + 1600] for i in range(0, len(wave), 1600) for _ in (0, 1)])
    assert waves_of.mel_cepstral_distortion(wave, slower) < waves_of.mel_cepstral_distortion(wave, utterance(7)[0])
    with pytest.raises(ValueError, match="without sound"):
        waves_of.mel_cepstral_distortion(wave, np.zeros(RATE, np.float32))


# Codec


def test_si_sdr_is_what_was_mixed_whatever_the_gain() -> None:
    signal, other = noise(1.0), noise(1.0, 1)
    signal, other = signal - signal.mean(), other - other.mean()
    other = other - (other @ signal) / (signal @ signal) * signal  # orthogonal
    other *= np.linalg.norm(signal) / np.linalg.norm(other) * 10 ** (-12 / 20)
    for gain in (0.1, 1.0, -3.0):
        assert waves_of.si_sdr(signal, gain * (signal + other) + 0.01) == pytest.approx(12, abs=1e-3)
    assert waves_of.si_sdr(signal, signal) == waves_of.LIMIT
    assert waves_of.si_sdr(signal, np.zeros_like(signal)) == -waves_of.LIMIT
    with pytest.raises(ValueError, match="without sound"):
        waves_of.si_sdr(np.zeros_like(signal), signal)
    with pytest.raises(ValueError, match="cannot be compared"):
        waves_of.si_sdr(signal, signal[:-1])


def test_log_spectral_distance_of_a_gain_is_the_gain() -> None:
    wave = noise(1.0)
    assert waves_of.log_spectral_distance(wave, wave) == 0
    assert waves_of.log_spectral_distance(wave, wave / 2) == pytest.approx(20 * math.log10(2), abs=0.01)
    assert waves_of.log_spectral_distance(wave, np.zeros_like(wave)) < 70
    coarse = sound.to_wave(sound.to_samples(wave))
    distance = waves_of.log_spectral_distance(wave, coarse)
    score = waves_of.wave_scores([wave, wave], [coarse, wave])["log_spectral_distance"]
    assert 0 < distance < 3 and score["samples"] == 2 and score["value"] == pytest.approx(distance / 2)
    with pytest.raises(ValueError, match="shorter"):
        waves_of.wave_scores([wave], [])


# k-means and mapping


def test_kmeans_finds_clusters_and_is_decided_by_the_seed() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6).repeat(50)
    points = 20 * torch.randn(6, 3, generator=generator)[labels] + 1000 + 0.1 * torch.randn(300, 3, generator=generator)
    (codes,) = codes_of.kmeans_codes([points], 6, [True])
    assert len(set(zip(codes.tolist(), labels.tolist(), strict=True))) == 6
    assert (codes_of.kmeans_codes([points], 6, [True])[0] == codes).all()
    with pytest.raises(ValueError, match="301"):
        codes_of.kmeans_codes([points], 301, [True])


def test_kmeans_of_fewer_different_points_than_clusters_ends() -> None:
    with pytest.warns(UserWarning, match="distinct clusters"):
        (codes,) = codes_of.kmeans_codes([torch.eye(3).repeat(4, 1)], 5, [True])
    assert codes.tolist() == codes[:3].tolist() * 4 and len(set(codes)) == 3


def test_codes_of_utterances_are_fitted_where_asked() -> None:
    rows = [torch.zeros(4, 2), torch.full((5, 2), 9.0), torch.full((3, 2), 4.0)]
    codes = codes_of.kmeans_codes(rows, 2, [True, True, False])
    assert [len(c) for c in codes] == [4, 5, 3] and codes[2][0] == codes[0][0] != codes[1][0]
    with pytest.raises((ValueError, RuntimeError), match="non-empty"):
        codes_of.kmeans_codes(rows, 2, [False] * 3)


def rows(*values: list[int]) -> list[np.ndarray]:
    return [np.array(value, dtype=np.int64) for value in values]


def test_mapping_by_hand() -> None:
    codes_a, labels_a = rows([0, 0, 0, 1, 1], [2, 2, 2, 1]), rows([5, 5, 1, 1, 1], [3, 3, 5, -1])
    # 0 → 5, 1 → 1, 2 → 3; 5 and 1 occur three times each, so the most frequent is 1; 3 is unseen and stands for 1.
    codes_b, labels_b = rows([0, 1, 2, 3], [3, 0, 0]), rows([5, 1, 5, 1], [3, -1, 5])
    found = codes_of.phoneme_mapping(codes_a, labels_a, codes_b, labels_b, 4)
    assert found.counts.tolist() == [[3, 2, 4], [1, 0, 2]]
    assert found.unseen == 2 and found.phonemes == 3
    for name, value in (("accuracy", 4 / 6), ("most_frequent", 2 / 6), ("times_baseline", 2)):
        assert found.to_json()[name]["value"] == pytest.approx(value)
    # Without 5 code 0 is 1 by its only other frame.
    without = codes_of.phoneme_mapping(codes_a, labels_a, codes_b, labels_b, 4, leave_out=5)
    assert without.counts[:, [0, 2]].tolist() == [[2, 2], [0, 1]]
    with pytest.raises(ValueError, match="codes are 0 to 2"):
        codes_of.phoneme_mapping(codes_a, labels_a, codes_b, labels_b, 3)
    with pytest.raises(ValueError, match=r"phonemes are \(4,\) integers"):
        codes_of.phoneme_mapping(codes_a, labels_a, codes_b, rows([5, 1, 5], [3, 5, 5]), 4)
    with pytest.raises(ValueError, match="no frame to count"):
        codes_of.phoneme_mapping(rows([0]), rows([-1]), codes_b, labels_b, 4)


def test_halves_share_no_speaker_and_what_is_scored_no_sentence() -> None:
    halves = np.array([0, 1, 0, 1, 0, 0])  # of f1, f2, m1, m2, m3, f1
    codes = rows([0], [1], [2], [3], [4], [5])
    forth, back = codes_of.both_ways(codes, codes, halves, ["x", "x", "y", "z", "w", "v"], 6)
    # z of f2, m2; y, w, v of f1, m1, m3
    assert forth.counts[:, 2].tolist() == [1] and back.counts[:, 2].tolist() == [1, 1, 1]
    both = codes_of.joined(forth, back)
    assert both.counts[:, 2].tolist() == [1, 1, 1, 1] and both.unseen == 4
    with pytest.raises(ValueError, match="a half"):
        codes_of.both_ways(codes, codes, np.zeros(6), ["x"] * 6, 6)


def test_shuffled_codes_are_as_frequent_and_as_long() -> None:
    codes = [np.random.default_rng(i).integers(4, size=50 + i) for i in range(5)]
    mixed = codes_of.shuffled(codes)
    assert [len(row) for row in mixed] == [50, 51, 52, 53, 54]
    assert (np.bincount(np.concatenate(mixed)) == np.bincount(np.concatenate(codes))).all()
    own = codes_of.phoneme_mapping(codes[:3], codes[:3], codes[3:], codes[3:], 4).to_json()
    lost = codes_of.phoneme_mapping(mixed[:3], codes[:3], mixed[3:], codes[3:], 4).to_json()
    assert own["accuracy"]["value"] == 1 and lost["accuracy"]["high"] < 0.5


# Leakage


def coded(speaker: int, seed: int, frames: int = 120) -> np.ndarray:
    """Codes in which both speakers have the same histogram; one alternates in pairs where the other runs."""
    generator = np.random.default_rng(seed)
    runs = generator.integers(8, size=frames // 4)
    return np.repeat(runs, 4) if speaker else np.stack([np.roll(runs, k) for k in range(4)], 1).reshape(-1)


def test_probes_read_order_and_frequency() -> None:
    speakers = np.arange(24) % 2
    ordered = [coded(speaker, i) for i, speaker in enumerate(speakers)]
    held, wanted = [coded(s, 100 + i) for i, s in enumerate(speakers[:12])], speakers[:12]
    found = codes_of.leakage(ordered, speakers, held, wanted, 8, 40, steps=60)
    assert found["chance"] == 0.5 and found["embedded"]["value"] > 0.9
    frequent = [np.random.default_rng(i).integers(6, size=(60, 2)) + 2 * s for i, s in enumerate(speakers)]
    found = codes_of.leakage(frequent[:12], speakers[:12], frequent[12:], speakers[12:], 8, 20, steps=60)
    assert min(found[probe]["value"] for probe in codes_of.PROBES) > 0.9
    noise_codes = [np.random.default_rng(i).integers(8, size=200) for i in range(24)]
    found = codes_of.leakage(noise_codes[:12], speakers[:12], noise_codes[12:], speakers[12:], 8, 20, steps=60)
    assert max(found[probe]["low"] for probe in codes_of.PROBES) < 0.6


def test_probes_refuse_what_does_not_fit() -> None:
    codes = rows([0, 1, 2], [3, 1])
    with pytest.raises(ValueError, match="codes are 0 to 2"):
        codes_of.leakage(codes, [0, 1], codes, [0, 1], 3, 2)
    with pytest.raises(ValueError, match="numbered from 0"):
        codes_of.leakage(codes, [0, 2], codes, [0, 2], 4, 2)
    with pytest.raises(ValueError, match="as many slots"):
        codes_of.leakage(codes, [0, 1], [np.zeros((4, 2), np.int64)], [0], 4, 2)
    with pytest.raises(ValueError, match="speakers of 2 utterances"):
        codes_of.leakage(codes, [0], codes, [0, 1], 4, 2)


# Classifiers

BUDGET = Budget(steps=160, batch=16, crop=PART * 6)


@pytest.fixture(scope="module")
def voices() -> SpeakerClassifier:
    speakers = np.arange(45) % 3
    return train_speaker_classifier([utterance(i, SCALES[s])[0] for i, s in enumerate(speakers)], speakers, BUDGET)


def test_voices_are_distinguished_whatever_the_words_and_the_loudness(voices: SpeakerClassifier) -> None:
    speakers = np.arange(12) % 3
    waves = [utterance(100 + i, SCALES[s])[0] for i, s in enumerate(speakers)]
    rows = np.arange(12)
    shares = speaker_shares(voices, waves)
    assert shares[rows, speakers].mean() > 0.9
    assert shares.sum(1) == pytest.approx(1)
    coarse = [sound.to_wave(sound.to_samples(0.2 * wave)) for wave in waves]
    worse = speaker_shares(voices, coarse)
    assert float(ratio_of_means(worse[rows, speakers], shares[rows, speakers]).value) > 0.9
    assert shares[rows, (speakers + 1) % 3].mean() < 0.1


def test_an_equaliser_is_no_voice(voices: SpeakerClassifier) -> None:
    wave = torch.from_numpy(utterance(100, SCALES[1])[0])
    response = 10 ** (torch.linspace(8, -8, len(wave) // 2 + 1) / 20)
    coloured = torch.fft.irfft(torch.fft.rfft(wave) * response, len(wave))
    assert speaker_shares(voices, [wave, coloured]).argmax(1).tolist() == [1, 1]


def test_windows_cover_an_utterance_of_any_length(voices: SpeakerClassifier) -> None:
    assert windows(torch.arange(10.0), 4)[:, 0].tolist() == [0, 2, 4, 6]
    assert windows(torch.arange(4.0), 4).shape == (1, 4)
    assert windows(torch.arange(3.0), 7).tolist() == [[0, 1, 2, 0, 1, 2, 0]]
    assert speaker_shares(voices, [utterance(0)[0][:5000]]).shape == (1, 3)


def test_speakers_that_do_not_fit_are_refused() -> None:
    waves = [noise(0.5), noise(0.5, 1)]
    for speakers, message in (([0], "speakers of 2"), ([0, 2], "no utterance of"), ([0.0, 1.0], "integers")):
        with pytest.raises(ValueError, match=message):
            train_speaker_classifier(waves, speakers, BUDGET)


def test_training_is_decided_by_the_seed() -> None:
    waves, speakers = [noise(0.5), utterance(1)[0]], [0, 1]
    budget, state = Budget(steps=2, batch=4, crop=4000), torch.random.get_rng_state()
    first, second = (train_speaker_classifier(waves, speakers, budget, seed=3) for _ in (0, 1))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert torch.equal(torch.random.get_rng_state(), state)


def test_degrading_leaves_level_and_length_and_is_drawn_from_its_generator() -> None:
    waves = torch.from_numpy(np.stack([utterance(i)[0][:8000] for i in range(8)]))
    first, second = (waves_of.degraded(waves, torch.Generator().manual_seed(1)) for _ in (0, 1))
    assert torch.equal(first, second) and first.shape == waves.shape and bool(first.isfinite().all())
    mels = waves_of.levelled_log_mels(waves)
    assert torch.allclose(waves_of.levelled_log_mels(waves * 0.1), mels, atol=1e-3)
    assert waves_of.blurred(mels, torch.Generator().manual_seed(0)).shape == mels.shape
    assert bool(waves_of.levelled_log_mels(torch.zeros(1, 1600)).isfinite().all())


@pytest.fixture(scope="module")
def phones() -> classifiers.PhoneClassifier:
    said = [utterance(i, SCALES[i % 2]) for i in range(16)]
    budget = Budget(steps=60, batch=8, crop=PART * 8)
    return classifiers.train_phone_classifier(*zip(*said, strict=True), len(VOWELS) + 1, budget)


def test_phones_are_read_and_compared(phones: classifiers.PhoneClassifier) -> None:
    waves, labels = zip(*(utterance(200 + i, SCALES[i % 2]) for i in range(6)), strict=True)
    read = [phones.read(wave).argmax(-1).numpy() for wave in waves]
    assert np.mean([np.mean(own != label) for own, label in zip(read, labels, strict=True)]) < 0.15
    assert not classifiers.phoneme_errors(phones, waves, waves).any()
    coarse = [sound.to_wave(sound.to_samples(wave)) for wave in waves]
    other = [*waves[1:], waves[0]]
    errors = [classifiers.phoneme_errors(phones, waves, made).mean() for made in (coarse, other)]
    assert errors[0] < 0.1 and errors[1] > 0.5


def test_phones_that_do_not_fit_are_refused(phones: classifiers.PhoneClassifier) -> None:
    wave, labels = utterance(0)
    with pytest.raises(ValueError, match=r"phones are .* integers"):
        classifiers.train_phone_classifier([wave], [labels[1:]], phones.phones)
    with pytest.raises(ValueError, match="phones are -1 to 4"):
        classifiers.train_phone_classifier([wave], [labels + 1], phones.phones)
    with pytest.raises(ValueError, match="shorter"):
        classifiers.phoneme_errors(phones, [wave], [])
    with pytest.raises(ValueError, match="same timing"):
        classifiers.phoneme_errors(phones, [wave], [wave[:-2000]])
    assert len(classifiers.phoneme_errors(phones, [wave], [wave[:-40]])) == 1
