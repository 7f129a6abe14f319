"""The agent that plays with a trained actor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.agents.base import Agent
from worldmodel.agents.run import AGENT, load_actor
from worldmodel.errors import RunError
from worldmodel.runs.folder import find_run, load_spec
from worldmodel.tokenizers import Tokenizer
from worldmodel.types import NO_ACTION
from worldmodel.util.ranges import Count, Share


class ActorCriticAgent(Agent):
    """Plays with a trained actor, whose input is the codes of the frames.

    Args:
        run: folder of a run with a trained actor; every process loads it at its first episode.
        greedy: take the most probable action instead of sampling.
        random_action_probability: of a random action instead of the policy's, repeated for up to ``max_repeat`` steps.
        runs: folder in which ``run`` is a name, or None for the latest run that has an actor.

    Raises :class:`RunError` for a missing run and, at the first episode, for one without an actor or with other
    actions.
    """

    needs = AGENT

    def __init__(
        self,
        run: str | Path | None,
        greedy: bool = False,
        random_action_probability: Share = 0.0,
        max_repeat: Count = 1,
        device: str = "cpu",
        runs: str | Path | None = None,
    ):
        if runs is not None:
            run = find_run(runs, run, AGENT)
        self.run, self.greedy, self.device = str(run), greedy, device
        self.random_action_probability, self.max_repeat = random_action_probability, max_repeat
        self._loaded: tuple[Tokenizer, ActorCritic] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        if self._loaded is None:
            self._loaded = load_actor(Path(self.run), self.device)
        trained = load_spec(Path(self.run)).action_names
        if tuple(action_names) != trained:
            raise RunError(
                f"the actor of {self.run} was trained with the actions {', '.join(trained)}, and this environment has "
                f"{', '.join(action_names)}; choose another run=…"
            )
        self._rng, self._action, self._repeats_left = rng, NO_ACTION, 0
        self._recent = self._loaded[1].begin(1)

    @torch.no_grad()
    def act(self, frame: np.ndarray) -> int:
        assert self._loaded is not None, "call begin before act"
        tokenizer, actor = self._loaded
        device = self._recent.actions.device
        grids = tokenizer.encode(torch.from_numpy(frame)[None].to(device))
        self._recent = self._recent.appended(grids, torch.tensor([self._action], device=device))
        if self._repeats_left:
            self._repeats_left -= 1
            return self._action
        probabilities = F.softmax(actor(self._recent).logits[0].double(), -1).cpu().numpy()
        if self.random_action_probability and self._rng.random() < self.random_action_probability:
            self._action = int(self._rng.integers(len(probabilities)))
            self._repeats_left = int(self._rng.integers(self.max_repeat))
        elif self.greedy:
            self._action = int(probabilities.argmax())
        else:
            self._action = int(self._rng.choice(len(probabilities), p=probabilities / probabilities.sum()))
        return self._action
