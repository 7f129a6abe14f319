"""Many dreams of a run as one gymnasium vector environment, stepped in one pass through the prior."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from worldmodel.envs.dreams import open_dreams
from worldmodel.errors import EnvError
from worldmodel.types import Info


class DreamVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """``num_envs`` dreams: ``gymnasium.make_vec("worldmodel/Dream-v0", num_envs=64, run=…)``.

    Every row has its own generator: row i with seed s equals :class:`worldmodel.envs.dreams.DreamEnv` with seed s + i,
    up to rounding.

    ``autoreset_mode`` is one of gymnasium's: ``NextStep`` (ended rows restart in the next step, whose action is
    ignored), ``SameStep`` (ended rows restart at once; their last results are in ``final_obs`` and ``final_info``),
    ``Disabled`` (``reset(options={"reset_mask": …})`` restarts rows). Everything else is as in
    :class:`worldmodel.envs.dreams.DreamEnv`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        run: str | Path | None = None,
        num_envs: int = 1,
        observations: str = "pixels",
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **settings: Any,
    ):
        try:
            self._mode = AutoresetMode(autoreset_mode)
        except ValueError as error:
            modes = ", ".join(mode.value for mode in AutoresetMode)
            raise EnvError(f"unknown autoreset_mode {autoreset_mode!r}; choose {modes}") from error
        self._dreams = open_dreams(run, num_envs, **settings)
        self.num_envs, self._kind, self.render_mode = num_envs, observations, render_mode
        self.metadata = {**type(self).metadata, **self._dreams.metadata, "autoreset_mode": self._mode}
        self.single_observation_space = self._dreams.observation_space(observations)
        self.single_action_space = self._dreams.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rngs: list[np.random.Generator] = []
        self._seeds: list[int] = []
        self._done: np.ndarray | None = None  # (B,) bool: ended rows; None before the first reset

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generators of the rows."""
        self._seed(None)
        return tuple(self._rngs)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seeds of the rows."""
        self._seed(None)
        return tuple(self._seeds)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Info | None = None
    ) -> tuple[np.ndarray, Info]:
        """Start all rows or those of ``options["reset_mask"]``, (num_envs,) bool. With seed s, row i has s + i."""
        if options is not None and not isinstance(options, Mapping):
            raise EnvError(f"options are {options!r:.60}; give a dict, such as {{'reset_mask': …}}, or None")
        mask = self._mask((options or {}).get("reset_mask"))
        self._seed(seed, mask)
        infos: Info = {}
        self._begin(mask, infos)
        self._done = np.zeros(self.num_envs, bool) if self._done is None else self._done & ~mask
        return self._dreams.observe(self._kind), infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Info]:
        """Step all rows under actions (num_envs,)."""
        if self._done is None:
            raise EnvError("step before the first reset; call reset to begin the dreams")
        if self._mode is AutoresetMode.DISABLED and self._done.any():
            over = ", ".join(map(str, np.flatnonzero(self._done)))
            raise EnvError(f"step after the end of the dreams {over}; reset them with options={{'reset_mask': …}}")
        acts, ended = self._dreams.action(actions), self._done  # only in NextStep can dreams have ended here
        infos: Info = {}
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        rows = np.flatnonzero(~ended)
        if len(rows):
            result = self._dreams.step(rows, acts[rows], [self._rngs[row] for row in rows])
            rewards[rows], terminated[rows], truncated[rows] = result.rewards, result.terminated, result.truncated
            _add_infos(infos, {"dream_end_probability": result.ends}, rows, self.num_envs)
        if ended.any():
            self._begin(ended, infos)
        self._done = terminated | truncated
        seen = self._dreams.observe(self._kind)
        if self._mode is AutoresetMode.SAME_STEP and self._done.any():
            infos = self._restart_ended(self._done, seen, infos)
            self._done = np.zeros(self.num_envs, bool)
        return seen, rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...] | None:
        """The decoded frame of every row, each (H, W, 3) uint8."""
        if self.render_mode is None:
            return None
        if self._done is None:
            raise EnvError("render before the first reset; call reset to begin the dreams")
        return tuple(self._dreams.render())

    def _begin(self, mask: np.ndarray, infos: Info) -> None:
        rows = np.flatnonzero(mask)
        _add_infos(infos, self._dreams.begin(rows, [self._rngs[row] for row in rows]), rows, self.num_envs)

    def _restart_ended(self, done: np.ndarray, seen: np.ndarray, infos: Info) -> Info:
        """Restart the rows that have just ended, in ``seen`` in place; their last results go into the infos."""
        final = np.full(self.num_envs, None, object)
        for row in np.flatnonzero(done):
            final[row] = seen[row].copy()
        new_infos: Info = {"final_obs": final, "_final_obs": done.copy()}
        new_infos["final_info"], new_infos["_final_info"] = _infos_of(infos, done), done.copy()
        new_infos |= _infos_of(infos, ~done)
        self._begin(done, new_infos)
        seen[done] = self._dreams.observe(self._kind, np.flatnonzero(done))
        return new_infos

    def _mask(self, given: Any) -> np.ndarray:
        if given is None:
            return np.ones(self.num_envs, bool)
        if not isinstance(given, np.ndarray) or given.dtype != bool or given.shape != (self.num_envs,):
            raise EnvError(f"reset_mask is {given!r:.60}; give a numpy array of ({self.num_envs},) bool")
        if not given.any() or (self._done is None and not given.all()):
            raise EnvError("reset_mask selects no row; choose one" if not given.any() else
                           "reset_mask leaves out rows that were never reset; reset all of them first")  # fmt: skip
        return given.copy()

    def _seed(self, seed: int | Sequence[int | None] | None, mask: np.ndarray | None = None) -> None:
        """New generators for the rows with a seed, and initially for all rows."""
        count = self.num_envs
        if seed is None or isinstance(seed, int | np.integer):
            seeds: Sequence[int | None] = [None if seed is None else int(seed) + row for row in range(count)]
        elif isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
            seeds = seed
        else:
            raise EnvError(f"seed is {seed!r:.60}; give a whole number, a list of {count} of them, or None")
        if len(seeds) != count:
            raise EnvError(f"{len(seeds)} seeds for num_envs={count}; give one per environment, or one number")
        if not self._rngs:
            seeded = [seeding.np_random() for _ in range(count)]
            self._rngs, self._seeds = [rng for rng, _ in seeded], [number for _, number in seeded]
        for row, one in enumerate(seeds):
            if one is not None and (mask is None or mask[row]):
                self._rngs[row], self._seeds[row] = seeding.np_random(one)


def _add_infos(infos: Info, values: Mapping[str, np.ndarray], rows: np.ndarray, count: int) -> None:
    """Add values (n,) of some rows in gymnasium's format: zeros elsewhere, and a mask of the rows as ``_name``."""
    for name, value in values.items():
        infos[name], infos[f"_{name}"] = np.zeros(count, value.dtype), np.zeros(count, bool)
        infos[name][rows], infos[f"_{name}"][rows] = value, True


def _infos_of(infos: Info, rows: np.ndarray) -> Info:
    """The infos of the rows (B,) bool only, without names that none of them has."""
    new_infos: Info = {}
    for name, value in infos.items():
        if not name.startswith("_") and (present := infos[f"_{name}"] & rows).any():
            new_infos[name], new_infos[f"_{name}"] = np.where(present, value, 0).astype(value.dtype), present
    return new_infos
