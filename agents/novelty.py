"""An explorer that goes where its world model expects to see what was seldom seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from worldmodel.agents.explorers import StickyExplorer

from worldmodel.config.checks import checked
from worldmodel.errors import ConfigError
from worldmodel.heads import make_sampler
from worldmodel.priors import select_rows
from worldmodel.runs.folder import PRIOR, find_run
from worldmodel.types import NO_ACTION
from worldmodel.util.ranges import Count
from worldmodel.world import WorldModel


class SeenCodes:
    """How often each code was seen at each place of the grid: a model of frames in which places know nothing of one
    another. Its surprise at a frame is the frame's novelty, as with the densities of Bellemare et al., *Unifying
    Count-Based Exploration and Intrinsic Motivation*, 2016."""

    def __init__(self, positions: int, codes: int, prior: float = 0.02):
        self.counts = torch.zeros(positions, codes)
        self.frames, self.prior = 0, prior

    def add(self, codes: Tensor) -> None:
        """Take in one grid, (N,) int64."""
        self.counts[torch.arange(len(codes)), codes] += 1
        self.frames += 1

    def bits(self, codes: Tensor) -> Tensor:
        """Surprise at grids (..., N) int64, (...) bits a frame: Σ −log₂ p of the places; counts begin at ``prior``."""
        positions, vocabulary = self.counts.shape
        seen = self.counts[torch.arange(positions), codes] + self.prior
        return -torch.log2(seen / (self.frames + self.prior * vocabulary)).sum(-1)


class NoveltyExplorer(StickyExplorer):
    """Walks as :class:`StickyExplorer` does, but imagines several ways on and takes the one of the most novel frames.

    A way is a sequence of the sticky explorer's weighted runs. Its frames are imagined by the world model of a trained
    run; their novelty is their surprise, in bits a frame, under the codes that were seen so far, in all episodes. The
    first run of the best way is begun. Spells and walls stay the sticky explorer's.

    Args:
        run: name or folder of the trained run; the latest when not given. folder: of the runs.
        ways: imagined at every choice. horizon: their steps.
        options: what the sticky explorer takes.
    """

    @checked
    def __init__(
        self,
        run: str | Path | None = None,
        folder: str | Path = "runs",
        ways: Count = 8,
        horizon: Count = 8,
        device: str = "cpu",
        **options: Any,
    ):
        super().__init__(**options)
        self.trained = find_run(folder, run, PRIOR)
        self.ways, self.horizon, self.device = ways, horizon, device
        self._sampler = make_sampler("auto", 1.0, None)
        self._world: WorldModel | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_world": None}

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        super().begin(action_names, rng)
        if self._world is None:
            self._world = WorldModel.load(self.trained, self.device)
            self.seen = SeenCodes(self._world.prior.positions, self._world.prior.num_codes)
        if tuple(action_names) != self._world.spec.action_names:
            raise ConfigError(
                f"the run {self.trained} knows the actions {', '.join(self._world.spec.action_names)}, and this "
                f"environment has {', '.join(action_names)}; choose another with explorer.run=…"
            )
        self._state = self._world.prior.begin(1)
        self._noise = torch.Generator().manual_seed(int(rng.integers(2**63)))

    @torch.no_grad()
    def act(self, frame: np.ndarray) -> int:
        assert self._world is not None, "begin comes before act"
        codes = self._world.tokenizer.encode(torch.tensor(frame)[None].to(self._world.device))
        led = torch.tensor([self._action if self._action >= 0 else NO_ACTION], device=self._world.device)
        self._state = self._world.prior.observe(self._state, codes, led)
        self.seen.add(codes.flatten().cpu())
        return super().act(frame)

    def _choose(self) -> None:
        super()._choose()
        if self._single or self._left == 0:
            return
        ways = [self._way() for _ in range(self.ways)]
        action, length = ways[int(self.novelty([_unrolled(way, self.horizon) for way in ways]).argmax())][0]
        self._begin_run(action, (length, length))

    def _way(self) -> list[tuple[int, int]]:
        """Runs (action, steps) that are together as long as the horizon, or longer."""
        way, steps = [], 0
        while steps < self.horizon:
            action = int(self._rng.choice(len(self._odds), p=self._odds))
            length = int(self._rng.integers(self._run[action][0], self._run[action][1] + 1))
            way.append((action, length))
            steps += length
        return way

    @torch.no_grad()
    def novelty(self, actions: list[list[int]]) -> Tensor:
        """Mean surprise of the frames imagined under sequences of actions, (ways,) bits a frame."""
        assert self._world is not None
        device = self._world.device
        acts = torch.tensor(actions, device=device)
        state = select_rows(self._state, torch.zeros(len(acts), dtype=torch.int64, device=device))
        bits = torch.zeros(len(acts))
        for action in acts.unbind(1):
            step, state = self._world.step(state, action, self._sampler, self._noise)
            bits += self.seen.bits(step.codes.flatten(1).cpu())
        return bits / acts.shape[1]


def _unrolled(way: list[tuple[int, int]], horizon: int) -> list[int]:
    return [action for action, length in way for _ in range(length)][:horizon]
