"""Explorers that reach more of an environment than uniform random actions do.

Uniform actions in first person turn back and forth on the spot or push against a wall. :class:`StickyExplorer` repeats
every action for a run of steps and turns away when it walks but the frame does not change. :class:`ScriptExplorer`
walks freely and then plays a script.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from annotated_types import Len

from worldmodel.agents.base import Agent
from worldmodel.config.checks import checked
from worldmodel.dreaming.actions import parse_script
from worldmodel.errors import ConfigError, UnknownActionError
from worldmodel.util.ranges import Count, NonNegative, Share, Text, Weights, Whole

Run = Annotated[Sequence[Count], Len(2, 2)]  # the shortest and the longest run of an action, in steps


class UniformExplorer(Agent):
    """Every action with the same probability at every step."""

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        self._count = len(action_names)
        self._rng = rng

    def act(self, frame: np.ndarray) -> int:
        return int(self._rng.integers(self._count))


class StickyExplorer(Agent):
    """Runs of weighted actions; turns away from walls if the environment has the actions for it.

    ``weights`` are the relative probabilities of starting a run of an action, ``runs`` its (shortest, longest) length
    in steps, both by action name. Names that the environment lacks are ignored; unnamed actions get the defaults.
    Instead of walking into a wall it takes a run of ``turn_away`` steps of one of ``turns``, and keeps to that side
    until it walks freely again. A wall is detected if a step of ``walk`` changed the frame by less than
    ``min_frame_change`` (mean of absolute differences of intensity values, 0 to 255), or if the contrast is below
    ``low_contrast`` (standard deviation over the means of 8 × 8 patches, the largest of all channels). After
    ``patience`` runs away from frames of low contrast it walks until the contrast is higher again, so that it also
    moves in a world where the contrast is low everywhere.

    With probability ``random_action_probability`` a sequence of single, equally probable actions takes the place of a
    run; ``random_action_run`` is its (shortest, longest) length. Planners and learning agents try such sequences, so
    the model must be trained on them: in many environments the body keeps moving for some steps under any action.

    With probability ``loop_probability`` one of ``loops`` takes the place of a run, each equally often: a script that
    returns to where it began, such as ``left*24`` (a full turn in steps of 15°). A loop is played to its end, also at a
    wall. Loops with a name that the environment lacks are left out.
    """

    @checked
    def __init__(
        self,
        weights: Weights | None = None,
        runs: Mapping[str, Run] | None = None,
        default_weight: NonNegative = 1.0,
        default_run: Run = (1, 4),
        walk: str = "forward",
        turns: Sequence[str] = ("left", "right"),
        turn_away: Run = (3, 8),
        min_frame_change: NonNegative = 2.0,
        low_contrast: NonNegative = 0.0,
        patience: Whole = 3,
        random_action_probability: Share = 0.0,
        random_action_run: Run = (4, 12),
        loops: Sequence[Text] = (),
        loop_probability: Share = 0.0,
    ):
        self.weights = dict(weights or {})
        self.runs = {name: _checked(name, run) for name, run in (runs or {}).items()}
        self.default_weight = default_weight
        self.default_run = _checked("default_run", default_run)
        self.walk = walk
        self.turns = tuple(turns)
        self.turn_away = _checked("turn_away", turn_away)
        self.min_frame_change, self.low_contrast, self.patience = min_frame_change, low_contrast, patience
        self.random_action_probability = random_action_probability
        self.random_action_run = _checked("random_action_run", random_action_run)
        self.loops, self.loop_probability = tuple(loops), loop_probability

    def check(self, action_names: Sequence[str]) -> None:
        self._possible_loops([name.lower() for name in action_names])

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        names = [name.lower() for name in action_names]
        probabilities = np.array([self.weights.get(name, self.default_weight) for name in names], np.float64)
        if probabilities.sum() <= 0:
            raise ConfigError(f"no action of {', '.join(action_names)} has a weight above 0")
        self._possible = np.flatnonzero(probabilities).tolist()
        self._probabilities = probabilities / probabilities.sum()
        self._cumulative = np.cumsum(self._probabilities)  # as in Generator.choice, without its checks
        self._cumulative /= self._cumulative[-1]
        self._run = [self.runs.get(name, self.default_run) for name in names]
        self._walk = names.index(self.walk) if self.walk in names else None
        self._turns = [names.index(name) for name in self.turns if name in names]
        self._loops = self._possible_loops(names)
        self._loop: list[int] = []  # remaining actions of a loop
        self._rng = rng
        self._action = -1
        self._left = 0  # remaining steps of the run
        self._single = 0  # remaining actions of a sequence of single actions
        self._side: int | None = None  # the turning direction at the current wall
        self._turned = 0  # runs of turning away from low contrast since the last frame of higher contrast
        self._last_frame: np.ndarray | None = None

    def act(self, frame: np.ndarray) -> int:
        if self._loop or self._start_loop():
            self._action, self._last_frame = self._loop.pop(0), frame
            return self._action
        walked = self._action == self._walk
        if not self._left:
            self._choose()
        if self._action == self._walk and self._turns:
            stuck = walked and self._last_frame is not None and self._difference(frame) < self.min_frame_change
            low_contrast = self._has_low_contrast(frame)
            if stuck or (low_contrast and self._turned < self.patience):
                self._turned += low_contrast
                self._side = self._side if self._side is not None else int(self._rng.choice(self._turns))
                self._begin_run(self._side, self.turn_away)
            elif not low_contrast:
                self._turned = 0
                self._side = None if walked else self._side
        self._left -= 1
        self._last_frame = frame
        return self._action

    def _possible_loops(self, names: Sequence[str]) -> list[list[int]]:
        """The actions of each loop all of whose actions are among these. Raises :class:`ConfigError`."""
        found = []
        for script in self.loops:
            try:
                found.append(parse_script(script, names).play().tolist())
            except UnknownActionError:
                continue
            except ConfigError as error:
                raise ConfigError(f"explorer.loops has {script!r}: {error}") from error
        return found

    def _start_loop(self) -> bool:
        """At the end of a run, maybe choose a loop; returns whether there is one."""
        possible = self._loops and self.loop_probability and not self._left and not self._single
        if possible and self._rng.random() < self.loop_probability:
            self._loop = list(self._loops[self._rng.integers(len(self._loops))])
        return bool(self._loop)

    def _choose(self) -> None:
        if not self._single and self._rng.random() < self.random_action_probability:
            self._single = self._length(self.random_action_run)
        if self._single:
            self._single -= 1
            self._begin_run(self._possible[self._rng.integers(len(self._possible))], (1, 1))
        else:
            action = int(self._cumulative.searchsorted(self._rng.random(), side="right"))
            self._begin_run(action, self._run[action])

    def _begin_run(self, action: int, run: Sequence[int]) -> None:
        self._action = action
        self._left = self._length(run)

    def _length(self, run: Sequence[int]) -> int:
        return int(self._rng.integers(run[0], run[1] + 1))

    def _difference(self, frame: np.ndarray) -> float:
        # Every other pixel suffices to detect a wall, and the explorer must be cheaper than the simulator.
        assert self._last_frame is not None
        difference = np.maximum(frame, self._last_frame)
        difference -= np.minimum(frame, self._last_frame)
        some = difference[..., ::2]
        return int(some.sum(dtype=np.int64)) / some.size

    def _has_low_contrast(self, frame: np.ndarray) -> bool:
        if self.low_contrast == 0:
            return False
        height, width = (size - size % 8 for size in frame.shape[-2:])
        rows = frame[..., :height, :width].reshape(len(frame), height // 8, 8, width).sum(2, dtype=np.uint16)
        sums = rows.reshape(len(frame), -1, 8).sum(2, dtype=np.int64)  # in two passes, along the memory
        count = sums.shape[1]
        spread = count * (sums * sums).sum(1) - sums.sum(1) ** 2  # the variance of the means, times (64 count)²
        return int(spread.max()) < (64 * count * self.low_contrast) ** 2


class ScriptExplorer(Agent):
    """Walks freely, stands still, plays a script, and ends the episode.

    ``inner`` chooses the first ``walk`` actions; the action noop fills the next ``still`` steps, if the environment has
    it; then follow the actions of ``script``, in the syntax of ``dream --actions``. An episode has exactly these steps,
    unless the environment ends it earlier. Where nobody asks whether it is :attr:`finished`, it starts again with the
    free walk.
    """

    @checked
    def __init__(self, script: Text, inner: Agent, walk: Whole = 24, still: Whole = 4):
        self.script, self.inner, self.walk, self.still = script, inner, walk, still

    def check(self, action_names: Sequence[str]) -> None:
        self.inner.check(action_names)
        self._actions(action_names)

    def begin(self, action_names: Sequence[str], rng: np.random.Generator) -> None:
        still = [index for index, name in enumerate(action_names) if name.lower() == "noop"][:1] * self.still
        self._planned: list[int] = [*still, *self._actions(action_names)]  # after the free walk
        self._steps = 0
        self.inner.begin(action_names, rng)

    def _actions(self, action_names: Sequence[str]) -> list[int]:
        """The actions of the script. Raises :class:`ConfigError`."""
        try:
            return parse_script(self.script, action_names).play().tolist()
        except (ConfigError, UnknownActionError) as error:
            raise ConfigError(f"explorer.script is {self.script!r}: {error}") from error

    def act(self, frame: np.ndarray) -> int:
        step = self._steps % (self.walk + len(self._planned))
        self._steps += 1
        return self.inner.act(frame) if step < self.walk else self._planned[step - self.walk]

    @property
    def finished(self) -> bool:
        return self._steps >= self.walk + len(self._planned)


def _checked(name: str, run: Sequence[int]) -> tuple[int, int]:
    """A (shortest, longest) pair. Raises :class:`ConfigError` naming the setting."""
    if run[0] > run[1]:
        raise ConfigError(f"the run of {name} must be [shortest, longest]; got {list(run)}")
    return int(run[0]), int(run[1])
