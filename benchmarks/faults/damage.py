"""Damaged files: flipped, overwritten, zeroed, swapped or missing bytes, and the functions that read the file then."""

import importlib.util
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from PIL import Image

from benchmarks.faults.judge import Facts, Result, judge
from benchmarks.faults.world import SPEECH, digest, digest_episode, make_run, make_store, record
from worldmodel.config.cli import compose_config
from worldmodel.config.entry_point import message_of
from worldmodel.data import export
from worldmodel.data.codes import encode_store
from worldmodel.data.sources import Arrays, ImageFolder, Minari, Source
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import DataError
from worldmodel.runs.models import build_tokenizer, load_tokenizer
from worldmodel.speech.codec.bitstream import Bitstream
from worldmodel.speech.codec.codec import Codec
from worldmodel.speech.codec.entropy import CountModel
from worldmodel.speech.sound import read_sound
from worldmodel.training.checkpoint import load_tensors, save_tensors
from worldmodel.world import WorldModel

CODEC = ("experiment=codec", "tokenizer.widths=[4,4,8,8]", "tokenizer.blocks=1", "tokenizer.num_codes=8",
         "tokenizer.quantizer.num_codebooks=3", "tokenizer.quantizer.quantizer.width=4")  # fmt: skip

log = logging.getLogger("worldmodel.faults")


class Subject(NamedTuple):
    """A folder of files, and what reads it."""

    name: str
    folder: Path
    read: Callable[[], Facts]
    checked: bool = True  # whether its formats have checksums
    pattern: str = "**/*"  # of the files that are damaged


def inject(scratch: Path, rng: random.Random) -> Iterator[Result]:
    makers = [make for make in MAKERS if importlib.util.find_spec(NEEDED.get(make, "worldmodel"))]
    subjects = [make(scratch / make.__name__) for make in makers]
    intact = [(subject, files_of(subject.folder), subject.read()) for subject in subjects]
    while True:
        for subject, files, wanted in intact:
            names = sorted(str(path.relative_to(subject.folder)) for path in subject.folder.glob(subject.pattern))
            name = rng.choice([name for name in names if files.get(name)])
            content, how = damaged(files[name], rng)
            (subject.folder / name).write_bytes(content)
            yield judge(subject.name, f"{name}, {how}", subject.read, wanted, subject.checked)
            restore(subject.folder, files)


def damaged(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The content after one fault, and its description."""
    kind = rng.choice(("flip", "flip", "overwrite", "zero", "cut", "swap"))
    where, data = rng.randrange(len(content)), bytearray(content)
    size = min(rng.choice((1, 1, 2, 8, 64, 4096)), len(content) - where)
    if kind == "flip":
        size = 1
        data[where] ^= 1 << rng.randrange(8)
    elif kind == "overwrite":
        data[where : where + size] = rng.randbytes(size)
    elif kind == "zero":
        data[where : where + size] = bytes(size)
    elif kind == "cut":
        size = len(content) - where
        del data[where:]
    else:
        other = rng.randrange(len(content) - size + 1)
        data[where : where + size] = content[other : other + size]
        data[other : other + size] = content[where : where + size]
    return bytes(data), f"{kind} {size} bytes at {where}"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def restore(folder: Path, files: dict[str, bytes]) -> None:
    present = files_of(folder)
    for name in present.keys() - files.keys():
        (folder / name).unlink()
    for name, content in files.items():
        if present.get(name) != content:
            (folder / name).write_bytes(content)


def store(folder: Path) -> Subject:
    make_store(folder)

    def read() -> Facts:
        opened = EpisodeStore.open(folder)
        opened.verify()
        facts = {"spec": digest(opened.spec)}
        for index, entry in enumerate(opened.entries):
            facts[f"episode {entry.episode}"] = digest(digest_episode(opened.episode(index)), entry.held_out, entry.key)
        return facts

    return Subject("store: shards, index, specification", folder, read)


def codes(folder: Path) -> Subject:
    data, tokenizer = make_store(folder / "data"), load_tokenizer(make_run(folder))
    encode_store(data, tokenizer, folder / "codes")

    def read() -> Facts:
        return {"codes": digest(np.array(encode_store(data, tokenizer, folder / "codes").codes))}

    return Subject("cached codes", folder, read, pattern="codes/*")


def run(folder: Path) -> Subject:
    path = make_run(folder)
    frames = torch.from_numpy(record(0).frames[:2])

    def read() -> Facts:
        world = WorldModel.load(path, "cpu", "fp32")
        dream = world.imagine(frames, [0, 1], generator=torch.Generator().manual_seed(0))
        return {"dream": digest(dream.frames, dream.codes, dream.rewards, dream.ends, world.spec)}

    return Subject("run: weights, settings, specification", folder, read, pattern="run/*.*")


def checkpoint(folder: Path) -> Subject:
    file = folder / "checkpoint.safetensors"
    save_tensors(file, {"weight": torch.randn(8, 8), "steps": torch.arange(4)}, {"step": 7, "elapsed": 0.5})

    def read() -> Facts:
        tensors, facts = load_tensors(file, "remove it")
        return {"facts": digest(facts), **{name: digest(tensor) for name, tensor in tensors.items()}}

    return Subject("checkpoint", folder, read)


def bitstream(folder: Path) -> Subject:
    torch.manual_seed(0)
    tokenizer: Any = build_tokenizer(compose_config(CODEC), SPEECH)
    codec = Codec(tokenizer)
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 4000).astype(np.float32)
    written = codec.encode(wave)
    model = CountModel([written], codec.num_codes)
    folder.mkdir()
    model.save(folder / "entropy.safetensors")
    for name, each in (("counts", model), ("fixed", None)):
        codec.write(written, len(wave), each, 12).save(folder / f"{name}.wmc")

    def read() -> Facts:
        counts, facts = CountModel.load(folder / "entropy.safetensors"), {}
        for name, each in (("counts", counts), ("fixed", None)):
            stream = Bitstream.load(folder / f"{name}.wmc")
            facts[name] = digest(codec.read(stream, each), stream)
        return facts

    return Subject("bitstreams and their entropy model", folder, read)


def of_source(name: str, folder: Path, build: Callable[[], Source], pattern: str, checked: bool = True) -> Subject:
    """A source, whose unreadable items are reported and left out, as an import does."""

    def read() -> Facts:
        source = build()
        facts = {"frames": digest(source.spec.frame_shape)}
        for index, key in enumerate(source.keys):
            try:
                item = source.read(index)
                facts[key] = digest(digest_episode(item.episode), item.held_out)
            except DataError as error:
                log.warning("%s", message_of(error))
        return facts

    return Subject(name, folder, read, checked, pattern)


def npz(folder: Path) -> Subject:
    data = make_store(folder / "data", 3)
    (folder / "npz").mkdir()
    export.to_npz(data, range(len(data)), folder / "npz")
    return of_source("npz", folder, lambda: Arrays(str(folder / "npz")), "npz/*")


def minari(folder: Path) -> Subject:
    data = make_store(folder / "data", 3)
    (folder / "minari").mkdir()
    export.to_minari(data, range(len(data)), folder / "minari", "noise/small-v0")
    return of_source("Minari (HDF5)", folder, lambda: Minari(str(folder / "minari")), "minari/**/*", checked=False)


def pictures(folder: Path) -> Subject:
    folder.mkdir()
    for number in range(3):
        Image.fromarray(record(number).frames[0].transpose(1, 2, 0)).save(folder / f"{number}.png")
    return of_source("PNG", folder, lambda: ImageFolder(str(folder), 16), "*")


def sounds(folder: Path) -> Subject:
    folder.mkdir()
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 2000).astype(np.float32)
    files = folder / "sound.wav", folder / "sound.flac"
    for file in files:
        soundfile.write(file, wave, 16000)
    return Subject("WAV, FLAC", folder, lambda: {file.name: digest(read_sound(file)) for file in files}, checked=False)


MAKERS = (store, codes, run, checkpoint, bitstream, npz, minari, pictures, sounds)
NEEDED = {minari: "minari"}  # packages that may be missing: without them, the files are left out
