"""``dream --encode`` and ``--decode``: a file of sound into a bitstream of a run's codec, and back."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np

from worldmodel import media
from worldmodel.config.settings import Number
from worldmodel.errors import ConfigError
from worldmodel.speech import media as speech_media
from worldmodel.speech.codec.bitstream import Bitstream
from worldmodel.speech.codec.codec import Codec
from worldmodel.speech.codec.run import load_codec, model_named, models_of
from worldmodel.speech.scores.codec import log_spectral_distance, si_sdr
from worldmodel.speech.sources.sound import normalise, read_sound

SUFFIX = ".wmc"
ENTROPY = ("auto", "none", "counts", "prior")
OTHERS = ("convert", "seconds", "horizon", "start", "context", "samples", "top_k")  # flags that say nothing here


def check_flags(args: argparse.Namespace) -> None:
    """Raises :class:`ConfigError` for flags that do not go together, whatever the run."""
    if args.encode is None:
        for name in ("kbps", "entropy"):
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name} goes with --encode FILE; a bitstream says itself how it was made")
    if args.kbps is not None:
        Number(above=0).check("--kbps", args.kbps)
    what = "--encode" if args.encode is not None else "--decode"
    for name in OTHERS if (args.encode, args.decode) != (None, None) else ():
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} does not go with {what}")


def code_sound(args: argparse.Namespace, run: Path, device: str) -> None:
    """Write what the flags ask for, and report."""
    codec = load_codec(run, device)
    print(f"run       {run}")
    if args.encode is not None:
        encode_file(args, run, codec)
    else:
        decode_file(args, run, codec)


def encode_file(args: argparse.Namespace, run: Path, codec: Codec) -> None:
    """``--encode``: the bitstream, what it decodes to, and both spectrograms."""
    wanted = args.entropy or "auto"
    used = codec.num_codebooks if args.kbps is None else codec.codebooks_of(args.kbps)
    nominal = codec.bits_per_second(used) / 1000
    file = Path(args.encode)
    extra = "" if wanted == "auto" else f"-{wanted}"
    base = base_path(args.output, run, f"{file.stem}-{nominal:g}k{extra}")
    wave = read_sound(file, codec.rate)
    seconds, gain = len(wave) / codec.rate, gain_of(wave, codec.rate)
    started = time.perf_counter()
    codes = codec.encode(wave * np.float32(10 ** (gain / 2000)), used)
    spent = {"encoding": time.perf_counter() - started}
    written: dict[str, tuple[Bitstream, float]] = {}
    models = models_of(run, codec, wanted)
    for name, model in models.items():
        started = time.perf_counter()
        stream = dataclasses.replace(codec.write(codes, len(wave), model), gain=gain)
        written[name] = stream, time.perf_counter() - started
    best = min(written, key=lambda name: len(written[name][0].payload))
    stream, spent["writing codes"] = written[best]
    started = time.perf_counter()
    read = codec.read(stream, models[best])
    spent["reading codes"] = time.perf_counter() - started
    started = time.perf_counter()
    heard = sound_of(codec, read, stream)
    spent["decoding"] = time.perf_counter() - started

    paths = [base.with_name(base.name + suffix) for suffix in (SUFFIX, ".wav", ".png")]
    stream.save(paths[0])
    speech_media.save_sound(paths[1], heard, codec.rate)
    shown = [(file.name, wave), (f"{used} codebooks, {stream.bits_per_second / 1000:.2f} kbit/s", heard)]
    media.save_png(paths[2], speech_media.spectrogram(shown, codec.rate, title=run.name))
    size = paths[0].stat().st_size
    print(f"{'sound':<10}{seconds:.2f} s")
    print(f"{'codebooks':<10}{used} of {codec.num_codebooks}: {nominal:.2f} kbit/s at fixed width")
    for name, (each, _) in written.items():
        saved = f", {1 - each.bits_per_second / nominal / 1000:.1%} saved" if name != "none" else ""
        chosen = f"  ← written, {size:,} bytes with the header" if name == best else ""
        print(f"{'  ' + name:<10}{each.bits_per_second / 1000:.2f} kbit/s{saved}{chosen}")
    print(f"{'quality':<10}{quality(wave, heard)}")
    print(f"{'speed':<10}" + ", ".join(f"{what} {seconds / took:,.1f}×" for what, took in spent.items()) + " real time")
    print(f"{'latency':<10}{latency(codec)}")
    print("\n".join(f"{'written' if path is paths[0] else '':<10}{path}" for path in paths))


def decode_file(args: argparse.Namespace, run: Path, codec: Codec) -> None:
    """``--decode``: the sound of a bitstream."""
    file = Path(args.decode)
    stream = Bitstream.load(file)
    path = sound_path(args.output, run, file.stem)
    model = None if stream.codec != codec.fingerprint else model_named(run, codec, stream.model)
    started = time.perf_counter()
    heard = sound_of(codec, codec.read(stream, model), stream)
    spent = time.perf_counter() - started
    speech_media.save_sound(path, heard, codec.rate)
    kbps = stream.bits_per_second / 1000
    said = f"{stream.codebooks} of {codec.num_codebooks} codebooks, {kbps:.2f} kbit/s"
    print(f"{'bitstream':<10}{stream.seconds:.2f} s, {said}")
    print(f"{'speed':<10}{stream.seconds / spent:,.1f}× real time")
    print(f"{'written':<10}{path}")


def gain_of(wave: np.ndarray, rate: int) -> int:
    """Hundredths of dB that bring a wave to the loudness of training; 0 where there is no speech in it."""
    loud = normalise(wave, rate)
    before, after = (float(np.square(each - np.median(each)).mean()) for each in (wave, loud))
    return 0 if before == 0 or loud is wave else int(np.clip(round(1000 * np.log10(after / before)), -32767, 32767))


def sound_of(codec: Codec, codes: np.ndarray, stream: Bitstream) -> np.ndarray:
    """(samples,) float32, as loud as it was before it was coded."""
    return codec.decode(codes)[: stream.samples] * np.float32(10 ** (-stream.gain / 2000))


def quality(wave: np.ndarray, heard: np.ndarray) -> str:
    """What is left of a wave, as far as that can be said of it."""
    try:
        return f"SI-SDR {si_sdr(wave, heard):.2f} dB, log-spectral distance {log_spectral_distance(wave, heard):.2f} dB"
    except ValueError as error:
        return f"not measured: {error}"


def latency(codec: Codec) -> str:
    if not codec.causal:
        return "the whole sound: the networks read ahead"
    return f"{codec.latency} samples, {1000 * codec.latency / codec.rate:g} ms, and the time to compute: it streams"


def base_path(output: str | None, run: Path, name: str) -> Path:
    """Where the three files of ``--encode`` go, without their suffix: ``--output`` is a folder that is there, the name
    of the bitstream, or that name without its suffix."""
    if output is None:
        return run / "dreams" / name
    given = Path(output)
    if given.is_dir():
        return given / name
    if given.suffix not in ("", SUFFIX):
        raise ConfigError(f"cannot write {output!r}; the name of a bitstream must end in {SUFFIX}")
    return given.with_suffix("")


def sound_path(output: str | None, run: Path, name: str) -> Path:
    """Where the sound of ``--decode`` goes: ``--output`` is a file, or a folder for it."""
    if output is None:
        return run / "dreams" / f"{name}.wav"
    given = Path(output)
    return speech_media.check_sound_path(given) if given.suffix and not given.is_dir() else given / f"{name}.wav"
