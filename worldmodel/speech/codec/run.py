"""The codec of a run, its entropy models, and the encoding and decoding of files with their reports."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel import media
from worldmodel.data.codes import encode_store
from worldmodel.errors import ConfigError, DataError
from worldmodel.priors import Prior
from worldmodel.runs.folder import CODES, PRIOR, load_spec, open_data
from worldmodel.runs.models import check_trained, load_prior, load_tokenizer, resolve_device
from worldmodel.speech import media as speech_media
from worldmodel.speech.codec.bitstream import NO_MODEL, Bitstream
from worldmodel.speech.codec.codec import Codec
from worldmodel.speech.codec.entropy import CodeModel, CountModel, PriorModel
from worldmodel.speech.scores.waves import log_spectral_distance, si_sdr
from worldmodel.speech.sound import normalise, read_sound
from worldmodel.tokenizers import VQVAE
from worldmodel.util.output import Output

COUNTS = "entropy-{}.safetensors"
"""File of the counts of the training codes in a run's folder, created on first use; it is named by the fingerprint of
the codec, which changes with the tokenizer."""

CHUNK = 0.02  # seconds of sound that streaming processes at a time


def load_codec(run: Path, device: str = "auto") -> Codec:
    """The codec of a run. Raises :class:`ConfigError` when its tokenizer is no codec, or :class:`RunError`."""
    tokenizer, spec = load_tokenizer(run, resolve_device(device)), load_spec(run)
    if not isinstance(tokenizer, VQVAE) or tokenizer.condition_width or not tokenizer.joined:
        fault = f"the run {run.name} is no codec: a codec decodes sound without a speaker"
        raise ConfigError(f"{fault}; train one with experiment=codec")
    return Codec(tokenizer, round(spec.rate * spec.frame_shape[1]))


def counts_of(run: Path, codec: Codec, streams: Callable[[], list[np.ndarray]]) -> CountModel:
    """The counts of a run's training codes from its folder, or computed from ``streams()``, each (n, Q), and saved.

    Raises :class:`DataError` without any codes, or for a damaged file.
    """
    file = run / COUNTS.format(codec.fingerprint.hex()[:8])
    if file.is_file():
        model = CountModel.load(file)
        if (model.num_codes, model.num_codebooks) == (codec.num_codes, codec.num_codebooks):
            return model
    model = CountModel(streams(), codec.num_codes)
    model.save(file)
    return model


def prior_of(run: Path, codec: Codec) -> PriorModel | None:
    """The entropy model of a run's prior; None without a suitable prior."""
    if not check_trained(run, PRIOR):
        return None
    prior = load_prior(run, codec.tokenizer)
    try:
        return PriorModel(prior) if isinstance(prior, Prior) else None
    except ConfigError:
        return None


def training_codes(run: Path, codec: Codec) -> list[np.ndarray]:
    """The codes of the training utterances of a run, each (n, Q), from the cache of ``train``.

    Raises :class:`DataError` when the data are missing.
    """
    store = open_data(run)
    tokenizer = codec.tokenizer
    codes = encode_store(store, tokenizer, run / CODES, next(tokenizer.parameters()).device)
    return [np.asarray(codes.episode(int(e))).reshape(-1, codec.num_codebooks) for e in store.split("train")]


def models_of(run: Path, codec: Codec, wanted: str = "auto") -> dict[str, CodeModel | None]:
    """The entropy models that ``--entropy`` selects by name; None stands for codes of fixed width.

    Raises :class:`DataError` or :class:`ConfigError` when the selected one is not available.
    """
    models: dict[str, CodeModel | None] = {"none": None} if wanted in ("auto", "none") else {}
    if wanted in ("auto", "counts"):
        try:
            models["counts"] = counts_of(run, codec, lambda: training_codes(run, codec))
        except DataError as error:
            if wanted == "counts":
                raise
            print(f"note      no entropy model of counts: {error}")
    if wanted in ("auto", "prior"):
        if (prior := prior_of(run, codec)) is not None:
            models["prior"] = prior
        elif wanted == "prior":
            raise ConfigError(f"the run {run.name} has no prior that orders codes by position; train with prior=codec")
    return models


def model_named(run: Path, codec: Codec, name: bytes) -> CodeModel | None:
    """The entropy model of a run with a fingerprint. Raises :class:`DataError` when the run does not have it."""
    if name == NO_MODEL:
        return None
    for wanted in ("counts", "prior"):
        with contextlib.suppress(ConfigError, DataError):
            model = models_of(run, codec, wanted)[wanted]
            if model is not None and model.fingerprint == name:
                return model
    fault = f"the bitstream is entropy-coded by the model {name.hex()}, which the run {run.name} does not have"
    raise DataError(f"{fault}: its prior was trained again, or {COUNTS} and the data were deleted")


def encode_file(run: Path, codec: Codec, file: Path, used: int, entropy: str, streaming: bool, output: Output) -> None:
    """Write the bitstream of a file, the decoded sound and the spectrograms of both; print a report.

    ``used``: number of codebooks; ``entropy``: the value of ``--entropy``.
    """
    nominal = codec.bits_per_second(used) / 1000
    wave = read_sound(file, codec.rate)
    seconds, gain = len(wave) / codec.rate, gain_of(wave, codec.rate)
    spent: dict[str, float] = {}
    loud = wave * np.float32(10 ** (gain / 2000))
    codes, spent["encoding"] = timed(stream_encode if streaming else Codec.encode, codec, loud, used)
    models = models_of(run, codec, entropy)
    written = {name: timed(codec.write, codes, len(wave), model, gain) for name, model in models.items()}
    best = min(written, key=lambda name: len(written[name][0].payload))
    stream, spent["writing codes"] = written[best]
    codes, spent["reading codes"] = timed(codec.read, stream, models[best])
    decoded, spent["decoding"] = timed(sound_of, codec, codes, stream)

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
    codes, reading = timed(codec.read, stream, model)
    decoded, decoding = timed(sound_of, codec, codes, stream, stream_decode if streaming else Codec.decode)
    speech_media.save_sound(path, decoded, codec.rate)
    kbps = stream.bits_per_second / 1000
    used = f"{stream.codebooks} of {codec.num_codebooks} codebooks"
    print(f"{'bitstream':<10}{stream.seconds:.2f} s, {used}, {kbps:.2f} kbit/s")
    print(f"{'speed':<10}{stream.seconds / (reading + decoding):,.1f}× real time")
    print(f"{'written':<10}{path}")


def timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """What a function returns, and the seconds that it takes."""
    started = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - started


def stream_encode(codec: Codec, wave: np.ndarray, used: int) -> np.ndarray:
    """Encode a wave (L,) chunk by chunk. Raises :class:`ConfigError`."""
    return streamed(lambda chunks: codec.encode_stream(chunks, used), wave, round(CHUNK * codec.rate))


def stream_decode(codec: Codec, codes: np.ndarray) -> np.ndarray:
    """Decode codes (n, q) chunk by chunk. Raises :class:`ConfigError`."""
    return streamed(codec.decode_stream, codes, max(1, round(CHUNK * codec.rate / codec.factor)))


def streamed(code: Callable[[Sequence[np.ndarray]], Iterator[np.ndarray]], whole: np.ndarray, size: int) -> np.ndarray:
    """What is made of an array in chunks of so many rows, as one array; prints the time that the chunks take."""
    chunks = np.split(whole, np.arange(size, len(whole), size))
    stream = code(chunks)
    parts, seconds = zip(*(timed(next, stream) for _ in chunks), strict=True)
    took = f"{1000 * np.mean(seconds):.1f} ms of computation each, at most {1000 * np.max(seconds):.1f} ms"
    print(f"{'stream':<10}{len(chunks)} chunks of {1000 * CHUNK:g} ms, {took}")
    return np.concatenate([*parts, *stream])


def gain_of(wave: np.ndarray, rate: int) -> int:
    """The gain that brings a wave to the loudness of training, in hundredths of dB; 0 for a silent wave."""
    loud = normalise(wave, rate)
    before, after = (float(np.square(each - np.median(each)).mean()) for each in (wave, loud))
    return 0 if before == 0 or loud is wave else int(np.clip(round(1000 * np.log10(after / before)), -32767, 32767))


def sound_of(
    codec: Codec, codes: np.ndarray, stream: Bitstream, decode: Callable[[Codec, np.ndarray], np.ndarray] = Codec.decode
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
