"""What an agent imagined beside what came: one plan as it went on, or a whole episode as it was foreseen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from worldmodel.agents.base import Plan

from worldmodel import media
from worldmodel.errors import ConfigError
from worldmodel.types import Episode

Plans = Sequence[Plan | None]  # (T - 1,): what was imagined at frames[t]; None where nothing was

LAGS = (1, 4, 8)  # steps ahead
NOTHING = 40  # level of grey where nothing was imagined


def plan_strips(episode: Episode, plans: Plans, names: Sequence[str], step: int) -> list[media.Strip]:
    """What came after the frame at ``step``, and beside it what the agent had imagined there; as long as both are.

    Raises :class:`ConfigError` when nothing was imagined at that step.
    """
    plan = plans[step] if 0 <= step < len(plans) else None
    if plan is None:
        known = [number for number, one in enumerate(plans) if one is not None]
        some = f"one of {known[0]} to {known[-1]} has one" if known else "this agent makes none"
        raise ConfigError(f"there is no plan at step {step}; {some}")
    length = min(len(plan), episode.steps - step)
    seen, came = episode.frames[step : step + 1], slice(step + 1, step + length + 1)
    earned, hoped = float(episode.rewards[came].sum()), float(plan.rewards[:length].sum())
    real = media.Strip(
        episode.frames[step : step + length + 1],
        f"came: reward {earned:.2f}",
        (None, *media.action_names(episode.actions[came], names)),
        seen=1,
    )
    actions = (None, *media.action_names(plan.actions[:length], names))
    return [real, media.dream_strip(seen, plan.frames[:length], actions, f"imagined: reward {hoped:.2f}")]


def foresight_strips(
    episode: Episode, plans: Plans, names: Sequence[str], lags: Sequence[int] = LAGS
) -> list[media.Strip]:
    """The frames of an episode, and beside each what had been imagined for that moment 1, 4, … steps before.

    Of a decision that is held for some steps there is one plan, made at its first: it stands for the others too. A plan
    is of the actions that the agent meant to take then; where it took others, the frames show what these would have
    come to. Grey: nothing was imagined so far ahead. How many steps no plan reaches is left out.
    """
    strips = [media.Strip(episode.frames, "came", media.action_names(episode.actions, names))]
    for lag in (lag for lag in lags if any(plan is not None and len(plan) >= lag for plan in plans)):
        frames = np.full_like(episode.frames, NOTHING)
        meant: list[str | None] = [None] * len(frames)
        last, made = None, 0  # the plan that is followed, and the step at which it was made
        for step, plan in enumerate(plans[: episode.steps - lag + 1]):
            last, made = (last, made) if plan is None else (plan, step)
            ahead = step + lag - made
            if last is not None and len(last) >= ahead:
                frames[step + lag] = last.draw(last.grids[ahead - 1 : ahead])[0]
                meant[step + lag] = media.action_names(last.actions[ahead - 1 : ahead], names)[0]
        strips.append(media.Strip(frames, f"imagined {lag} before", tuple(meant), dreamt=True))
    return strips


def save_plan(
    path: str | Path, episode: Episode, plans: Plans, names: Sequence[str], rate: float, step: int | None = None
) -> Path:
    """Write the plan made at ``step`` beside what came, or without a step the whole episode as it was foreseen.

    ``.mp4`` and ``.gif`` move at ``rate`` frames a second, ``.png`` is a contact sheet. Raises as
    :func:`plan_strips` and :func:`worldmodel.media.save` do.
    """
    strips = foresight_strips(episode, plans, names) if step is None else plan_strips(episode, plans, names, step)
    plan = None if step is None else plans[step]
    title = "" if plan is None else f"step {step}, return expected {plan.value:.2f}"
    return media.save(path, strips, rate, title=title)
