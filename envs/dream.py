"""The dream of a trained run as a gymnasium environment: ``gymnasium.make("worldmodel/Dream-v0", run=…)``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from worldmodel.envs.dreams import open_dreams
from worldmodel.errors import EnvError

ROW = np.zeros(1, np.int64)


class DreamEnv(gymnasium.Env[np.ndarray, Any]):
    """One dream. Actions are those of the run; rewards are the prior's expectation.

    Observations are ``pixels``, (H, W, C) uint8 as the tokenizer decodes them, or ``codes``, (N,) int64, the grid in
    raster order (its shape is ``metadata["grid"]``). A dream starts from frames of a recorded episode, terminates as
    predicted by the prior and is truncated at the horizon. ``settings``: see
    :func:`~worldmodel.envs.dreams.open_dreams`.

    ``info`` has the start of the dream (``episode``, ``frame``: the last context frame), then the ``end_probability``
    of every step. All random numbers come from ``np_random``.

    Raises the errors of :func:`~worldmodel.envs.dreams.open_dreams`, and :class:`EnvError` for an action out of range
    and for a step before the first reset or after the end.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own declaration)

    def __init__(
        self,
        run: str | Path | None = None,
        observations: str = "pixels",
        render_mode: str | None = None,
        **settings: Any,
    ):
        self._dreams = open_dreams(run, **settings)
        self._kind, self.render_mode = observations, render_mode
        self.metadata = {**type(self).metadata, **self._dreams.metadata}
        self.observation_space = self._dreams.observation_space(observations)
        self.action_space = self._dreams.action_space
        self._running: bool | None = None  # None before the first reset

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a dream at a recorded frame drawn by ``np_random``."""
        super().reset(seed=seed)
        start = self._dreams.begin(ROW, [self.np_random])
        self._running = True
        return self._dreams.observe(self._kind)[0], {name: int(value[0]) for name, value in start.items()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self._running:
            when = "before the first reset" if self._running is None else "after the end of the dream"
            raise EnvError(f"step {when}; call reset to begin one")
        result = self._dreams.step(ROW, self._dreams.action(action), [self.np_random])
        rewards, ends, terminated, truncated = (value.item() for value in result)
        self._running = not (terminated or truncated)
        return self._dreams.observe(self._kind)[0], rewards, terminated, truncated, {"end_probability": ends}

    def render(self) -> Any:
        """The decoded frame, (H, W, 3) uint8."""
        if self.render_mode is None:
            return None
        if self._running is None:
            raise EnvError("render before the first reset; call reset to begin a dream")
        return self._dreams.render()[0]
