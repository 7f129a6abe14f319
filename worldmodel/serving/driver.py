"""An agent that chooses the actions of a visitor's dream."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from worldmodel.recording.recorder import ActionSource
from worldmodel.serving.dreams import Moment

MakeAgent = Callable[[], ActionSource]


class Driver:
    """An agent that sees dreamt frames, one after the other. It begins anew wherever others have acted in between."""

    def __init__(self, make_agent: MakeAgent, action_names: Sequence[str]):
        self._make_agent, self._names = make_agent, tuple(action_names)
        self._agent: ActionSource | None = None
        self._expected: Moment | None = None  # the moment that its last action led to

    def act(self, moment: Moment) -> int:
        """The action to take at a moment. Raises the errors of the agent."""
        if self._agent is None:
            self._agent = self._make_agent()
        if moment is not self._expected:
            self._agent.begin(self._names, np.random.default_rng(moment.noise.numpy()))
        return int(self._agent.act(moment.frame.copy()))  # agents expect an array that may be written to

    def follow(self, moment: Moment) -> None:
        """Record where the action of the agent led, for its next call."""
        self._expected = moment
