"""A world that is known exactly: a square on a ring, moved by its actions. The right dream is the truth itself."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from worldmodel.types import Episode, Segment, Spec
from worldmodel.world import Dream

PLACES, CERTAINTY = 12, 0.9
SPEC = Spec("test:square", (3, 16, 24), ("noop", "left", "right"), 10.0)
MOVES = torch.tensor([0, -1, 1])


def pictures() -> Tensor:
    """(PLACES, C, H, W) uint8: the square at each place, on a fixed texture."""
    background = torch.randint(0, 60, SPEC.frame_shape, generator=torch.Generator().manual_seed(0))
    frames = background.expand(PLACES, -1, -1, -1).clone()
    for place in range(PLACES):
        frames[place, :, 6:10, 2 * place : 2 * place + 2] = torch.tensor([250, 200, 150])[:, None, None]
    return frames.to(torch.uint8)


def record(seed: int, least: int = 50, most: int = 70) -> Episode:
    """Random actions; reward 1 and, after ``least`` steps, the end on arriving at place 0."""
    generator = np.random.default_rng(seed)
    place, places, actions, rewards = int(generator.integers(1, PLACES)), [], [], []
    places.append(place)
    while len(actions) < most and not (len(actions) > least and place == 0):
        actions.append(int(generator.integers(3)))
        place = (place + int(MOVES[actions[-1]])) % PLACES
        places.append(place)
        rewards.append(1.0 if place == 0 else -0.01)
    terminated = place == 0 and len(actions) > least
    return Episode.from_steps(
        pictures()[places].numpy(), np.array(actions), np.array(rewards, np.float32), terminated, not terminated
    )


class Tokenizer:
    num_codes, grid, frame_shape = PLACES, (1,), SPEC.frame_shape

    def encode(self, frames: Tensor) -> Tensor:
        known = pictures().float().flatten(1)
        return torch.cdist(frames.float().flatten(1), known).argmin(1)[:, None]

    def decode(self, codes: Tensor) -> Tensor:
        return pictures()[codes[:, 0]]


class Prior:
    """Certain to 90 % of the place that the action leads to; knows that place 0 pays and may end."""

    context = 4

    @property
    def lead(self) -> int:
        return self.context

    def log_likelihood(self, codes: Tensor, actions: Tensor) -> Tensor:
        place = codes[..., 0]
        right = torch.zeros_like(place, dtype=torch.bool)
        moved = (place[:, :-1] + MOVES[actions[:, 1:].clamp(min=0)]) % PLACES
        right[:, 1:] = moved == place[:, 1:]
        wrong = math.log((1 - CERTAINTY) / (PLACES - 1))
        scores = torch.where(right, math.log(CERTAINTY), wrong)
        scores[:, 0] = -math.log(PLACES)
        return scores

    def predict_outcomes(self, codes: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        home = (codes[..., 0] == 0).float()
        return home * 1.01 - 0.01, home * 0.6


class World:
    """``obedience`` is the chance that a dreamt step follows its action instead of a random one."""

    spec, device = SPEC, torch.device("cpu")

    def __init__(self, obedience: float = 1.0):
        self.tokenizer, self.prior, self.obedience = Tokenizer(), Prior(), obedience

    def imagine(
        self,
        frames: Tensor,
        actions: Tensor,
        *,
        seen_actions: Tensor,
        generator: torch.Generator,
        samples: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Dream:
        if frames.dim() == 4:  # one start
            frames, actions, seen_actions = frames[None], actions[None], seen_actions[None]
        frames, actions, seen_actions = (part.repeat_interleave(samples, 0) for part in (frames, actions, seen_actions))
        assert seen_actions.shape == frames.shape[:2] and (seen_actions[:, 1:] >= 0).all()
        place = self.tokenizer.encode(frames[:, -1])[:, 0]
        obeys = torch.rand(actions.shape, generator=generator) < self.obedience
        done = torch.where(obeys, actions, torch.randint(3, actions.shape, generator=generator))
        places = (place[:, None] + MOVES[done].cumsum(1)) % PLACES
        nothing = torch.zeros(actions.shape)
        about = (SPEC, frames, seen_actions, actions, places[..., None], nothing, nothing, nothing[0])
        return Dream(*about, tokenizer=self.tokenizer)  # type: ignore[arg-type]


def windows(count: int, length: int, seed: int = 0) -> Segment:
    """Windows of as many episodes."""
    episodes = [record(seed + i) for i in range(count)]
    actions = torch.stack([torch.from_numpy(e.actions[:length]) for e in episodes])
    flags = torch.zeros(count, length, dtype=torch.bool)
    return Segment(
        actions=actions,
        rewards=torch.stack([torch.from_numpy(e.rewards[:length]) for e in episodes]),
        terminated=flags,
        truncated=flags,
        valid=~flags,
        frames=torch.stack([torch.from_numpy(e.frames[:length]) for e in episodes]),
    )
