"""What the evaluation of an agent shows: lines of a table, a page of plots, videos of what it did and dreamt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from worldmodel.agents.plan_view import save_plan
from worldmodel.agents.playing import Played
from worldmodel.agents.returns import reach

from worldmodel import media
from worldmodel.evaluation.report import number
from worldmodel.media import plots
from worldmodel.types import Episode, Spec
from worldmodel.world import WorldModel

LONGEST = 400  # frames of a video
LONGEST_GIF = 100  # of a video that is written as a gif, too
CORRELATIONS = {
    "all": "rank correlation of {} stretches",
    "first": "  {} from the first frame on",
    "full_length": "  {} of full length",
}


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines for :func:`worldmodel.evaluation.report.table`."""
    told = [
        (f"{len(found['episodes'])} episodes, {found['steps']:,} steps, seed {found['seed']}", ""),
        ("return, mean", number(found["return"])),
        ("return, interquartile mean", number(found["return_iqm"])),
        ("length", number(found["length"], 1)),
        ("success", f"{number(found['success'])}  ({found['success_rule']})"),
        ("decision", f"{1000 * found['seconds_a_decision']:.1f} ms"),
    ]
    if dream := found.get("dream"):
        told.append((f"Return dreamt against return obtained, up to {dream['horizon']} steps", ""))
        for name, label in CORRELATIONS.items():
            rho = dream[name]["rank_correlation"]
            told.append((label.format(dream[name]["windows"]), "nothing to rank" if rho is None else number(rho)))
    return told


def save_plots(path: Path, found: dict[str, Any]) -> Path:
    """Returns and lengths of the episodes; with a world model, return dreamt against obtained."""
    returns, lengths = (np.array([episode[key] for episode in found["episodes"]]) for key in ("return", "length"))
    shares = (np.arange(len(returns)) + 0.5) / len(returns)
    panels = [
        plots.Panel(
            "return of an episode",
            {"episodes": plots.Line(np.sort(returns), shares, points=True)},
            "return",
            "share of episodes below",
        ),
        plots.Panel(
            "return and length",
            {"episodes": plots.Line(lengths, returns, points=True, colour=plots.COLOURS[2])},
            "steps",
            "return",
        ),
    ]
    if dream := found.get("dream"):
        rho = dream["all"]["rank_correlation"]
        title = "return dreamt, return obtained" + ("" if rho is None else f": ρ = {rho['value']:.2f}")
        x, y = dream["pairs"]["obtained"], dream["pairs"]["dreamt"]
        ends = [min(*x, *y), max(*x, *y)]
        cloud = {
            "stretches of episodes": plots.Line(x, y, points=True, colour=plots.COLOURS[5]),
            "equal": plots.Line(ends, ends, dashed=True, colour=plots.GREY),
        }
        panels.append(plots.Panel(title, cloud, "obtained", "dreamt"))
    return plots.save_panels(path, panels, title=f"{found['agent']} · {found['env']}")


def save_episodes(path: Path, played: Sequence[Played], spec: Spec) -> Path:
    """A video of episodes side by side."""
    length = min(LONGEST, max(len(one.episode.frames) for one in played))
    return media.save(path, [_real(one.episode, spec, length) for one in played], spec.rate)


def save_plans(path: Path, played: Played, world: WorldModel) -> Path:
    """A video of an episode whose plans are told, and beside each frame what was imagined for it before."""

    def draw(grids: np.ndarray) -> np.ndarray:
        return world.tokenizer.decode(torch.from_numpy(grids).to(world.device)).cpu().numpy()

    plans = [plan and dataclasses.replace(plan, draw=draw) for plan in played.plans]
    return save_plan(path, played.episode, plans, world.spec.action_names, world.spec.rate)


def save_dreams(path: Path, played: Sequence[Played], world: WorldModel, seed: int, temperature: float) -> Path:
    """A video of episodes, and below each the dream of it: from its first frames, under the actions really taken.

    Of episodes that are not long also a gif, for pages and mails. Dreamt returns are counted as
    :func:`worldmodel.agents.foresight.foresee` does, from the same frame as those of the episode beside.
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
        dream = world.imagine(
            frames[:context],
            actions[context:],
            seen_actions=actions[:context],
            temperature=temperature,
            generator=torch.Generator().manual_seed(seed),
        )
        names = media.action_names(actions, spec.action_names)
        both = np.concatenate([frames[:context].numpy(), dream.frames[0].cpu().numpy()])
        behind = episode.rewards[context:length].sum()
        above.append(_strip(frames.numpy(), f"real · return {behind:.4g}", names, length, context))
        earned = float((reach(1 - dream.ends) * dream.rewards).sum())
        below.append(_strip(both, f"dream · return {earned:.4g}", names, length, context, True))
    path.with_suffix(".gif").unlink(missing_ok=True)
    if length <= LONGEST_GIF:
        media.save(path.with_suffix(".gif"), [*above, *below], spec.rate, across=len(above))
    return media.save(path, [*above, *below], spec.rate, across=len(above))


def _real(episode: Episode, spec: Spec, length: int) -> media.Strip:
    names = media.action_names(episode.actions, spec.action_names)
    how = "ended" if episode.terminated else "cut"
    caption = f"return {episode.rewards.sum():.4g} · {episode.steps} steps, {how}"
    return _strip(episode.frames, caption, names, length)


def _strip(
    frames: np.ndarray, caption: str, names: Sequence[str | None], length: int, seen: int = 0, dreamt: bool = False
) -> media.Strip:
    """Frames and the actions that led to them, cut to ``length`` or standing still at the end until then."""
    frames, names = frames[:length], names[:length]
    still = length - len(frames)
    frames = np.concatenate([frames, np.repeat(frames[-1:], still, 0)])
    return media.Strip(frames, caption, (*names, *[None] * still), seen, dreamt)
