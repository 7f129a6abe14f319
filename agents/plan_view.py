"""Videos of plans: the imagined frames of a plan, or of all plans of an episode, next to the real frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldmodel import media
from worldmodel.agents.base import Plan
from worldmodel.errors import ConfigError
from worldmodel.types import Episode

Plans = Sequence[Plan | None]  # (T - 1,): the plan made at frames[t], or None

LAGS = (1, 4, 8)  # steps ahead
BLANK = 40  # intensity value of the frames for which no plan exists


def plan_strips(episode: Episode, plans: Plans, names: Sequence[str], step: int) -> list[media.Strip]:
    """The real frames after ``step`` and those that the plan made at this step imagined, cut to the shorter of the two.

    Raises :class:`ConfigError` if no plan was made at that step.
    """
    plan = plans[step] if 0 <= step < len(plans) else None
    if plan is None:
        steps = [number for number, plan in enumerate(plans) if plan is not None]
        hint = f"some of the steps {steps[0]} to {steps[-1]} have one" if steps else "this agent makes no plans"
        raise ConfigError(f"there is no plan at step {step}; {hint}")
    length = min(len(plan), episode.steps - step)
    seen, future = episode.frames[step : step + 1], slice(step + 1, step + length + 1)
    obtained, imagined = float(episode.rewards[future].sum()), float(plan.rewards[:length].sum())
    real = media.Strip(
        episode.frames[step : step + length + 1],
        f"real: reward {obtained:.2f}",
        (None, *media.action_names(episode.actions[future], names)),
        seen=1,
    )
    actions = (None, *media.action_names(plan.actions[:length], names))
    return [real, media.dream_strip(seen, plan.frames[:length], actions, f"imagined: reward {imagined:.2f}")]


def lagged_strips(
    episode: Episode, plans: Plans, names: Sequence[str], lags: Sequence[int] = LAGS
) -> list[media.Strip]:
    """The frames of an episode, and next to each the frames that were imagined for it 1, 4, … steps before.

    A repeated action has one plan, made at its first step. The imagined frames show the planned actions, which may
    differ from the actions taken later. They are grey where no plan reaches so far, and a lag that is longer than all
    plans is left out.
    """
    strips = [media.Strip(episode.frames, "real", media.action_names(episode.actions, names))]
    for lag in (lag for lag in lags if any(plan is not None and len(plan) >= lag for plan in plans)):
        frames = np.full_like(episode.frames, BLANK)
        actions: list[str | None] = [None] * len(frames)
        last, made_at = None, 0  # the current plan, and the step at which it was made
        for step, plan in enumerate(plans[: episode.steps - lag + 1]):
            last, made_at = (last, made_at) if plan is None else (plan, step)
            ahead = step + lag - made_at
            if last is not None and len(last) >= ahead:
                frames[step + lag] = last.decode(last.grids[ahead - 1 : ahead])[0]
                actions[step + lag] = media.action_names(last.actions[ahead - 1 : ahead], names)[0]
        strips.append(media.Strip(frames, f"imagined {lag} before", tuple(actions), dreamt=True))
    return strips


def save_plan(
    path: str | Path, episode: Episode, plans: Plans, names: Sequence[str], rate: float, step: int | None = None
) -> Path:
    """Write the plan made at ``step`` next to the real frames, or without a step the plans of the whole episode.

    ``.mp4`` and ``.gif`` play at ``rate`` frames per second, ``.png`` is a contact sheet. Raises the errors of
    :func:`plan_strips` and :func:`worldmodel.media.save`.
    """
    strips = lagged_strips(episode, plans, names) if step is None else plan_strips(episode, plans, names, step)
    plan = None if step is None else plans[step]
    title = "" if plan is None else f"step {step}, return expected {plan.value:.2f}"
    return media.save(path, strips, rate, title=title)
