"""Imagination: seen frames and actions in, trajectories in code space out, decoded when their frames are first read."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from worldmodel import media
from worldmodel.errors import ConfigError
from worldmodel.heads import Randomness, Sampler, make_sampler
from worldmodel.nn.modules import Precision, cast, resolve_precision
from worldmodel.priors import Prior, PriorState, Step, select_rows
from worldmodel.runs.folder import load_spec
from worldmodel.runs.kind import Kind, check_kind
from worldmodel.runs.models import load_prior, load_tokenizer, resolve_device
from worldmodel.tokenizers import Tokenizer
from worldmodel.types import NO_ACTION, Spec
from worldmodel.util.files import expanded
from worldmodel.util.threads import FREE_CORES

Actions = Tensor | np.ndarray | Sequence[str] | Sequence[int]  # indices, or names of actions


@dataclasses.dataclass(frozen=True)
class Dream:
    """A batch of imagined trajectories. H is the horizon, T0 the number of seen frames."""

    spec: Spec
    seen: Tensor  # (B, T0, C, *size) uint8
    seen_actions: Tensor  # (B, T0) int64: the action that led to each seen frame; NO_ACTION at index 0 and if unknown
    actions: Tensor  # (B, H) int64: the action that led to each dreamt frame
    codes: Tensor  # (B, H, *grid) int64
    rewards: Tensor  # (B, H) float32, expected reward on arriving at each dreamt frame
    ends: Tensor  # (B, H) float32, probability that the frame is terminal
    passes: Tensor  # (H,) float32, passes of the prior's head per frame, mean over the batch
    tokenizer: Tokenizer = dataclasses.field(repr=False)

    @cached_property
    def frames(self) -> Tensor:
        """(B, H, C, *size) uint8; decoded at the first use."""
        return self.tokenizer.decode(self.codes.flatten(0, 1)).unflatten(0, self.codes.shape[:2])

    def mean_frames(self, samples: int) -> Tensor:
        """The mean (B // samples, H, C, *size) uint8 of the frames of every ``samples`` consecutive rows.

        For dreams from one start at temperature 1 it estimates the expected frames, whose squared error is the least:
        what the dreams have in common is sharp, what is uncertain is blurred. Raises :class:`ConfigError` for a number
        of rows that is no multiple of ``samples``.
        """
        if samples < 1 or len(self.codes) % samples:
            raise ConfigError(
                f"samples is {samples}; the number of dreams, {len(self.codes)}, must be a multiple of it"
            )
        return self.frames.unflatten(0, (-1, samples)).mean(1, dtype=torch.float32).round().to(torch.uint8)

    def save(self, path: str | Path, index: int = 0, labels: media.Labels = "arrows") -> Path:
        """Write one trajectory as .mp4, .gif or .png (a contact sheet), the seen frames in front.

        ``labels``: how the actions that led to the frames are shown, ``arrows``, ``names`` or ``none``. Raises
        :class:`ConfigError` for another suffix or kind of label.
        """
        actions = torch.cat([self.seen_actions[index], self.actions[index]])
        names = media.action_names(actions, self.spec.action_names)
        strip = media.dream_strip(self.seen[index], self.frames[index], names)
        return media.save(path, [strip], self.spec.rate, labels)


def without_first(actions: Tensor) -> Tensor:
    """Actions (B, T) with NO_ACTION at index 0: the action that led to the first frame that a model sees began at a
    frame that it does not see."""
    return torch.cat([torch.full_like(actions[:, :1], NO_ACTION), actions[:, 1:]], 1)


class WorldModel:
    """A trained tokenizer and prior, and the specification of what they were trained on."""

    def __init__(self, spec: Spec, tokenizer: Tokenizer, prior: Prior):
        self.spec, self.tokenizer, self.prior = spec, tokenizer.eval(), prior.eval()

    @property
    def device(self) -> torch.device:
        return next(self.prior.parameters()).device

    @classmethod
    def load(cls, run: str | Path, device: str = "auto", precision: Precision = "auto") -> Self:
        """The world model of a run's folder.

        ``precision``: of the decoder and of the trunk, ``fp32``, ``bf16`` or ``auto``: bfloat16 where the device
        computes in it. What decides on codes, encoder, quantiser and head, is always float32: where vectors of the
        codebook lie close together, rounding would give other codes than the prior was trained on.

        Raises :class:`RunError` when the run is missing, unfinished, damaged or of another kind, :class:`ConfigError`
        for an unknown device or precision.
        """
        folder = expanded(run)
        check_kind(folder, Kind.WORLD)
        where = resolve_device(device)
        tokenizer = load_tokenizer(folder, where)
        prior = load_prior(folder, tokenizer, where)
        assert isinstance(prior, Prior)  # over codes, since the tokenizer makes codes
        world = cls(load_spec(folder), tokenizer, prior)
        dtype = resolve_precision(precision, where)
        world.tokenizer.decode_in(dtype)
        cast(world.prior.trunk, dtype)
        return world

    def imagine(
        self,
        frames: Tensor,
        actions: Actions,
        *,
        seen_actions: Actions | None = None,
        samples: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        sampler: str | Sampler = "auto",
        generator: torch.Generator | None = None,
    ) -> Dream:
        """Dream on from seen frames under given actions.

        Args:
            frames: (T0, C, *size) or (B, T0, C, *size) uint8, the frames seen; the last is where the dream starts.
            actions: (H,) or (B, H) indices, or H names: the action that leads to each frame to be dreamt.
            seen_actions: (T0,) or (B, T0) indices, or T0 names: the action that led to each seen frame, NO_ACTION where
                it is unknown; all are unknown when not given. The first is not used: it led from an unseen frame.
            samples: number of dreams from each start, which are consecutive rows of the result.
            temperature, top_k: of the samples; temperature 0 takes the codes nearest to what is expected.
            sampler: ``auto``, ``ancestral``, ``predictive`` (the same samples at another speed) or a :class:`Sampler`.
            generator: of the noise; the same state gives the same dream.

        Raises:
            UnknownActionError: a name or an index that the environment does not have.
            ConfigError: no action at all, no sample, or shapes that do not fit the run's data.
        """
        seen = self._seen(frames)
        acts = self._actions(actions, len(seen))
        seen_acts = self._seen_actions(seen_actions, seen)
        if samples < 1:
            raise ConfigError(f"samples is {samples}; give at least 1")
        state = self.observe(seen, seen_acts)
        if samples > 1:
            rows = torch.arange(len(seen), device=self.device).repeat_interleave(samples)
            state, seen, seen_acts, acts = select_rows(state, rows), seen[rows], seen_acts[rows], acts[rows]
        steps = []
        how = sampler if isinstance(sampler, Sampler) else make_sampler(sampler, temperature, top_k)
        for action in acts.t().contiguous().unbind():  # rows that lie in order are copied together
            if self.device.type == "cpu":
                FREE_CORES.adjust()
            step, state = self.step(state, action, how, generator)
            steps.append(step)
        codes, rewards, ends = (torch.stack(part, 1) for part in list(zip(*steps, strict=True))[:3])
        passes = torch.stack([step.passes for step in steps])
        return Dream(self.spec, seen, seen_acts, acts, codes, rewards, ends, passes, self.tokenizer)

    @torch.no_grad()
    def observe(self, frames: Tensor, actions: Tensor) -> PriorState:
        """The state after frames (B, T0, C, *size) uint8 and the actions (B, T0) that led to them, the first unused."""
        codes = self.tokenizer.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        state = self.prior.begin(len(frames))
        for grids, action in zip(codes.unbind(1), without_first(actions).unbind(1), strict=True):
            state = self.prior.observe(state, grids, action)
        return state

    @torch.no_grad()
    def step(
        self, state: PriorState, actions: Tensor, sampler: Sampler, generator: Randomness = None
    ) -> tuple[Step, PriorState]:
        """Imagine one frame further under the actions (B,); ``generator``: one, or one for each row."""
        return self.prior.step(state, actions, sampler, generator)

    def _seen(self, frames: Tensor) -> Tensor:
        shape = self.spec.frame_shape
        batch = frames if frames.dim() == len(shape) + 2 else frames[None]
        if batch.dtype != torch.uint8 or tuple(batch.shape[2:]) != shape or batch.shape[1] < 1:
            reason = f"seen frames are {tuple(frames.shape)} {frames.dtype}"
            raise ConfigError(f"{reason}; this run takes (T0, {', '.join(map(str, shape))}) or a batch of them, uint8")
        return batch.to(self.device)

    def _actions(self, actions: Actions, batch: int) -> Tensor:
        acts = self._indices(actions)
        if (acts.dim() == 2 and acts.shape[0] != batch) or not 1 <= acts.dim() <= 2 or acts.shape[-1] < 1:
            shapes = f"(H,) or ({batch}, H) with a horizon H of at least 1"
            raise ConfigError(f"actions are {tuple(acts.shape)}; give {shapes}")
        return acts.expand(batch, -1)

    def _seen_actions(self, actions: Actions | None, seen: Tensor) -> Tensor:
        batch, count = seen.shape[:2]
        if actions is None:
            return torch.full((batch, count), NO_ACTION, dtype=torch.int64, device=self.device)
        acts = self._indices(actions, least=NO_ACTION)
        if acts.shape not in ((count,), (batch, count)):
            raise ConfigError(
                f"seen_actions are {tuple(acts.shape)}; give ({count},) or ({batch}, {count}), for each of the {count} "
                f"seen frames the action that led to it, {NO_ACTION} where it is unknown"
            )
        return without_first(acts.expand(batch, -1))

    def _indices(self, actions: Actions, least: int = 0) -> Tensor:
        """The indices of actions, of which the lowest is ``least``."""
        if not isinstance(actions, Tensor | np.ndarray):
            actions = [self.spec.action_index(a) if isinstance(a, str) else int(a) for a in actions]
        indices, names = torch.as_tensor(actions).to(self.device, torch.int64), self.spec.action_names
        wrong = indices[(indices < least) | (indices >= len(names))]
        if len(wrong):
            raise ConfigError(f"unknown action {int(wrong[0])}; choose 0 to {len(names) - 1} ({', '.join(names)})")
        return indices
