"""Worlds that are known exactly, behind the real :class:`WorldModel`: a state is one code, and its picture shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.agents.actor_critic import ActorCriticOutput, RecentFrames
from worldmodel.priors import PriorState, Step
from worldmodel.types import NO_ACTION, Spec
from worldmodel.world import WorldModel

CODES = 256


class Arrival(NamedTuple):
    states: Tensor  # (B,) int64
    rewards: Tensor  # (B,) float32
    ends: Tensor  # (B,) float32


Rule = Callable[[Tensor, Tensor, torch.Generator | None], Arrival]
"""States (B,), actions (B,), the source of chance → what comes of it."""


class ExactTokenizer(nn.Module):
    num_codes, grid, frame_shape = CODES, (1,), (1, 4, 4)

    def codebook(self) -> Tensor:
        return torch.eye(CODES)

    def encode(self, frames: Tensor) -> Tensor:
        return frames[:, 0, 0, :1].long()

    def decode(self, codes: Tensor) -> Tensor:
        return codes.byte()[:, :, None, None].expand(-1, *self.frame_shape)


class ExactPrior(nn.Module):
    num_codes, grid, context = CODES, (1,), 1

    def __init__(self, rule: Rule):
        super().__init__()
        self.rule = rule
        self.anchor = nn.Parameter(torch.zeros(()))  # tells the device

    def begin(self, batch: int) -> PriorState:
        return PriorState((), torch.full((batch, 1), -1))

    def observe(self, state: PriorState, codes: Tensor, actions: Tensor) -> PriorState:
        return PriorState((), codes)

    def step(
        self, state: PriorState, actions: Tensor, sampler: object, generator: torch.Generator | None = None
    ) -> tuple[Step, PriorState]:
        states, rewards, ends = self.rule(state.previous[:, 0], actions, generator)
        return Step(states[:, None], rewards, ends, torch.ones(())), PriorState((), states[:, None])


class Opinion(nn.Module):
    """An actor and critic that know a table: the value of every state, and an action that is liked everywhere."""

    history, discount = 2, None

    def __init__(self, values: dict[int, float], actions: int, liked: int = 0, liking: float = 0.0):
        super().__init__()
        self.values = torch.zeros(CODES)
        self.values[list(values)] = torch.tensor(list(values.values()))
        self.logits = torch.zeros(actions).index_fill(0, torch.tensor([liked]), liking)
        self.asked: list[RecentFrames] = []

    def begin(self, batch: int) -> RecentFrames:
        return RecentFrames(torch.full((batch, 2, 1), -1), torch.full((batch, 2), NO_ACTION))

    def forward(self, recent: RecentFrames) -> ActorCriticOutput:
        self.asked.append(recent)
        return ActorCriticOutput(self.logits.expand(len(recent.actions), -1), self.values[recent.grids[:, -1]])

    def expected(self, value: Tensor) -> Tensor:
        return value[:, 0]


def exact_world(rule: Rule, actions: int) -> WorldModel:
    names = tuple(f"a{number}" for number in range(actions))
    spec = Spec("test:exact", ExactTokenizer.frame_shape, names, 10.0)
    return WorldModel(spec, ExactTokenizer(), ExactPrior(rule))  # type: ignore[arg-type]


def picture(state: int) -> np.ndarray:
    """(1, 4, 4) uint8."""
    return np.full(ExactTokenizer.frame_shape, state, np.uint8)


def clock(end: float = 0.1) -> Rule:
    """The reward names its step, whatever is done: arriving at state t brings t, and ends with a fixed probability."""

    def rule(states: Tensor, actions: Tensor, generator: torch.Generator | None) -> Arrival:
        return Arrival(states + 1, (states + 1).float(), torch.full(states.shape, end))

    return rule


def corridor(states: Tensor, actions: Tensor, generator: torch.Generator | None) -> Arrival:
    """Places 0 to 7: stay, left, right. A step to the left brings 0.1, to arrive at 7 brings 5 and ends."""
    places = (states + torch.tensor([0, -1, 1])[actions]).clamp(0, 7)
    home = (places == 7).float()
    return Arrival(places, 5 * home + 0.1 * ((actions == 1) & (states > 0)), home)


def march(states: Tensor, actions: Tensor, generator: torch.Generator | None) -> Arrival:
    """Action 2 goes on and all others stand still; from the tenth step on every state brings 1."""
    places = states + (actions == 2)
    return Arrival(places, (places >= 10).float(), torch.zeros(states.shape))


def gamble(states: Tensor, actions: Tensor, generator: torch.Generator | None) -> Arrival:
    """From 0: action 0 brings 0.4, action 1 brings 1.0 three times of ten (state 2) and else −0.3 (state 3). Over."""
    lucky = torch.rand(states.shape, generator=generator) < 0.3
    rewards = torch.where(actions == 0, 0.4, torch.where(lucky, 1.0, -0.3))
    arrived = torch.where(actions == 0, 1, torch.where(lucky, 2, 3))
    return Arrival(arrived, torch.where(states == 0, rewards, 0.0), torch.zeros(states.shape))


def doors(states: Tensor, actions: Tensor, generator: torch.Generator | None) -> Arrival:
    """From 0: action 0 brings 0.7 (state 1, where nothing comes); action 1 leads before one of two doors, 2 or 3, by
    chance, and the action of the door (0 of 2, 1 of 3) then brings 1. Whoever decides beforehand is right in half
    of all cases.
    """
    door = 2 + torch.randint(2, states.shape, generator=generator)
    arrived = torch.where(states == 0, torch.where(actions == 0, 1, door), 1)
    opened = (states >= 2) & (states - 2 == actions)
    return Arrival(arrived, 0.7 * ((states == 0) & (actions == 0)) + opened.float(), torch.zeros(states.shape))
