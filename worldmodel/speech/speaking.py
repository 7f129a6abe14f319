"""Output of speech in several voices: sound files and a page of spectrograms."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from worldmodel import media
from worldmodel.errors import ConfigError
from worldmodel.speech import media as speech_media
from worldmodel.speech.voice import VoiceModel
from worldmodel.util.output import SOUND_SUFFIXES, output_of

Waves = list[tuple[str, np.ndarray]]


def choose_speakers(script: str | None, model: VoiceModel) -> list[str]:
    """Parse names such as ``p225,p226``; the first speaker of the run by default.

    Raises :class:`UnknownActionError` for a speaker that the run does not have, :class:`ConfigError` for an empty name.
    """
    if script is None:
        return [model.spec.action_names[0]]
    speakers = [name.strip() for name in script.split(",")]
    if not all(speakers):
        example = model.spec.action_names[0]
        raise ConfigError(f"a speaker is missing in {script!r}; write names separated by commas, such as {example!r}")
    for speaker in speakers:
        model.spec.action_index(speaker)
    return list(dict.fromkeys(speakers))


def write_voices(
    run: Path,
    model: VoiceModel,
    speakers: Sequence[str],
    speak: Callable[[str, torch.Generator], np.ndarray],
    seed: int,
    output: str | None,
    name: str,
    before: Sequence[tuple[str, np.ndarray]] = (),
) -> None:
    """Write the wave (n,) that ``speak`` returns for each speaker and a page of their spectrograms; print a report.

    ``output``: the value of ``--output``; ``before``: labelled waves at the top of the page. Raises
    :class:`ConfigError` for one file and several speakers.
    """
    place = output_of(output, run / "dreams", name, SOUND_SUFFIXES)
    if place.suffix and len(speakers) > 1:
        raise ConfigError(f"--output {output} is one file, and there are {len(speakers)} speakers; name a folder")
    print(f"run       {run}")
    shown = list(before)
    for speaker in speakers:
        started = time.perf_counter()
        wave = speak(speaker, torch.Generator(model.device).manual_seed(seed))
        seconds = time.perf_counter() - started
        path = speech_media.save_sound(place.path(place.suffix or ".wav", f"-{speaker}"), wave, model.rate)
        shown.append((speaker, wave))
        length = len(wave) / model.rate
        print(f"{speaker:<10}{length:.2f} s of sound in {seconds:.1f} s: {len(wave) / seconds:,.0f} samples/s")
        print(f"written   {path}")
    page = place.path(".png")
    media.save_png(page, speech_media.spectrogram(shown, model.rate, title=f"{run.name} · seed {seed}"))
    print(f"          {page}")
