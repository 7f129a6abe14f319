"""Small sounds, and corpora of them in the layouts of VCTK and TIMIT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from worldmodel.speech.sources import TIMIT, VCTK, SpeechFolder

RATE = 16000


def voice(seconds: float = 0.3, hertz: float = 120.0, rate: int = RATE, level: float = 0.3) -> np.ndarray:
    """Ten harmonics of a tone that falls by a tenth: (n,) float32."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * hertz * (time - 0.05 * time**2 / seconds)
    wave = sum(np.sin(k * phase) / k for k in range(1, 11))
    return (level * wave / np.abs(wave).max()).astype(np.float32)


def put(file: Path, wave: np.ndarray, rate: int = RATE, **options: str) -> Path:
    """Write a file of sound and the folders that it lies in; .WAV in capitals is SPHERE, as TIMIT has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".WAV":
        file.write_bytes(sphere(wave, rate))
    else:
        soundfile.write(file, wave, rate, **options)
    return file


def sphere(wave: np.ndarray, rate: int = RATE, coding: str = "") -> bytes:
    """A NIST SPHERE file as on the disc of TIMIT: a header of 1024 bytes, then 16 bits a sample."""
    lines = ["NIST_1A", "   1024", "database_id -s5 TIMIT", "database_version -s3 1.0", "utterance_id -s8 cjf0_sa1"]
    lines += ["channel_count -i 1", f"sample_count -i {len(wave)}", f"sample_rate -i {rate}", "sample_n_bytes -i 2"]
    lines += ["sample_byte_format -s2 01", "sample_sig_bits -i 16"]
    lines += [f"sample_coding -s{len(coding)} {coding}"] * bool(coding) + ["end_head", ""]
    return "\n".join(lines).encode().ljust(1024) + np.round(wave * 32767).astype("<i2").tobytes()


def write_vctk(
    folder: Path, speakers: tuple[str, ...] = ("p225", "p226"), sentences: int = 4, old: bool = False
) -> Path:
    """VCTK 0.92, or the ``old`` 0.80: sentences 001, 002, … of each speaker."""
    for place, speaker in enumerate(speakers):
        for number in range(1, sentences + 1):
            wave, stem = voice(0.3 + 0.02 * number, 100.0 + 40 * place), f"{speaker}/{speaker}_{number:03d}"
            if old:
                put(folder / f"wav48/{stem}.wav", voice(0.4, rate=48000), 48000)
            else:
                for mic, gain in (("mic1", 1.0), ("mic2", 0.5)):
                    put(folder / f"wav48_silence_trimmed/{stem}_{mic}.flac", gain * wave)
    return folder


def write_timit(folder: Path, speakers: tuple[str, ...], original: bool = False) -> Path:
    """TIMIT as on its disc when ``original``, else in folders such as dr1-fvmh0; with alignments."""
    for region, speaker in enumerate(speakers, 1):
        for sentence in ("sa1", "sx26", f"si{region}"):  # the last is the speaker's own
            wave = voice(0.3)
            if original:
                part = "TRAIN" if region % 2 else "TEST"
                file = folder / f"{part}/DR{region}/{speaker.upper()}/{sentence.upper()}.WAV"
            else:
                file = folder / f"dr{region}-{speaker}/{sentence}.flac"
            put(file, wave)
            lines = ["0 1000 h#", "1000 2600 aa", f"2600 {len(wave)} h#"]
            file.with_suffix(".PHN" if original else ".phn").write_text("\n".join(lines) + "\n")
    return folder


def tiny_vctk(folder: Path) -> VCTK:
    return VCTK(str(write_vctk(folder)))


def tiny_timit(folder: Path) -> TIMIT:
    return TIMIT(str(write_timit(folder, ("fvmh0", "mcpm0", "faem0", "marc0"))))


def tiny_speech(folder: Path) -> SpeechFolder:
    for stem in ("anna/1", "anna/evening/2", "anna/evening/3", "ben/1", "ben/2"):
        put(folder / f"{stem}.wav", voice(0.3))
    return SpeechFolder(str(folder))
