"""An explorer that prefers actions for which its world model imagines novel frames."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.agents.base import check_actions
from worldmodel.agents.explorers import StickyExplorer
from worldmodel.config.checks import checked
from worldmodel.heads import make_sampler
from worldmodel.priors import select_rows
from worldmodel.runs.folder import PRIOR, find_run
from worldmodel.types import NO_ACTION
from worldmodel.util.ranges import Count
from worldmodel.world import WorldModel


class CodeCounts:
    """Counts of each code at each position of the grid: a model of frames with independent positions. The novelty of a
    frame is its negative log-likelihood, as with the densities of Bellemare et al., *Unifying Count-Based Exploration
    and Intrinsic Motivation*, 2016."""

    def __init__(self, positions: int, num_codes: int, prior: float = 0.02):
        self.counts = torch.zeros(positions, num_codes)
        self.frames, self.prior = 0, prior

    def add(self, codes: Tensor) -> None:
        """Count one grid, (N,) int64."""
        self.counts[torch.arange(len(codes)), codes] += 1
        self.frames += 1

    def bits(self, codes: Tensor) -> Tensor:
        """Novelty of grids (..., N) int64, (...) bits per frame: Σ −log₂ p over positions; counts start at prior."""
        positions, num_codes = self.counts.shape
        counts = self.counts[torch.arange(positions), codes] + self.prior
        return -torch.log2(counts / (self.frames + self.prior * num_codes)).sum(-1)


class NoveltyExplorer(StickyExplorer):
    """A :class:`StickyExplorer` that imagines several sequences of runs and starts the first run of the most novel one.

    The sequences consist of the sticky explorer's weighted runs; random action sequences and walls are handled as
    there. The world model of a trained run imagines the frames. Their novelty is measured in bits per frame under the
    counts of the codes observed so far, in all episodes.

    Args:
        run: name or folder of the trained run; None: the latest. folder: of the runs.
        num_sequences: sequences imagined at every choice. horizon: their number of steps.
        options: arguments of :class:`StickyExplorer`.
    """

    @checked
    def __init__(
        self,
        run: str | Path | None = None,
        folder: str | Path = "runs",
        num_sequences: Count = 8,
        horizon: Count = 8,
        device: str = "cpu",
        **options: Any,
    ):
        super().__init__(**options)
        self.trained = find_run(folder, run, PRIOR)
        self.num_sequences, self.horizon, self.device = num_sequences, horizon, device
        self._sampler = make_sampler("auto", 1.0, None)
        self._world: WorldModel | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_world": None}

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        super().begin(action_names, rng)
        if self._world is None:
            self._world = WorldModel.load(self.trained, self.device)
            self.code_counts = CodeCounts(self._world.prior.positions, self._world.prior.num_codes)
        trained = self._world.spec.action_names
        check_actions(action_names, trained, f"the run {self.trained}", "choose another with explorer.run=…")
        self._state = self._world.prior.begin(1)
        self._noise = torch.Generator(self._world.device).manual_seed(int(rng.integers(2**63)))

    @torch.no_grad()
    def act(self, frame: np.ndarray) -> int:
        assert self._world is not None, "call begin before act"
        codes = self._world.tokenizer.encode(torch.tensor(frame)[None].to(self._world.device))
        action = torch.tensor([self._action if self._action >= 0 else NO_ACTION], device=self._world.device)
        self._state = self._world.prior.observe(self._state, codes, action)
        self.code_counts.add(codes.flatten().cpu())
        return super().act(frame)

    def _choose(self) -> None:
        super()._choose()
        if self._single or self._left == 0:
            return
        sequences = [self._random_sequence() for _ in range(self.num_sequences)]
        actions, length = sequences[int(self.novelty([actions for actions, _ in sequences]).argmax())]
        self._begin_run(actions[0], (length, length))

    def _random_sequence(self) -> tuple[list[int], int]:
        """An action for every step up to the horizon, in runs; and the length of the first run."""
        actions: list[int] = []
        first = 0
        while len(actions) < self.horizon:
            action = int(self._rng.choice(len(self._probabilities), p=self._probabilities))
            length = self._length(self._run[action])
            first = first or length
            actions += [action] * length
        return actions[: self.horizon], first

    def novelty(self, actions: list[list[int]]) -> Tensor:
        """Mean novelty of the frames imagined under sequences of actions, (sequences,) bits per frame."""
        assert self._world is not None
        device = self._world.device
        acts = torch.tensor(actions, device=device)
        state = select_rows(self._state, torch.zeros(len(acts), dtype=torch.int64, device=device))
        bits = torch.zeros(len(acts))
        for action in acts.unbind(1):
            step, state = self._world.step(state, action, self._sampler, self._noise)
            bits += self.code_counts.bits(step.codes.flatten(1).cpu())
        return bits / acts.shape[1]
