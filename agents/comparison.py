"""Evaluations of agents side by side, the seeds of an agent taken together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from worldmodel.agents.run import RETURNS
from worldmodel.agents.statistics import apart, interquartile_mean, probability_of_improvement, stratified

from worldmodel.errors import RunError
from worldmodel.evaluation.metrics import Interval
from worldmodel.evaluation.report import number
from worldmodel.media import plots
from worldmodel.training.hooks import read_json_lines

# name → title, what it is of, statistic of the pooled values
MEASURES: dict[str, tuple[str, str, Callable[..., float]]] = {
    "return_iqm": ("return, interquartile mean", "return", interquartile_mean),
    "return": ("return, mean", "return", np.mean),
    "success": ("success", "success", np.mean),
}
LATELY = 20  # episodes that a return while learning is the mean of
POINTS = 100  # of a curve
Found = dict[str, list[dict[str, Any]]]  # agent → what metrics.json holds, for each of its seeds


def read(paths: Sequence[Path]) -> Found:
    """Evaluations by agent, in the order of the files; a folder stands for the metrics.json in it.

    Raises :class:`RunError` for a file that is none, that is given twice, or that is of another environment.
    """
    agents: Found = {}
    place: tuple[Any, ...] | None = None
    files = [path / "metrics.json" if path.is_dir() else path for path in paths]
    if twice := [path for path, other in itertools.combinations(files, 2) if path.resolve() == other.resolve()]:
        raise RunError(f"{twice[0]} is given twice; every file is another seed or another agent")
    for path in files:
        try:
            found = json.loads(path.read_text())
            agents.setdefault(str(found["agent"]), []).append(found)
            mine = found["environment"], found["env_kwargs"], found["success_rule"]
            scores(found, "return")
            found["learning"] = returns_while_learning(path.resolve().parent, found)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} is no evaluation of an agent; write one: python -m worldmodel.agents.evaluate"
            ) from error
        if place not in (None, mine):
            raise RunError(f"{path} is of {mine}, not of {place} as {files[0]}; compare what was measured alike")
        place = mine
    return agents


def scores(found: dict[str, Any], name: str) -> np.ndarray:
    """A fact of each episode of an evaluation, (E,) float64."""
    return np.array([episode[name] for episode in found["episodes"]], np.float64)


def compare(agents: Found) -> dict[str, Any]:
    """All figures: of every agent, and of every pair of them."""
    sheets = {
        agent: {name: [scores(one, fact) for one in seeds] for name, (_, fact, _) in MEASURES.items()}
        for agent, seeds in agents.items()
    }
    intervals: dict[str, dict[str, Interval]] = {
        agent: {name: stratified(statistic, sheet[name]) for name, (_, _, statistic) in MEASURES.items()}
        for agent, sheet in sheets.items()
    }
    pairs = []
    for one, other in itertools.combinations(agents, 2):
        better = stratified(probability_of_improvement, sheets[one]["return"], sheets[other]["return"])
        pairs.append(
            {
                "one": one,
                "other": other,
                "probability_of_improvement": better.to_json(),
                "apart": {name: apart(intervals[one][name], intervals[other][name]) for name in MEASURES},
            }
        )
    first = next(iter(agents.values()))[0]
    told = {
        agent: {
            "seeds": [one["seed"] for one in seeds],
            "runs": [one["run"] for one in seeds],
            "episodes": sum(len(one["episodes"]) for one in seeds),
            **{name: interval.to_json() for name, interval in intervals[agent].items()},
        }
        for agent, seeds in agents.items()
    }
    facts = {name: first[name] for name in ("env", "environment", "env_kwargs", "success_rule")}
    return {**facts, "agents": told, "pairs": pairs}


def returns_while_learning(folder: Path, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of the returns of an agent's training in the real environment, from where the evaluation lies; or none."""
    if found.get("run") is None:  # it has a folder of its own
        return read_json_lines(folder / RETURNS)
    if found.get("choice") == "actor_critic":  # it learnt when its run did
        return read_json_lines(folder.parent.parent / RETURNS)
    return []  # it learnt nothing, or in the dream


def learning(agents: Found) -> dict[str, dict[str, list[float]]]:
    """Of every agent that learnt in the real environment: returns while it did, over steps.

    Of those seeds whose returns were kept: at each of ``steps`` the mean over seeds of the mean of their last
    ``LATELY`` episodes (``return``), and the lowest and highest of these (``low``, ``high``), up to where all got.
    """
    told = {}
    for agent, evaluations in agents.items():
        seeds = [_lately(found["learning"]) for found in evaluations if found["learning"]]
        if not seeds:
            continue
        first, last = (pick(float(steps[at]) for steps, _ in seeds) for pick, at in ((max, 0), (min, -1)))
        if first > last:
            continue  # one seed stopped before the first episode of another
        grid = np.linspace(first, last, POINTS)
        values = np.stack([np.interp(grid, *seed) for seed in seeds])
        told[agent] = {
            "steps": grid.tolist(),
            "return": values.mean(0).tolist(),
            "low": values.min(0).tolist(),
            "high": values.max(0).tolist(),
        }
    return told


def _lately(records: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and at each the mean of the last ``LATELY`` returns."""
    returns = np.array([record["return"] for record in records], np.float64)
    means = [returns[max(0, last - LATELY) : last].mean() for last in range(1, len(returns) + 1)]
    return np.array([record["step"] for record in records]), np.array(means)


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines for :func:`worldmodel.evaluation.report.table`."""
    told = []
    for agent, row in found["agents"].items():
        runs = len(row["runs"])
        told.append((f"{agent}, {runs} {'run' if runs == 1 else 'runs'}, {row['episodes']} episodes", ""))
        told += [(title, number(row[name])) for name, (title, _, _) in MEASURES.items()]
    if found["pairs"]:
        told.append(("Chance that an episode of the first returns more (ties by half); intervals apart?", ""))
    for pair in found["pairs"]:
        words = [title for name, (title, _, _) in MEASURES.items() if pair["apart"][name]]
        verdict = f"apart: {'; '.join(words)}" if words else "not apart"
        told.append((f"{pair['one']} over {pair['other']}", f"{number(pair['probability_of_improvement'])}  {verdict}"))
    return told


def save_chart(found: dict[str, Any], path: Path) -> Path:
    """A panel for each measure with a bar for each agent, and one of the chances to be better."""

    panels = [
        plots.Panel(title, {agent: plots.Bar.of(row[name]) for agent, row in found["agents"].items()})
        for name, (title, _, _) in MEASURES.items()
        if name != "success" or any(row["success"]["value"] for row in found["agents"].values())
    ]
    if found["pairs"]:
        chances = {
            f"{pair['one']}\nover {pair['other']}": plots.Bar.of(pair["probability_of_improvement"], plots.COLOURS[-1])
            for pair in found["pairs"]
        }
        panels.append(plots.Panel("chance to return more", chances, mark=0.5, mark_name="alike"))
    if found["learning"]:
        known = list(found["agents"])
        curves = {
            agent: plots.Line(
                curve["steps"], curve["return"], curve["low"], curve["high"],
                colour=plots.COLOURS[known.index(agent) % len(plots.COLOURS)],
            )
            for agent, curve in found["learning"].items()
        }  # fmt: skip
        title = f"return while learning, mean of {LATELY} episodes"
        panels.append(plots.Panel(title, curves, xlabel="steps of the real environment"))
    return plots.save_panels(path, panels, title=found["env"], columns=2)
