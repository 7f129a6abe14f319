"""The agent that plays by a trained actor."""

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
    """Plays by a trained actor: the codes of what it sees are all that it needs of the world model.

    Args:
        run: folder of a run with a trained actor; it is read at the first episode, by every process that plays.
        greedy: the most probable action instead of one drawn.
        random_action_probability: of a random action in the place of the policy's, repeated for up to
            ``max_repeat`` steps.
        runs: folder in which ``run`` is a name, or None the latest that has an actor.

    Raises :class:`RunError` for a run that is not there, and at the first episode for one without an actor or with
    other actions than the environment's.
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
        known = load_spec(Path(self.run)).action_names
        if tuple(action_names) != known:
            raise RunError(
                f"the actor of {self.run} knows the actions {', '.join(known)}, and this environment has "
                f"{', '.join(action_names)}; choose another run=…"
            )
        self._rng, self._action, self._held = rng, NO_ACTION, 0
        self._seen = self._loaded[1].begin(1)

    @torch.no_grad()
    def act(self, frame: np.ndarray) -> int:
        assert self._loaded is not None, "begin comes before act"
        tokenizer, actor = self._loaded
        device = self._seen.actions.device
        grids = tokenizer.encode(torch.from_numpy(frame)[None].to(device))
        self._seen = self._seen.then(grids, torch.tensor([self._action], device=device))
        if self._held:
            self._held -= 1
            return self._action
        probabilities = F.softmax(actor(self._seen).logits[0].double(), -1).cpu().numpy()
        if self.random_action_probability and self._rng.random() < self.random_action_probability:
            self._action = int(self._rng.integers(len(probabilities)))
            self._held = int(self._rng.integers(self.max_repeat))
        elif self.greedy:
            self._action = int(probabilities.argmax())
        else:
            self._action = int(self._rng.choice(len(probabilities), p=probabilities / probabilities.sum()))
        return self._action
