"""Encoding of sound files to bitstreams, decoding of bitstreams, and the reports of both commands."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from worldmodel import media
from worldmodel.speech import media as speech_media
from worldmodel.speech.codec.bitstream import Bitstream
from worldmodel.speech.codec.codec import Codec, StreamingDecoder, StreamingEncoder
from worldmodel.speech.codec.run import model_named, models_of
from worldmodel.speech.scores.codec import log_spectral_distance, si_sdr
from worldmodel.speech.sources.sound import normalise, read_sound
from worldmodel.util.output import Output

CHUNK = 0.02  # seconds of sound that streaming processes at a time


def encode_file(run: Path, codec: Codec, file: Path, used: int, entropy: str, streaming: bool, output: Output) -> None:
    """Write the bitstream of a file, the decoded sound and the spectrograms of both; print a report.

    ``used``: number of codebooks; ``entropy``: the value of ``--entropy``.
    """
    nominal = codec.bits_per_second(used) / 1000
    wave = read_sound(file, codec.rate)
    seconds, gain = len(wave) / codec.rate, gain_of(wave, codec.rate)
    loud = wave * np.float32(10 ** (gain / 2000))
    started = time.perf_counter()
    codes = stream_encode(codec, loud, used) if streaming else codec.encode(loud, used)
    spent = {"encoding": time.perf_counter() - started}
    written: dict[str, tuple[Bitstream, float]] = {}
    models = models_of(run, codec, entropy)
    for name, model in models.items():
        started = time.perf_counter()
        stream = dataclasses.replace(codec.write(codes, len(wave), model), gain=gain)
        written[name] = stream, time.perf_counter() - started
    best = min(written, key=lambda name: len(written[name][0].payload))
    stream, spent["writing codes"] = written[best]
    started = time.perf_counter()
    decoded_codes = codec.read(stream, models[best])
    spent["reading codes"] = time.perf_counter() - started
    started = time.perf_counter()
    decoded = sound_of(codec, decoded_codes, stream)
    spent["decoding"] = time.perf_counter() - started

    paths = [output.path(suffix) for suffix in (".wmc", ".wav", ".png")]
    stream.save(paths[0])
    speech_media.save_sound(paths[1], decoded, codec.rate)
    shown = [(file.name, wave), (f"{used} codebooks, {stream.bits_per_second / 1000:.2f} kbit/s", decoded)]
    media.save_png(paths[2], speech_media.spectrogram(shown, codec.rate, title=run.name))
    size = paths[0].stat().st_size
    print(f"{'sound':<10}{seconds:.2f} s")
    print(f"{'codebooks':<10}{used} of {codec.num_codebooks}: {nominal:.2f} kbit/s at fixed width")
    for name, (each, _) in written.items():
        saved = f", {1 - each.bits_per_second / nominal / 1000:.1%} saved" if name != "none" else ""
        chosen = f"  ← written, {size:,} bytes with the header" if name == best else ""
        print(f"{'  ' + name:<10}{each.bits_per_second / 1000:.2f} kbit/s{saved}{chosen}")
    print(f"{'quality':<10}{quality(wave, decoded)}")
    print(f"{'speed':<10}" + ", ".join(f"{what} {seconds / took:,.1f}×" for what, took in spent.items()) + " real time")
    print(f"{'latency':<10}{latency(codec)}")
    print("\n".join(f"{'written' if path is paths[0] else '':<10}{path}" for path in paths))


def decode_file(run: Path, codec: Codec, file: Path, streaming: bool, path: Path) -> None:
    """Write the sound of a bitstream; print a report."""
    stream = Bitstream.load(file)
    model = None if stream.codec != codec.fingerprint else model_named(run, codec, stream.model)
    started = time.perf_counter()
    codes = codec.read(stream, model)
    decoded = sound_of(codec, codes, stream, stream_decode if streaming else Codec.decode)
    spent = time.perf_counter() - started
    speech_media.save_sound(path, decoded, codec.rate)
    kbps = stream.bits_per_second / 1000
    used = f"{stream.codebooks} of {codec.num_codebooks} codebooks"
    print(f"{'bitstream':<10}{stream.seconds:.2f} s, {used}, {kbps:.2f} kbit/s")
    print(f"{'speed':<10}{stream.seconds / spent:,.1f}× real time")
    print(f"{'written':<10}{path}")


def stream_encode(codec: Codec, wave: np.ndarray, used: int) -> np.ndarray:
    """Encode a wave (L,) chunk by chunk. Raises :class:`ConfigError`."""
    encoder = StreamingEncoder(codec, used)
    codes = in_chunks(wave, round(CHUNK * codec.rate), encoder.push)
    return np.concatenate([*codes, encoder.finish()])


def stream_decode(codec: Codec, codes: np.ndarray) -> np.ndarray:
    """Decode codes (n, q) chunk by chunk. Raises :class:`ConfigError`."""
    decoder, positions = StreamingDecoder(codec), round(CHUNK * codec.rate / codec.factor)
    return np.concatenate(in_chunks(codes, max(1, positions), decoder.pull))


def in_chunks(data: np.ndarray, size: int, step: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """Apply ``step`` to chunks and print the time that it takes."""
    parts, times = [], []
    for first in range(0, len(data), size):
        started = time.perf_counter()
        parts.append(step(data[first : first + size]))
        times.append(1000 * (time.perf_counter() - started))
    mean, most = np.mean(times), np.max(times)
    took = f"{mean:.1f} ms of computation each, at most {most:.1f} ms"
    print(f"{'stream':<10}{len(times)} chunks of {1000 * CHUNK:g} ms, {took}")
    return parts


def gain_of(wave: np.ndarray, rate: int) -> int:
    """The gain that brings a wave to the loudness of training, in hundredths of dB; 0 for a silent wave."""
    loud = normalise(wave, rate)
    before, after = (float(np.square(each - np.median(each)).mean()) for each in (wave, loud))
    return 0 if before == 0 or loud is wave else int(np.clip(round(1000 * np.log10(after / before)), -32767, 32767))


def sound_of(
    codec: Codec,
    codes: np.ndarray,
    stream: Bitstream,
    decode: Callable[[Codec, np.ndarray], np.ndarray] = Codec.decode,
) -> np.ndarray:
    """Decode codes to (samples,) float32 and undo the gain."""
    return decode(codec, codes)[: stream.samples] * np.float32(10 ** (-stream.gain / 2000))


def quality(wave: np.ndarray, decoded: np.ndarray) -> str:
    """The scores of a decoded wave as text."""
    try:
        distance = log_spectral_distance(wave, decoded)
        return f"SI-SDR {si_sdr(wave, decoded):.2f} dB, log-spectral distance {distance:.2f} dB"
    except ValueError as error:
        return f"not measured: {error}"


def latency(codec: Codec) -> str:
    if not codec.causal:
        return "the whole sound, because the networks read ahead"
    return f"{codec.latency} samples, {1000 * codec.latency / codec.rate:g} ms, plus the time of the computation"
