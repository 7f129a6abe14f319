"""``dream`` for runs of sound: the same words in another voice, or speech that the prior makes up."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch

from worldmodel import media
from worldmodel.errors import ConfigError
from worldmodel.heads import make_sampler
from worldmodel.speech import media as speech_media
from worldmodel.speech.sources.sound import normalise, read_sound
from worldmodel.speech.voice import VoiceModel

SECONDS = 3.0
LONGEST = 600.0  # seconds; more is taken for a slip of the finger
FRAMES_ALONE = ("replay", "horizon", "start", "context", "samples")  # flags of pictures


def dream_sound(args: argparse.Namespace, run: Path, device: str, seed: int) -> None:
    """Write a file of sound for each speaker of ``--actions``, and a page of spectrograms; report."""
    for flag in FRAMES_ALONE:
        if getattr(args, flag) is not None:
            raise ConfigError(f"--{flag} goes with pictures, and the run {run.name} is of sound; give --actions, "
                              f"the speakers, and --convert or --seconds")  # fmt: skip
    world = VoiceModel.load(run, device)
    speakers = choose_speakers(args.actions, world.spec.action_names)
    for speaker in speakers:
        world.spec.action_index(speaker)  # tells an unknown one before anything is written
    if args.convert is not None:
        check_conversion(args, run, world)
    seconds = check_seconds(args.seconds) if args.convert is None else None
    if args.convert is not None and args.seconds is not None:
        raise ConfigError("--seconds is of speech that is made up; what is converted is as long as it was")
    source = None if args.convert is None else take_in(Path(args.convert), world.rate)
    shown = [] if source is None else [(Path(str(args.convert)).name, source)]
    paths = output_paths(args, run, speakers, seed)
    print(f"run       {run}")
    for speaker, path in zip(speakers, paths, strict=True):
        started = time.perf_counter()
        generator = torch.Generator(world.device).manual_seed(seed)
        if source is not None:
            wave = world.convert(source, speaker, generator, args.voice_temperature)
        else:
            assert seconds is not None
            windows = math.ceil(seconds * world.spec.rate)
            codes = world.speak(speaker, windows, make_sampler(args.sampler, args.temperature, args.top_k), generator)
            wave = world.decode(codes, speaker, generator, args.voice_temperature)[: round(seconds * world.rate)]
        spent = time.perf_counter() - started
        speech_media.save_sound(path, wave, world.rate)
        shown.append((speaker, wave))
        length = len(wave) / world.rate
        print(f"{speaker:<10}{length:.2f} s of sound in {spent:.1f} s: {len(wave) / spent:,.0f} samples/s")
        print(f"written   {path}")
    page = paths[0].with_name(paths[0].stem.removesuffix(f"-{speakers[0]}") + ".png")
    media.save_png(page, speech_media.spectrogram(shown, world.rate, title=f"{run.name} · seed {seed}"))
    print(f"          {page}")


def check_conversion(args: argparse.Namespace, run: Path, world: VoiceModel) -> None:
    """Raises :class:`ConfigError` where a voice cannot be changed, and for flags that say nothing of it."""
    if not world.tokenizer.condition_width:
        raise ConfigError(
            f"the decoder of {run.name} reads no speaker and cannot change a voice; use a run of "
            "experiment=vctk-spectra or vctk, or --encode of a codec"
        )
    if args.temperature != 1.0 or args.top_k is not None:
        raise ConfigError("--temperature and --top-k are of what the prior says; what is converted has its codes")


def take_in(file: Path, rate: int) -> np.ndarray:
    """A user's file as training has seen speech: mono, at its rate, as loud."""
    return normalise(read_sound(file, rate), rate)


def choose_speakers(script: str | None, known: tuple[str, ...]) -> list[str]:
    """The speakers that ``p225,p226`` names; without a script the first. The model refuses those it does not know."""
    if script is None:
        return [known[0]]
    speakers = [name.strip() for name in script.split(",")]
    if not all(speakers):
        raise ConfigError(f"a speaker is missing in {script!r}; write names parted by commas, such as {known[0]!r}")
    return list(dict.fromkeys(speakers))


def check_seconds(seconds: float | None) -> float:
    """Raises :class:`ConfigError` for a length that is none."""
    if seconds is None:
        return SECONDS
    if not 0 < seconds <= LONGEST:
        raise ConfigError(f"--seconds {seconds:g}; give a length of up to {LONGEST:g}")
    return seconds


def output_paths(args: argparse.Namespace, run: Path, speakers: list[str], seed: int) -> list[Path]:
    """One file a speaker: ``--output`` for one, or a folder for them; else named in the run's folder."""
    what = "speech" if args.convert is None else Path(args.convert).stem
    extra = "".join(
        f"-{text}{value:g}"
        for text, value, default in (
            ("t", args.temperature, 1.0),
            ("v", args.voice_temperature, 1.0),
            ("k", args.top_k, None),
            ("s", args.seconds, None),
        )
        if value != default
    )
    names = [f"{what}-seed{seed}{extra}-{speaker}.wav" for speaker in speakers]
    if args.output is None:
        return [run / "dreams" / name for name in names]
    given = Path(args.output)
    if given.suffix and not given.is_dir():
        if len(speakers) > 1:
            raise ConfigError(f"--output {given} is one file, and there are {len(speakers)} speakers; name a folder")
        return [speech_media.check_sound_path(given)]
    return [given / name for name in names]
