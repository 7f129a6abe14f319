"""Scenes: which recorded frames a dream starts from, and which actions lead on."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError, DataError

LOOKS = 8  # random places that are looked at before one is chosen


@dataclasses.dataclass(frozen=True)
class Place:
    """Somewhere in a store."""

    episode: int  # index of the episode
    first: int  # index of the first frame that is shown to the model

    @classmethod
    def parse(cls, text: str) -> Place:
        """``4`` → the start of episode 4, ``4:20`` → its frame 20. Raises :class:`ConfigError`."""
        found = re.fullmatch(r"(\d{1,12})(?::(\d{1,12}))?", text.strip(), re.ASCII)
        if found is None:
            raise ConfigError(f"{text!r} is no place in the data; write EPISODE or EPISODE:FRAME, as in 4 or 4:20")
        return cls(int(found[1]), int(found[2] or 0))


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a dream starts from and is led by."""

    place: Place
    held_out: bool  # the model was not trained on the episode
    seen: Tensor  # (T0, C, H, W) uint8
    seen_actions: Tensor  # (T0,) int64: the action that led to each seen frame
    actions: Tensor  # (H,) int64: the action that leads to each frame to be dreamt
    truth: Tensor | None  # (H, C, H, W) uint8, what really followed; None under actions of the user's choice


def scripted_scene(store: EpisodeStore, place: Place, context: int, actions: np.ndarray) -> Scene:
    """``context`` frames from a place on, then chosen actions (H,). Raises as :func:`check_place` does."""
    check_place(store, place, context, 0)
    seen, seen_actions = _read(store, place, context)
    return Scene(place, _held_out(store, place), seen, seen_actions, torch.tensor(actions), None)


def replayed_scene(store: EpisodeStore, place: Place, context: int, steps: int) -> Scene:
    """``context`` frames from a place on, then the recorded actions, ``steps`` of them or as many as the episode has.

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


def check_place(store: EpisodeStore, place: Place, context: int, behind: int) -> None:
    """Raises :class:`ConfigError`, naming the range, unless ``context`` frames and then ``behind`` steps lie there."""
    if not 0 <= place.episode < len(store):
        there = f"choose from 0 to {len(store) - 1}" if len(store) else "there are no episodes"
        raise ConfigError(f"episode {place.episode} is not in {store.path}; {there}")
    frames = int(store.frame_counts[place.episode])
    last = frames - context - behind
    if last < 0:
        raise ConfigError(f"episode {place.episode} has {frames} frames, too few for --context {context}; give fewer")
    if not 0 <= place.first <= last:
        raise ConfigError(
            f"frame {place.first} of episode {place.episode} leaves too little behind it; choose from 0 to {last}"
        )


def random_place(store: EpisodeStore, context: int, behind: int, wanted: int, rng: np.random.Generator) -> Place:
    """A place with ``context`` frames and then at least ``behind`` steps, ``wanted`` where an episode has so many.

    Held-out episodes come first; where none of them is long enough any episode will do. Of ``LOOKS`` random places the
    one whose last seen frame has most colours is taken: a wall in the face tells nobody where he is. Raises
    :class:`DataError` when no episode is long enough.
    """
    room = store.frame_counts - context  # (E,) steps that follow the first frames of each episode
    for episodes in (store.split("held_out"), store.split("train")):
        for steps in (wanted, behind):
            choices = episodes[room[episodes] >= steps]
            if len(choices):
                drawn = [int(index) for index in rng.choice(choices, LOOKS)]
                places = [Place(index, int(rng.integers(room[index] - steps + 1))) for index in drawn]
                return max(places, key=lambda place: _variety(store, place.episode, place.first + context - 1))
    raise DataError(f"no episode in {store.path} has {context + behind} frames; give a smaller --context")


def _variety(store: EpisodeStore, episode: int, frame: int) -> float:
    """Entropy in nats of a frame's colours, each channel in eight levels: a wall in the face has few of them."""
    picture = store.read(episode, frame, frame + 1)[0][0] >> 5
    colours = picture.reshape(len(picture), -1)  # (C, places)
    counts = np.unique(colours, axis=1, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
