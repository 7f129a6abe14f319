"""Several stores as one: their episodes in the order of the stores, with a common list of actions."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from worldmodel.data.records import Item
from worldmodel.data.sources.base import Source
from worldmodel.data.store import EpisodeStore
from worldmodel.data.validate import MOST_ACTIONS
from worldmodel.errors import ConfigError, DataError
from worldmodel.types import NO_ACTION, Spec
from worldmodel.util.ranges import Names, Text, Wholes

OPPOSITE = {"left": "right", "right": "left"}


class Stores(Source):
    """The episodes of the stores in the folders ``paths``, which have frames of the same shape and rate.

    The actions (classes, speakers) are those of all stores, in their order; one that several stores name is one action.
    An episode is held out if it is held out in its own store. The key of an episode is the name of its store's data and
    its key or number there, such as timit/fcjf0/sa1. Stores of one Spec, such as recordings of one environment on
    several machines, are told apart by the names of their folders (…@folder/7), and the result has this Spec.

    ``repeat``: how many copies of its training episodes each store has, for small ones that should be drawn more often;
    the key of the second copy ends in #2. A store with 0 contributes its actions, but no episode for training or held
    out: the Spec stays the same, so that a model of all stores can be trained further on some of them. None: one copy.

    ``mirror``: each training episode is followed by its mirror image, whose actions have left and right exchanged in
    their names (turn_left, turn_right); its key ends in #mirror. For small recordings of worlds that are symmetrical.

    Raises :class:`DataError` for a folder without a store, for stores that do not fit together, and for two stores of
    the same name.
    """

    def __init__(self, paths: Names, name: Text = "stores", repeat: Wholes | None = None, mirror: bool = False):
        if repeat is not None and len(repeat) != len(paths):
            raise ConfigError(f"source.repeat has {len(repeat)} numbers for {len(paths)} stores; give one for each")
        if repeat is not None and not any(repeat):
            raise ConfigError(f"source.repeat={list(repeat)} leaves no episode; give at least one store 1 or more")
        self._stores = [EpisodeStore.open(path) for path in paths]
        specs = [store.spec for store in self._stores]
        for store in self._stores:
            if (store.spec.frame_shape, store.spec.rate) != (specs[0].frame_shape, specs[0].rate):
                raise DataError(
                    f"{store.path} has frames of {store.spec.frame_shape} at {store.spec.rate:g} a second, and "
                    f"{self._stores[0].path} has {specs[0].frame_shape} at {specs[0].rate:g}; they cannot be merged"
                )
        self._names = [spec.env_id for spec in specs]
        recorded = all(spec == specs[0] for spec in specs)
        if recorded and len(specs) > 1:
            self._names = [f"{store.spec.env_id}@{store.path.resolve().name}" for store in self._stores]
        if len(set(self._names)) < len(self._names):
            raise DataError(f"two stores hold data of the same name ({', '.join(self._names)}); collect one with "
                            "source.name=…, or rename its folder if all are of one environment")  # fmt: skip
        actions = tuple(dict.fromkeys(action for spec in specs for action in spec.action_names))
        if len(actions) > MOST_ACTIONS:
            raise DataError(f"the stores have {len(actions):,} actions, more than {MOST_ACTIONS:,}")
        self._numbers = [np.array([actions.index(action) for action in spec.action_names]) for spec in specs]
        self._opposites = mirrored_actions(actions) if mirror else np.array([], np.int64)
        self._places: list[tuple[int, int, bool]] = []  # (store, episode, whether it is mirrored) of each item
        self.keys: list[str] = []
        for place, store in enumerate(self._stores):
            for copy in range(1, 1 + (1 if repeat is None else repeat[place])):
                for mirrored in (False, True) if mirror else (False,):
                    additional = copy > 1 or mirrored  # of the training episodes only
                    own = [index for index, entry in enumerate(store.entries) if not (additional and entry.held_out)]
                    self._places += [(place, index, mirrored) for index in own]
                    suffix = (f"#{copy}" if copy > 1 else "") + ("#mirror" if mirrored else "")
                    self.keys += [self._key(place, index) + suffix for index in own]
        self.spec = specs[0] if recorded else Spec(name, specs[0].frame_shape, actions, specs[0].rate)

    def _key(self, place: int, index: int) -> str:
        entry = self._stores[place].entries[index]
        return f"{self._names[place]}/{entry.episode if entry.key is None else entry.key}"

    def read(self, index: int) -> Item:
        place, own, mirrored = self._places[index]
        store = self._stores[place]
        episode = store.episode(own)
        known = episode.actions != NO_ACTION
        actions = self._numbers[place][np.where(known, episode.actions, 0)]
        actions = np.where(known, self._opposites[actions] if mirrored else actions, NO_ACTION)
        frames = np.ascontiguousarray(episode.frames[..., ::-1]) if mirrored else episode.frames
        episode = dataclasses.replace(episode, frames=frames, actions=actions)
        return Item(episode, store.entries[own].held_out, self.keys[index])


def mirrored_actions(names: Sequence[str]) -> np.ndarray:
    """The number of the action that has left and right exchanged in its name, for each action: (A,) int64. Raises
    :class:`ConfigError` for an action that has no opposite."""
    opposites = [re.sub("left|right", lambda side: OPPOSITE[side[0]], name) for name in names]
    if alone := [name for name, opposite in zip(names, opposites, strict=True) if opposite not in names]:
        raise ConfigError(f"source.mirror: the action {alone[0]} has no opposite among {', '.join(names)}")
    return np.array([names.index(opposite) for opposite in opposites], np.int64)
