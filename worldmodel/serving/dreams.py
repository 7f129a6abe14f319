"""Dreams that go on one frame at a time, of several visitors in one pass, each from an immutable moment."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldmodel import media
from worldmodel.data.store import EpisodeStore
from worldmodel.dreaming.videos import Place, check_place, random_place, remembered
from worldmodel.errors import DataError
from worldmodel.heads import make_sampler
from worldmodel.priors import PriorState, join_rows, map_state, select_rows
from worldmodel.types import NO_ACTION
from worldmodel.util.threads import FREE_CORES
from worldmodel.world import WorldModel


def noise_from(state: Tensor, device: torch.device) -> torch.Generator:
    """A generator in a state. One row draws from it what ``dream --seed`` draws for one dream."""
    generator = torch.Generator(device)
    generator.set_state(state)
    return generator


class Moment(NamedTuple):
    """A dream after one of its frames, from which it may go on any number of times."""

    kept: PriorState  # of one row, as :func:`shortened` returns it
    noise: Tensor  # state of the generator
    step: int  # frames dreamt so far
    action: int  # that led to the frame
    reward: float  # expected on arriving at the frame
    total: float  # sum of the rewards
    end: float  # probability that the frame is terminal
    frame: np.ndarray  # (C, H, W) uint8
    codes: np.ndarray  # (*grid) int64

    @property
    def state(self) -> PriorState:
        """The state as a prior takes it."""
        return map_state(lambda t: t.long() if t.dtype == torch.int16 else t, self.kept)

    @property
    def size(self) -> int:
        """Bytes in memory."""
        tensors = (*_leaves(self.kept), self.noise)
        return sum(t.numel() * t.element_size() for t in tensors) + self.frame.nbytes + self.codes.nbytes


def shortened(state: PriorState, num_codes: int) -> PriorState:
    """The state with codes and actions of 16 instead of 64 bits, if these suffice. A state with a memory consists of
    them, and a visit keeps up to a thousand states."""
    if num_codes > torch.iinfo(torch.int16).max:
        return state
    return map_state(lambda t: t.to(torch.int16) if t.dtype == torch.int64 else t, state)


class Order(NamedTuple):
    """One step that a visitor requests."""

    moment: Moment
    action: int
    temperature: float


class Beginning(NamedTuple):
    """The seen frames of a dream."""

    frames: np.ndarray  # (T0, C, H, W) uint8
    actions: np.ndarray  # (T0,) int64: the action that led to each frame
    earlier: int = 0  # number of the first ones that are in the memory only, and not shown


class Dreamer:
    """Begins dreams and continues them. Everything is a function of its arguments; it is not for several threads."""

    def __init__(self, world: WorldModel, store: EpisodeStore):
        self.world, self.store = world, store
        self.context = max(1, world.prior.context)
        self.earlier = remembered(world.prior, self.context)

    def read(self, place: Place) -> Beginning:
        """The seen frames at a place, and those before it that the episode has and a memory keeps. Raises
        :class:`ConfigError` for a place that is not in the data, and :class:`DataError` for a damaged episode."""
        check_place(self.store, place, self.context, 0)
        first = max(0, place.first - self.earlier)
        frames, records = self.store.read(place.episode, first, place.first + self.context)
        return Beginning(frames, records["action"].astype(np.int64), place.first - first)

    def starts(self, count: int, seed: int) -> list[tuple[Place, np.ndarray]]:
        """Places to start from, chosen as those of ``dream`` are, and their last seen frames (C, H, W)."""
        rng = np.random.default_rng(seed)
        found: dict[Place, np.ndarray] = {}
        for _ in range(2 * count):  # a place may be drawn twice, or be damaged
            place = random_place(self.store, self.context, 0, 0, rng)
            try:
                found[place] = self.read(place).frames[-1]
            except DataError:
                self.store.verify([place.episode])
            if len(found) == count:
                break
        return list(found.items())

    def begin(self, beginning: Beginning, seed: int) -> Moment:
        """The moment of the last seen frame."""
        device = self.world.device
        frames, actions = (torch.tensor(array)[None].to(device) for array in beginning[:2])
        state = self.world.observe(frames, actions)
        noise = torch.Generator(device).manual_seed(seed).get_state()
        codes = state.previous[0].cpu().numpy()
        kept = shortened(state, self.world.prior.num_codes)
        return Moment(kept, noise, 0, NO_ACTION, 0.0, 0.0, 0.0, beginning.frames[-1], codes)

    def step(self, orders: Sequence[Order]) -> Iterator[tuple[int, Moment]]:
        """The next moment of each order, with its index: one pass for all orders of the same temperature.

        The codes are drawn together, with the random numbers of each row from its own generator; samplers settle near
        ties row by row. Frames are decoded one by one, because the rounding of a decoder depends on the batch. So the
        dream of a row does not depend on the others.
        """
        keyed = sorted(range(len(orders)), key=lambda index: orders[index].temperature)
        for temperature, group in itertools.groupby(keyed, key=lambda index: orders[index].temperature):
            indices = list(group)
            yield from zip(indices, self._pass([orders[i] for i in indices], temperature), strict=True)

    def _pass(self, orders: Sequence[Order], temperature: float) -> Iterator[Moment]:
        device = self.world.device
        if device.type == "cpu":
            FREE_CORES.adjust()
        moments = [order.moment for order in orders]
        state = join_rows([moment.state for moment in moments])
        actions = torch.tensor([order.action for order in orders], device=device)
        noises = [noise_from(moment.noise, device) for moment in moments]
        drawn, state = self.world.step(state, actions, make_sampler("auto", temperature), noises)
        rewards, ends = drawn.rewards.tolist(), drawn.ends.tolist()
        for index, (order, noise) in enumerate(zip(orders, noises, strict=True)):
            row, before = torch.tensor([index], device=device), order.moment
            frame = self.world.tokenizer.decode(drawn.codes[row])[0].cpu().numpy()
            codes = drawn.codes[index].cpu().numpy()
            kept = shortened(select_rows(state, row), self.world.prior.num_codes)
            yield Moment(
                kept, noise.get_state(), before.step + 1, order.action,
                rewards[index], before.total + rewards[index], ends[index], frame, codes,
            )  # fmt: skip


def rgba(frame: np.ndarray) -> bytes:
    """A frame (C, H, W) uint8 as the page draws it: red, green, blue and opacity of each pixel."""
    shown = media.colours(frame.transpose(1, 2, 0))
    return np.dstack([shown, np.full(shown.shape[:2], 255, np.uint8)]).tobytes()


def _leaves(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    else:
        for branch in tree:
            yield from _leaves(branch)
