"""Dreams that go on under actions, a batch in one pass through the prior: what both dream environments stand on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from worldmodel.envs.starts import Starts

from worldmodel.data.store import Split
from worldmodel.errors import EnvError
from worldmodel.heads import make_sampler
from worldmodel.priors import replace_rows, select_rows
from worldmodel.runs.folder import PRIOR, find_run, open_episodes
from worldmodel.util.ranges import Count, NonNegative, Share
from worldmodel.world import Precision, WorldModel

OBSERVATIONS = ("pixels", "codes")


class Arrival(NamedTuple):
    """What n dreams came to by one step."""

    rewards: np.ndarray  # (n,) float64, as expected by the prior
    ends: np.ndarray  # (n,) float64, probability that the frame is terminal
    terminated: np.ndarray  # (n,) bool
    truncated: np.ndarray  # (n,) bool; never where terminated


class Dreams:
    """B dreams side by side, each of which begins and goes on by itself.

    Rows are told by their indices (n,) int64, in ascending order; ``rngs`` has a generator for every one of them, which
    alone decides where the row begins, what it dreams and when it ends.
    """

    def __init__(
        self,
        world: WorldModel,
        starts: Starts,
        batch: int,
        horizon: int,
        temperature: float,
        top_k: int | None,
        end_threshold: float | None,
    ):
        self.world, self.starts, self.batch = world, starts, batch
        self.horizon, self.end_threshold = horizon, end_threshold
        self.sampler = make_sampler("auto", temperature, top_k)
        self.state = world.prior.begin(batch)
        self.ages = np.zeros(batch, np.int64)  # steps dreamt

    @property
    def metadata(self) -> dict[str, Any]:
        """What environments say of themselves. ``grid``: how the codes of an observation lie, raster order."""
        spec = self.world.spec
        return {"render_fps": spec.rate, "action_names": spec.action_names, "grid": tuple(self.world.prior.grid)}

    @property
    def action_space(self) -> Discrete:
        return Discrete(len(self.world.spec.action_names))

    def observation_space(self, kind: str) -> Box | MultiDiscrete:
        """Of one row. Raises :class:`EnvError` for an unknown kind."""
        if kind not in OBSERVATIONS:
            raise EnvError(f"observations={kind!r}; choose {' or '.join(OBSERVATIONS)}")
        if kind == "codes":
            return MultiDiscrete([self.world.prior.num_codes] * self.world.prior.positions)
        channels, *size = self.world.spec.frame_shape
        return Box(0, 255, (*size, channels), np.uint8)

    def begin(self, rows: np.ndarray, rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        """Begin rows anew, wherever they are. → the episode and the last seen frame of each, (n,) int64."""
        places = [self.starts.draw(rng) for rng in rngs]
        begun = self.world.observe(*(tensor.to(self.world.device) for tensor in self.starts.read(places)))
        self.state = begun if len(rows) == self.batch else replace_rows(self.state, self._index(rows), begun)
        self.ages[rows] = 0
        episodes, firsts = np.array(places, np.int64).T
        return {"episode": episodes, "frame": firsts + self.starts.context - 1}

    def step(self, rows: np.ndarray, actions: np.ndarray, rngs: Sequence[np.random.Generator]) -> Arrival:
        """Rows go one frame further under actions (n,) int64; the others stay where they are."""
        every = len(rows) == self.batch
        state = self.state if every else select_rows(self.state, self._index(rows))
        led_by = torch.from_numpy(actions).to(self.world.device)
        step, state = self.world.step(state, led_by, self.sampler, rngs)
        self.state = state if every else replace_rows(self.state, self._index(rows), state)
        self.ages[rows] += 1
        rewards, ends = (value.cpu().numpy().astype(np.float64) for value in (step.rewards, step.ends))
        if self.end_threshold is None:
            terminated = np.array([rng.random() for rng in rngs]) < ends
        else:
            terminated = ends >= self.end_threshold
        return Arrival(rewards, ends, terminated, (self.ages[rows] >= self.horizon) & ~terminated)

    def observe(self, kind: str, rows: np.ndarray | None = None) -> np.ndarray:
        """What every row sees, or some do: codes (B, N) int64 in raster order, or pixels (B, H, W, C) uint8."""
        grids = self.state.previous if rows is None else self.state.previous[self._index(rows)]
        if kind == "codes":
            return grids.flatten(1).cpu().numpy().copy()
        return np.ascontiguousarray(self.world.tokenizer.decode(grids).permute(0, 2, 3, 1).cpu().numpy())

    def render(self) -> np.ndarray:
        """(B, H, W, 3) uint8: the decoded frames."""
        frames = self.observe("pixels")
        return frames[..., :3] if frames.shape[-1] >= 3 else frames[..., :1].repeat(3, -1)

    def action(self, action: Any) -> np.ndarray:
        """An action or (B,) of them as (B,) int64. Raises :class:`EnvError` for what is none of the actions."""
        acts, count = np.atleast_1d(np.asarray(action)), len(self.world.spec.action_names)
        if acts.shape != (self.batch,) or not np.issubdtype(acts.dtype, np.integer):
            raise EnvError(f"actions are {acts.dtype} of shape {acts.shape}; give ({self.batch},) integers")
        wrong = acts[(acts < 0) | (acts >= count)]
        if len(wrong):
            names = ", ".join(self.world.spec.action_names)
            raise EnvError(f"unknown action {wrong[0]}; this run knows 0 to {count - 1} ({names})")
        return acts.astype(np.int64)

    def _index(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows).to(self.world.device)


def open_dreams(
    run: str | Path | None = None,
    batch: Count = 1,
    *,
    runs: str | Path = "runs",
    data: str | Path | None = None,
    split: Split = "train",
    context: Count | None = None,
    horizon: Count = 50,
    temperature: NonNegative = 1.0,
    top_k: Count | None = None,
    end_threshold: Share | None = None,
    device: str = "auto",
    precision: Precision = "auto",
) -> Dreams:
    """The dreams of a trained run.

    Args:
        run: its name in ``runs``, or its folder; the latest when not given.
        batch: dreams side by side.
        data: folder of the episodes that dreams start from; those that the run was trained on when not given.
        split: which of them, ``train``, ``held_out`` or ``all``.
        context: frames that are seen before a dream; as many as the prior learnt with when not given.
        horizon: steps after which a dream is truncated.
        temperature, top_k: of the samples; temperature 0 takes what is expected.
        end_threshold: the probability of an end from which on a frame is terminal; ends are drawn when not given.
        device, precision: as :meth:`WorldModel.load` takes them.

    Raises :class:`RunError` when the run is missing, damaged or none of an environment, :class:`EnvError` for a number
    out of its range, :class:`DataError` for its episodes, :class:`ConfigError` for another setting.
    """
    for name, value in (("num_envs", batch), ("horizon", horizon), ("context", 1 if context is None else context)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise EnvError(f"{name}={value}: give a whole number from 1 on")
    if end_threshold is not None and not 0 < end_threshold <= 1:
        raise EnvError(f"end_threshold={end_threshold}: give a probability above 0, at most 1, or None to draw ends")
    make_sampler("auto", temperature, top_k)  # before anything slow
    folder = find_run(runs, run, holding=PRIOR)
    world = WorldModel.load(folder, device, precision)
    seen = max(1, world.prior.context) if context is None else context
    starts = Starts(open_episodes(folder, world.spec, data), split, seen)
    return Dreams(world, starts, batch, horizon, temperature, top_k, end_threshold)
