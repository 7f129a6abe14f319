"""Scenes: the recorded frames that a dream starts from, and its actions."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, DataError

CANDIDATES = 8  # random places from which one is chosen


@dataclasses.dataclass(frozen=True)
class Place:
    """A position in a store."""

    episode: int  # index of the episode
    first: int  # index of the first seen frame

    @classmethod
    def parse(cls, text: str) -> Place:
        """``4`` → the start of episode 4, ``4:20`` → its frame 20. Raises :class:`ConfigError`."""
        match = re.fullmatch(r"(\d{1,12})(?::(\d{1,12}))?", text.strip(), re.ASCII)
        if match is None:
            raise ConfigError(f"{text!r} is no place in the data; write EPISODE or EPISODE:FRAME, as in 4 or 4:20")
        return cls(int(match[1]), int(match[2] or 0))


@dataclasses.dataclass(frozen=True)
class Scene:
    """The seen frames and the actions of a dream."""

    place: Place
    held_out: bool  # whether the episode is held out
    seen: Tensor  # (T0, C, H, W) uint8
    seen_actions: Tensor  # (T0,) int64: the action that led to each seen frame
    actions: Tensor  # (H,) int64: the action that leads to each frame to be dreamt
    truth: Tensor | None  # (H, C, H, W) uint8, the recorded frames; None for chosen actions


def scripted_scene(store: EpisodeStore, place: Place, context: int, actions: np.ndarray) -> Scene:
    """``context`` frames from a place on, then chosen actions (H,). Raises as :func:`check_place` does."""
    check_place(store, place, context, 0)
    seen, seen_actions = _read(store, place, context)
    return Scene(place, _held_out(store, place), seen, seen_actions, torch.tensor(actions), None)


def replayed_scene(store: EpisodeStore, place: Place, context: int, steps: int) -> Scene:
    """``context`` frames from a place on, then at most ``steps`` recorded actions.

    Raises as :func:`check_place` does.
    """
    check_place(store, place, context, 1)
    frames, actions = _read(store, place, context + steps)
    parts = frames[:context], actions[:context], actions[context:], frames[context:]
    return Scene(place, _held_out(store, place), *parts)


def _read(store: EpisodeStore, place: Place, count: int) -> tuple[Tensor, Tensor]:
    """At most ``count`` frames from a place on, and the action that led to each."""
    last = min(place.first + count, int(store.frame_counts[place.episode]))
    frames, records = store.read(place.episode, place.first, last)
    return torch.tensor(frames), torch.tensor(records["action"].astype(np.int64))


def _held_out(store: EpisodeStore, place: Place) -> bool:
    return bool(store.entries[place.episode].held_out)


def check_place(store: EpisodeStore, place: Place, context: int, steps: int) -> None:
    """Raises :class:`ConfigError` unless ``context`` frames and then ``steps`` steps start at the place."""
    if not 0 <= place.episode < len(store):
        there = f"choose from 0 to {len(store) - 1}" if len(store) else "there are no episodes"
        raise ConfigError(f"episode {place.episode} is not in {store.path}; {there}")
    frames = int(store.frame_counts[place.episode])
    last = frames - context - steps
    if last < 0:
        raise ConfigError(f"episode {place.episode} has {frames} frames, too few for --context {context}; give fewer")
    if not 0 <= place.first <= last:
        raise ConfigError(f"frame {place.first} of episode {place.episode} is too late; choose from 0 to {last}")


def random_place(store: EpisodeStore, context: int, least: int, wanted: int, rng: np.random.Generator) -> Place:
    """A random place with ``context`` frames and then ``wanted`` steps, or at least ``least``.

    Held-out episodes are preferred. Of :data:`CANDIDATES` places, the one whose last seen frame has the most varied
    colours is chosen, to avoid views of a wall. Raises :class:`DataError` when no episode is long enough.
    """
    available = store.frame_counts - context  # (E,) steps that follow the first frames of each episode
    for episodes in (store.split("held_out"), store.split("train")):
        for steps in (wanted, least):
            choices = episodes[available[episodes] >= steps]
            if len(choices):
                drawn = [int(index) for index in rng.choice(choices, CANDIDATES)]
                places = [Place(index, int(rng.integers(available[index] - steps + 1))) for index in drawn]
                return max(places, key=lambda place: _variety(store, place.episode, place.first + context - 1))
    raise DataError(f"no episode in {store.path} has {context + least} frames; give a smaller --context")


def _variety(store: EpisodeStore, episode: int, frame: int) -> float:
    """Entropy in nats of a frame's colours, each channel quantized to eight values."""
    picture = store.read(episode, frame, frame + 1)[0][0] >> 5
    colours = picture.reshape(len(picture), -1)  # (C, places)
    counts = np.unique(colours, axis=1, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
