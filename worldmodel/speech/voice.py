"""The model of a speech run, which encodes waves, decodes codes in the voice of a speaker, and draws codes from the
prior; and the utterances of a store with their codes.
"""

import dataclasses
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Generator, Tensor

from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, RunError
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.heads import Sampler
from worldmodel.priors import Prior
from worldmodel.runs.folder import PRIOR, load_spec
from worldmodel.runs.kind import Kind, check_kind
from worldmodel.runs.models import check_trained, load_prior, load_tokenizer, resolve_device
from worldmodel.speech.sound import SILENCE, to_samples, to_wave
from worldmodel.tokenizers import Tokenizer
from worldmodel.types import NO_ACTION, Spec
from worldmodel.util.files import expanded


class VoiceModel:
    """A trained tokenizer of sound and its prior, if any."""

    def __init__(self, spec: Spec, tokenizer: Tokenizer, prior: Prior | None = None):
        self.spec, self.tokenizer = spec, tokenizer.eval()
        self.prior = None if prior is None else prior.eval()

    @property
    def device(self) -> torch.device:
        return next(self.tokenizer.parameters()).device

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return self.spec.frame_shape[1]

    @property
    def rate(self) -> int:
        """Samples a second."""
        return round(self.spec.rate * self.window)

    @classmethod
    def load(cls, run: str | Path, device: str = "auto") -> Self:
        """Load a run; the prior is None when it is not trained yet.

        Raises :class:`RunError` when the run is missing, damaged or of another kind.
        """
        folder, where = expanded(run), resolve_device(device)
        check_kind(folder, Kind.SPEECH)
        tokenizer = load_tokenizer(folder, where)
        prior = load_prior(folder, tokenizer, where) if check_trained(folder, PRIOR) else None
        assert prior is None or isinstance(prior, Prior)
        return cls(load_spec(folder), tokenizer, prior)

    def frames(self, wave: np.ndarray) -> Tensor:
        """A wave (n,) float of [-1, 1] at :attr:`rate` → windows (T, 1, L) uint8, padded with silence."""
        if wave.ndim != 1 or not len(wave):
            raise ConfigError(f"a wave is one row of at least one number, not {wave.shape}")
        samples = np.pad(to_samples(wave), (0, -len(wave) % self.window), constant_values=SILENCE)
        return torch.from_numpy(samples).view(-1, 1, self.window)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Windows of one utterance (T, 1, L) uint8 → codes (T, *grid)."""
        return self.tokenizer.encode_episode(frames.to(self.device))

    def decode(
        self, codes: Tensor, speaker: str | int, generator: Generator | None = None, temperature: float = 1.0
    ) -> np.ndarray:
        """Codes (T, *grid) → a wave (T · L,) float32 in the voice of a speaker.

        Raises :class:`UnknownActionError` for a name that the run does not have.
        """
        number = self.spec.action_index(speaker) if isinstance(speaker, str) else speaker
        frames = self.tokenizer.draw_episode(codes.to(self.device), number, generator, temperature)
        return to_wave(frames.flatten().cpu().numpy())

    def convert(
        self, wave: np.ndarray, speaker: str | int, generator: Generator | None = None, temperature: float = 1.0
    ) -> np.ndarray:
        """Voice conversion: a wave (n,) at :attr:`rate` → the same length in the voice of a speaker."""
        return self.decode(self.encode(self.frames(wave)), speaker, generator, temperature)[: len(wave)]

    @torch.no_grad()
    def speak(self, speaker: str | int, windows: int, sampler: Sampler, generator: Generator | None = None) -> Tensor:
        """Draw codes of ``windows`` windows from the prior for a speaker, (windows, *grid).

        Raises :class:`RunError` when the run has no prior yet.
        """
        if self.prior is None:
            raise RunError("the run has no trained prior yet; continue with python -m worldmodel.train")
        number = self.spec.action_index(speaker) if isinstance(speaker, str) else speaker
        action, state = torch.tensor([number], device=self.device), self.prior.begin(1)
        drawn = []
        for _ in range(windows):
            step, state = self.prior.step(state, action, sampler, generator)
            drawn.append(step.codes[0])
        return torch.stack(drawn)


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One utterance and its codes."""

    key: str
    speaker: int
    held_out: bool
    frames: Tensor  # (T, 1, L) uint8
    codes: Tensor  # (T, *grid) int64, on the host
    seconds: float

    @property
    def wave(self) -> np.ndarray:
        """(T · L,) float32."""
        return to_wave(self.frames.numpy()).reshape(-1)

    @property
    def signal_codes(self) -> Tensor:
        """The codes as one signal: (1, T · n), with the shape of the slots behind it."""
        return self.codes.flatten(0, 1)[None]


def load_utterances(world: VoiceModel, store: EpisodeStore, progress: Progress = silent) -> list[Utterance]:
    """All utterances with their codes; speakers are numbered as in the run."""
    numbers = [world.spec.action_index(name) for name in store.spec.action_names]
    trained = {store.episode(int(number)).condition for number in store.split("train")}
    utterances = []
    for number, entry in enumerate(store.entries):
        episode = store.episode(number)
        frames = torch.from_numpy(np.array(episode.frames))
        codes = world.encode(frames).cpu()
        known = episode.condition in trained and episode.condition != NO_ACTION
        speaker = numbers[episode.condition] if known else NO_ACTION  # others have an untrained embedding
        seconds = len(frames) / world.spec.rate
        utterances.append(Utterance(entry.key or str(number), speaker, entry.held_out, frames, codes, seconds))
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
