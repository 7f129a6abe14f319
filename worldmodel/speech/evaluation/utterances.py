"""The utterances of a store with the codes of a run."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.store import EpisodeStore
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.speech.scores.features import RATE
from worldmodel.speech.sound import to_wave
from worldmodel.speech.voice import VoiceModel
from worldmodel.types import NO_ACTION


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One utterance and its codes."""

    key: str
    speaker: int
    held_out: bool
    frames: Tensor  # (T, 1, L) uint8
    codes: Tensor  # (T, *grid) int64, on the host

    @property
    def wave(self) -> np.ndarray:
        """(T · L,) float32."""
        return to_wave(self.frames.numpy()).reshape(-1)

    @property
    def signal_codes(self) -> Tensor:
        """The codes as one signal: (1, T · n), with the shape of the slots behind it."""
        return self.codes.flatten(0, 1)[None]

    @property
    def seconds(self) -> float:
        return self.frames.numel() / RATE


def load_utterances(world: VoiceModel, store: EpisodeStore, progress: Progress = silent) -> list[Utterance]:
    """All utterances with their codes."""
    held_out = set(store.split("held_out").tolist())
    trained = {store.episode(int(number)).condition for number in store.split("train")}
    utterances = []
    for number, entry in enumerate(store.entries):
        episode = store.episode(number)
        frames = torch.from_numpy(np.array(episode.frames))
        codes = world.encode(frames).cpu()
        speaker = episode.condition if episode.condition in trained else NO_ACTION  # untrained embedding
        utterances.append(Utterance(entry.key or str(number), speaker, number in held_out, frames, codes))
        progress("utterances", number + 1, len(store))
    return utterances


def flat_codes(world: VoiceModel, utterance: Utterance) -> np.ndarray:
    """(T · n,); (T · n, S) with several codebooks; (T · n, levels) with several levels, coarse codes repeated."""
    if len(world.tokenizer.levels) > 1:
        books = [book.flatten() for book in world.tokenizer.books(utterance.codes)]
        finest = max(map(len, books))
        return torch.stack([book.repeat_interleave(finest // len(book)) for book in books], 1).numpy()
    codes = utterance.codes.flatten(0, len(utterance.codes.shape) - 1 - len(world.tokenizer.slots))
    return codes.flatten(1).numpy() if world.tokenizer.slots else codes.numpy()
