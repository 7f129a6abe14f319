"""Output of an agent's evaluation: rows of a table, plots, and videos of episodes, dreams and plans."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel import media
from worldmodel.agents.actor_critic import reach
from worldmodel.agents.base import Plan
from worldmodel.agents.planner import PlanningModel
from worldmodel.errors import ConfigError
from worldmodel.evaluation.report import number
from worldmodel.media import plots
from worldmodel.recording.recorder import Recording
from worldmodel.types import Episode, Spec
from worldmodel.world import WorldModel

LONGEST = 400  # frames of a video
LONGEST_GIF = 100  # frames of a video that is also written as a GIF
CORRELATIONS = {
    "all": "rank correlation of {} windows",
    "first": "  {} from the first frame",
    "full_length": "  {} of full length",
}


def lines(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows for :func:`worldmodel.evaluation.report.table`."""
    rows = [
        (f"{len(metrics['episodes'])} episodes, {metrics['steps']:,} steps, seed {metrics['seed']}", ""),
        ("return, mean", number(metrics["return"])),
        ("return, interquartile mean", number(metrics["return_iqm"])),
        ("length", number(metrics["length"], 1)),
        ("success", f"{number(metrics['success'])}  ({metrics['success_rule']})"),
        ("decision", f"{1000 * metrics['seconds_a_decision']:.1f} ms"),
    ]
    if dream := metrics.get("dream"):
        rows.append((f"Dreamt return against obtained return, up to {dream['horizon']} steps", ""))
        for name, label in CORRELATIONS.items():
            rho = dream[name]["rank_correlation"]
            rows.append((label.format(dream[name]["windows"]), "all values equal" if rho is None else number(rho)))
    return rows


def save_plots(path: Path, metrics: dict[str, Any]) -> Path:
    """Plot returns and lengths of the episodes and, with a world model, dreamt against obtained returns."""
    returns, lengths = (np.array([episode[key] for episode in metrics["episodes"]]) for key in ("return", "length"))
    shares = (np.arange(len(returns)) + 0.5) / len(returns)
    sorted_returns = {"episodes": plots.Line(np.sort(returns), shares, points=True)}
    by_length = {"episodes": plots.Line(lengths, returns, points=True, colour=plots.COLOURS[2])}
    panels = [
        plots.Panel("return of an episode", sorted_returns, "return", "share of episodes below"),
        plots.Panel("return and length", by_length, "steps", "return"),
    ]
    if dream := metrics.get("dream"):
        rho = dream["all"]["rank_correlation"]
        title = "dreamt and obtained return" + ("" if rho is None else f": ρ = {rho['value']:.2f}")
        x, y = dream["pairs"]["obtained"], dream["pairs"]["dreamt"]
        ends = [min(*x, *y), max(*x, *y)]
        equal = plots.Line(ends, ends, dashed=True, colour=plots.GREY)
        cloud = {"windows of episodes": plots.Line(x, y, points=True, colour=plots.COLOURS[5]), "equal": equal}
        panels.append(plots.Panel(title, cloud, "obtained", "dreamt"))
    return plots.save_panels(path, panels, title=f"{metrics['agent']} · {metrics['env']}")


def plot_returns(folder: Path, curve: Sequence[tuple[int, float]]) -> None:
    """Plot (steps of the training so far, return of the episode that ended there) as ``returns.png``."""
    steps, returns = zip(*curve, strict=True)
    panel = plots.Panel("return of training episodes", {"return": plots.Line(steps, returns, noisy=True)}, "steps")
    plots.save_panels(folder / "returns.png", [panel], title=folder.name)


def save_episodes(path: Path, played: Sequence[Recording], spec: Spec) -> Path:
    """Write a video of episodes side by side."""
    length = min(LONGEST, max(len(one.episode.frames) for one in played))
    return media.save(path, [_real(one.episode, spec, length) for one in played], spec.rate)


def save_plans(path: Path, played: Recording, world: WorldModel) -> Path:
    """Write a video of an episode with recorded plans, and next to each frame those imagined for it before."""
    decode = PlanningModel(world).decode
    plans = [plan and dataclasses.replace(plan, decode=decode) for plan in played.plans]
    return save_plan(path, played.episode, plans, world.spec.action_names, world.spec.rate)


def save_dreams(path: Path, played: Sequence[Recording], world: WorldModel, seed: int, temperature: float) -> Path:
    """Write a video of episodes, and below each its dream from the first frames under the recorded actions.

    Short videos are also written as a GIF. Dreamt returns are computed as in
    :func:`worldmodel.agents.dreamt_returns.dream_returns`, real ones from the same frame on.
    """
    spec = world.spec
    context = max(1, world.prior.context)
    kept = [one.episode for one in played if one.episode.steps >= context]
    if not kept:
        context, kept = 1, [one.episode for one in played]
    length = min(LONGEST, max(len(episode.frames) for episode in kept))
    above, below = [], []
    for episode in kept:
        frames, actions = (torch.tensor(part[:length]) for part in (episode.frames, episode.actions))
        known, future = actions[:context], actions[context:]
        noise = torch.Generator().manual_seed(seed)
        dream = world.imagine(frames[:context], future, seen_actions=known, temperature=temperature, generator=noise)
        names = media.action_names(actions, spec.action_names)
        both = np.concatenate([frames[:context].numpy(), dream.frames[0].cpu().numpy()])
        obtained = episode.rewards[context:length].sum()
        above.append(_strip(frames.numpy(), f"real · return {obtained:.4g}", names, length, context))
        dreamt = float((reach(1 - dream.ends) * dream.rewards).sum())
        below.append(_strip(both, f"dream · return {dreamt:.4g}", names, length, context, True))
    path.with_suffix(".gif").unlink(missing_ok=True)
    if length <= LONGEST_GIF:
        media.save(path.with_suffix(".gif"), [*above, *below], spec.rate, across=len(above))
    return media.save(path, [*above, *below], spec.rate, across=len(above))


def _real(episode: Episode, spec: Spec, length: int) -> media.Strip:
    names = media.action_names(episode.actions, spec.action_names)
    how = "terminated" if episode.terminated else "truncated"
    caption = f"return {episode.rewards.sum():.4g} · {episode.steps} steps, {how}"
    return _strip(episode.frames, caption, names, length)


def _strip(
    frames: np.ndarray, caption: str, names: Sequence[str | None], length: int, seen: int = 0, dreamt: bool = False
) -> media.Strip:
    """Frames and the actions that led to them, cut to ``length`` or padded with the last frame."""
    frames, names = frames[:length], names[:length]
    missing = length - len(frames)
    frames = np.concatenate([frames, np.repeat(frames[-1:], missing, 0)])
    return media.Strip(frames, caption, (*names, *[None] * missing), seen, dreamt)


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
    frames, taken = episode.frames[step : step + length + 1], media.action_names(episode.actions[future], names)
    real = media.Strip(frames, f"real: reward {obtained:.2f}", (None, *taken), seen=1)
    actions = (None, *media.action_names(plan.actions[:length], names))
    return [real, media.dream_strip(seen, plan.frames[:length], actions, f"imagined: reward {imagined:.2f}")]


def lagged_strips(
    episode: Episode, plans: Plans, names: Sequence[str], lags: Sequence[int] = LAGS
) -> list[media.Strip]:
    """The frames of an episode, and next to each the frames that were imagined for it 1, 4, … steps before.

    A repeated action has one plan, made at its first step. The imagined frames show the planned actions, which may
    differ from the actions taken later. They are grey where no plan reaches so far, and a lag that is longer than all
    plans or than the episode is left out.
    """
    strips = [media.Strip(episode.frames, "real", media.action_names(episode.actions, names))]
    longest = min(episode.steps, max((len(plan) for plan in plans if plan is not None), default=0))
    for lag in (lag for lag in lags if lag <= longest):
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
