"""A batch of dreams that are stepped together, the base of both dream environments."""

import dataclasses
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete, MultiDiscrete

import worldmodel
from worldmodel.config.checks import check_value
from worldmodel.data.store import Split
from worldmodel.envs.starts import Starts
from worldmodel.errors import EnvError
from worldmodel.heads import Sampler, make_sampler
from worldmodel.media import colours
from worldmodel.priors import replace_rows, select_rows
from worldmodel.runs.folder import PRIOR, find_run, open_episodes
from worldmodel.types import Info
from worldmodel.util.ranges import MOST, Count, NonNegative, Share
from worldmodel.world import Precision, WorldModel

OBSERVATIONS = ("pixels", "codes")

TYPES: dict[str, Any] = {
    "run": str | Path | None, "runs": str | Path, "data": str | Path | None, "split": str, "temperature": float,
    "top_k": int | None, "end_threshold": float | None, "device": str, "precision": str,
}  # fmt: skip
"""Types of settings whose ranges are checked where they are used."""


class StepResult(NamedTuple):
    """Results of one step of n dreams."""

    rewards: np.ndarray  # (n,) float64, as expected by the prior
    ends: np.ndarray  # (n,) float64, probability that the frame is terminal
    terminated: np.ndarray  # (n,) bool
    truncated: np.ndarray  # (n,) bool; False where terminated


class DreamBatch:
    """B independent dreams.

    Rows are given by their indices (n,) int64 in ascending order. ``rngs`` has one generator per row, which determines
    the start of the dream, its frames and its end; of the noise of a frame it draws the key only
    (:mod:`worldmodel.heads.noise`).
    """

    def __init__(
        self, world: WorldModel, starts: Starts, batch: int, horizon: int, sampler: Sampler, end_threshold: float | None
    ):
        self.world, self.starts, self.batch = world, starts, batch
        self.horizon, self.sampler, self.end_threshold = horizon, sampler, end_threshold
        self.state = world.prior.begin(batch)
        self.ages = np.zeros(batch, np.int64)  # steps dreamt

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the environments. ``grid``: shape of the codes of an observation, in raster order."""
        spec = self.world.spec
        return {"render_fps": spec.rate, "action_names": spec.action_names, "grid": tuple(self.world.prior.grid)}

    @property
    def action_space(self) -> Discrete:
        return Discrete(len(self.world.spec.action_names))

    def observation_space(self, kind: str) -> Box | MultiDiscrete:
        """Of one row. Raises :class:`EnvError` for an unknown kind."""
        if not isinstance(kind, str) or kind not in OBSERVATIONS:
            raise EnvError(f"observations={kind!r}; choose {' or '.join(OBSERVATIONS)}")
        if kind == "codes":
            return MultiDiscrete([self.world.prior.num_codes] * self.world.prior.positions)
        channels, *size = self.world.spec.frame_shape
        return Box(0, 255, (*size, channels), np.uint8)

    def begin(self, rows: np.ndarray, rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        """Start rows again; returns the episode and the last context frame of each, (n,) int64."""
        starts = [self.starts.draw(rng) for rng in rngs]
        begun = self.world.observe(*(tensor.to(self.world.device) for tensor in self.starts.read(starts)))
        self.state = begun if len(rows) == self.batch else replace_rows(self.state, self._index(rows), begun)
        self.ages[rows] = 0
        episodes, firsts = np.array(starts, np.int64).T
        return {"dream_episode": episodes, "dream_frame": firsts + self.starts.context - 1}

    def step(self, rows: np.ndarray, actions: np.ndarray, rngs: Sequence[np.random.Generator]) -> StepResult:
        """Step rows under actions (n,) int64; the other rows are unchanged."""
        every = len(rows) == self.batch
        state = self.state if every else select_rows(self.state, self._index(rows))
        keys = np.array([rng.bit_generator.random_raw() for rng in rngs], np.uint64).view(np.int64)
        led_by, noise = torch.from_numpy(np.stack([actions, keys])).to(self.world.device)
        step, state = self.world.step(state, led_by, self.sampler, noise)
        self.state = state if every else replace_rows(self.state, self._index(rows), state)
        self.ages[rows] += 1
        rewards, ends = torch.stack([step.rewards, step.ends]).cpu().numpy().astype(np.float64)
        if self.end_threshold is None:
            terminated = np.array([rng.random() for rng in rngs]) < ends
        else:
            terminated = ends >= self.end_threshold
        return StepResult(rewards, ends, terminated, (self.ages[rows] >= self.horizon) & ~terminated)

    def observe(self, kind: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Observations of all rows or of some: codes (B, N) int64 in raster order, or pixels (B, H, W, C) uint8."""
        grids = self.state.previous if rows is None else self.state.previous[self._index(rows)]
        if kind == "codes":
            return grids.flatten(1).cpu().numpy().copy()
        return np.ascontiguousarray(self.world.tokenizer.decode(grids).permute(0, 2, 3, 1).cpu().numpy())

    def render(self) -> np.ndarray:
        """(B, H, W, 3) uint8: the decoded frames."""
        return colours(self.observe("pixels"))

    def action(self, action: Any) -> np.ndarray:
        """One action or (B,) actions as (B,) int64. Raises :class:`EnvError` for invalid actions."""
        try:
            acts, count = np.atleast_1d(np.asarray(action)), len(self.world.spec.action_names)
        except ValueError as error:  # lists of several lengths
            raise EnvError(f"actions are {action!r:.60}; give ({self.batch},) integers") from error
        if acts.shape != (self.batch,) or not np.issubdtype(acts.dtype, np.integer):
            raise EnvError(f"actions are {acts.dtype} of shape {acts.shape}; give ({self.batch},) integers")
        wrong = acts[(acts < 0) | (acts >= count)]
        if len(wrong):
            names = ", ".join(self.world.spec.action_names)
            raise EnvError(f"unknown action {wrong[0]}; this run has 0 to {count - 1} ({names})")
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
    max_episode_steps: int | None = None,
    temperature: NonNegative = 1.0,
    top_k: Count | None = None,
    end_threshold: Share | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    **unknown: object,
) -> DreamBatch:
    """Open the dreams of a trained run.

    Args:
        run: its name in ``runs`` or its folder; None: the latest.
        batch: number of dreams.
        data: folder of the episodes that dreams start from; None: those that the run was trained on.
        split: of these episodes, ``train``, ``held_out`` or ``all``.
        context: context frames of a dream; None: as many as in the training of the prior.
        horizon: steps after which a dream is truncated.
        max_episode_steps: the same, as ``gymnasium.make_vec`` passes it on; the smaller of the two counts.
        temperature, top_k: of the samples; temperature 0 makes dreams deterministic.
        end_threshold: least probability of an end at which a frame is terminal; None: ends are sampled.
        device, precision: as :meth:`WorldModel.load` takes them.

    Raises :class:`RunError` when the run is missing, damaged or not of an environment, :class:`EnvError` for a number
    out of range, :class:`DataError` for its episodes, :class:`ConfigError` for another setting.
    """
    if unknown:
        known = ", ".join(list(inspect.signature(open_dreams).parameters)[2:-1])
        raise EnvError(f"the dream environment has no setting {next(iter(unknown))}; choose {known}")
    steps = None if max_episode_steps == -1 else max_episode_steps  # as in gymnasium.make
    check_counts(num_envs=batch, horizon=horizon, context=context, max_episode_steps=steps)
    check_types(run=run, runs=runs, data=data, split=split, temperature=temperature, top_k=top_k,
                end_threshold=end_threshold, device=device, precision=precision)  # fmt: skip
    if end_threshold is not None and not 0 < end_threshold <= 1:
        raise EnvError(f"end_threshold={end_threshold}: give a probability above 0, at most 1, or None to sample it")
    sampler = make_sampler("auto", temperature, top_k)  # checks them before anything slow is done
    if os.getpid() != worldmodel.IMPORTED_IN:  # a fork, such as AsyncVectorEnv's, would wait for torch's other threads
        torch.set_num_threads(1)
    folder = find_run(runs, run, holding=PRIOR)
    world = WorldModel.load(folder, device, precision)
    starts = Starts(open_episodes(folder, world.spec, data), split, context or max(1, world.prior.context))
    return DreamBatch(world, starts, batch, min(horizon, steps or horizon), sampler, end_threshold)


def check_counts(**counts: Any) -> None:
    """Raises :class:`EnvError` for anything but None and whole numbers from 1."""
    for name, value in counts.items():
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if value is not None and not (whole and 1 <= value <= MOST):
            raise EnvError(f"{name}={value}: give a whole number of at least 1")


def check_types(**settings: Any) -> None:
    """Raises :class:`ConfigError` for a setting of :func:`open_dreams` that is not of its type, before it is used."""
    for name, value in settings.items():
        check_value(name, TYPES[name], value.item() if isinstance(value, np.generic) else value)


ROW = np.zeros(1, np.int64)


class DreamEnv(gymnasium.Env[np.ndarray, Any]):
    """One dream. Actions are those of the run; rewards are the prior's expectation.

    Observations are ``pixels``, (H, W, C) uint8 as the tokenizer decodes them, or ``codes``, (N,) int64, the grid in
    raster order (its shape is ``metadata["grid"]``). A dream starts from frames of a recorded episode, terminates as
    predicted by the prior and is truncated at the horizon. ``settings``: see
    :func:`~worldmodel.envs.dreams.open_dreams`.

    ``info`` has the start of the dream (``dream_episode``, ``dream_frame``: the last context frame), then the
    ``dream_end_probability`` of every step. All random numbers come from ``np_random``.

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
        self._spec: EnvSpec | None = None
        self._running: bool | None = None  # None before the first reset

    @property  # type: ignore[override]
    def spec(self) -> EnvSpec | None:
        """The registration in gymnasium, with the horizon as ``max_episode_steps``, which wrappers such as
        ``TimeAwareObservation`` read."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        limit = min(self._dreams.horizon, (spec and spec.max_episode_steps) or self._dreams.horizon)
        self._spec = spec and dataclasses.replace(spec, max_episode_steps=limit)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Begin a dream at a recorded frame drawn by ``np_random``."""
        super().reset(seed=seed)
        start = self._dreams.begin(ROW, [self.np_random])
        self._running = True
        return self._dreams.observe(self._kind)[0], {name: int(value[0]) for name, value in start.items()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, Info]:
        if not self._running:
            when = "before the first reset" if self._running is None else "after the end of the dream"
            raise EnvError(f"step {when}; call reset to begin one")
        result = self._dreams.step(ROW, self._dreams.action(action), [self.np_random])
        rewards, ends, terminated, truncated = (value.item() for value in result)
        self._running = not (terminated or truncated)
        return self._dreams.observe(self._kind)[0], rewards, terminated, truncated, {"dream_end_probability": ends}

    def render(self) -> Any:
        """The decoded frame, (H, W, 3) uint8."""
        if self.render_mode is None:
            return None
        if self._running is None:
            raise EnvError("render before the first reset; call reset to begin a dream")
        return self._dreams.render()[0]
