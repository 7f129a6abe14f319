"""Compares evaluations of agents and pools the seeds of an agent.

The statistics are those of Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*,
2021. Their runs have one score per task; here a run has one score per episode, and intervals account for both.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.agents.actor import RETURNS
from worldmodel.errors import RunError
from worldmodel.evaluation.metrics import Interval, auroc, resampled
from worldmodel.evaluation.report import number
from worldmodel.media import plots
from worldmodel.training.hooks import read_json_lines

Scores = Sequence[np.ndarray]  # for each run, the returns of its episodes (E,)


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half: the ⌊n / 4⌋ lowest and the ⌊n / 4⌋ highest of n values are left out."""
    values = np.sort(np.asarray(scores, np.float64).ravel())
    cut = len(values) // 4
    return float(values[cut : len(values) - cut].mean())


def probability_of_improvement(scores: np.ndarray, others: np.ndarray) -> float:
    """P(X > Y) + P(X = Y) / 2 for X one of ``scores`` and Y one of ``others``."""
    pooled = np.concatenate([np.ravel(scores), np.ravel(others)])
    probability = auroc(pooled, np.arange(len(pooled)) < np.size(scores))
    assert probability is not None
    return probability


def stratified(statistic: Callable[..., float], *agents: Scores, seed: int = 0) -> Interval:
    """Bootstrap interval of ``statistic(scores, …)`` with the pooled scores (n,) of each agent.

    Runs are resampled within an agent and episodes within a run, so that an agent whose seeds differ has a wide
    interval regardless of the number of episodes.
    """
    value = statistic(*(np.concatenate(scores) for scores in agents))
    samples = sum(len(run) for run in agents[0])
    return resampled(lambda rng: statistic(*(_resample(scores, rng) for scores in agents)), value, samples, seed)


def _resample(scores: Scores, generator: np.random.Generator) -> np.ndarray:
    runs = generator.integers(len(scores), size=len(scores))
    return np.concatenate([scores[run][generator.integers(len(scores[run]), size=len(scores[run]))] for run in runs])


def disjoint(one: Interval, other: Interval) -> bool:
    """Whether two intervals have no value in common."""
    return bool(one.low > other.high or other.low > one.high)


# name → title, measured value of an episode, statistic of the pooled values
MEASURES: dict[str, tuple[str, str, Callable[..., float]]] = {
    "return_iqm": ("return, interquartile mean", "return", interquartile_mean),
    "return": ("return, mean", "return", np.mean),
    "success": ("success", "success", np.mean),
}
SMOOTHING = 20  # episodes over which returns during training are averaged
POINTS = 100  # of a curve
Evaluations = dict[str, list[dict[str, Any]]]  # agent → content of metrics.json for each seed


def read(paths: Sequence[Path]) -> Evaluations:
    """Read evaluations by agent, in the order of the files; a folder stands for the metrics.json in it.

    Raises :class:`RunError` for a file that is not an evaluation, is given twice, or is of another environment.
    """
    agents: Evaluations = {}
    environment: tuple[Any, ...] | None = None
    files = [path / "metrics.json" if path.is_dir() else path for path in paths]
    if twice := [path for path, other in itertools.combinations(files, 2) if path.resolve() == other.resolve()]:
        raise RunError(f"{twice[0]} is given twice; every file is another seed or another agent")
    for path in files:
        try:
            metrics = json.loads(path.read_text())
            agents.setdefault(str(metrics["agent"]), []).append(metrics)
            own = metrics["environment"], metrics["env_kwargs"], metrics["success_rule"]
            scores(metrics, "return")
            metrics["learning"] = returns_while_learning(path.resolve().parent, metrics)
        except (OSError, ValueError, KeyError, TypeError) as error:
            remedy = "write one: python -m worldmodel.agents.evaluate"
            raise RunError(f"{path} is not an evaluation of an agent; {remedy}") from error
        if environment not in (None, own):
            fault = f"{path} is of {own}, and {files[0]} of {environment}"
            raise RunError(f"{fault}; compare evaluations of the same environment")
        environment = own
    return agents


def scores(metrics: dict[str, Any], name: str) -> np.ndarray:
    """A measured value of each episode of an evaluation, (E,) float64."""
    return np.array([episode[name] for episode in metrics["episodes"]], np.float64)


def compare(agents: Evaluations) -> dict[str, Any]:
    """Figures of every agent and of every pair of agents."""
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
        better = stratified(probability_of_improvement, sheets[one]["return"], sheets[other]["return"]).to_json()
        apart = {name: disjoint(intervals[one][name], intervals[other][name]) for name in MEASURES}
        pairs.append({"one": one, "other": other, "probability_of_improvement": better, "apart": apart})
    first = next(iter(agents.values()))[0]
    results = {
        agent: {
            "seeds": [one["seed"] for one in seeds],
            "runs": [one["run"] for one in seeds],
            "episodes": sum(len(one["episodes"]) for one in seeds),
            **{name: interval.to_json() for name, interval in intervals[agent].items()},
        }
        for agent, seeds in agents.items()
    }
    common = {name: first[name] for name in ("env", "environment", "env_kwargs", "success_rule")}
    return {**common, "agents": results, "pairs": pairs}


def returns_while_learning(folder: Path, metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns of an agent's training episodes in the real environment, found from the folder of the evaluation."""
    if metrics.get("run") is None:  # the agent has its own folder
        return read_json_lines(folder / RETURNS)
    if metrics.get("choice") == "actor_critic":  # the agent was trained with its run
        return read_json_lines(folder.parent.parent / RETURNS)
    return []  # the agent was not trained, or in the dream


def learning(agents: Evaluations) -> dict[str, dict[str, list[float]]]:
    """Returns during training of every agent that was trained in the real environment.

    At each of ``steps``, up to the end of the shortest seed: ``return`` is the mean over seeds of the mean return of
    the last ``SMOOTHING`` episodes, ``low`` and ``high`` are the lowest and the highest seed.
    """
    curves = {}
    for agent, evaluations in agents.items():
        seeds = [_smoothed(one["learning"]) for one in evaluations if one["learning"]]
        if not seeds:
            continue
        first, last = (pick(float(steps[at]) for steps, _ in seeds) for pick, at in ((max, 0), (min, -1)))
        if first > last:
            continue  # one seed stopped before the first episode of another
        grid = np.linspace(first, last, POINTS)
        values = np.stack([np.interp(grid, *seed) for seed in seeds])
        columns = {"steps": grid, "return": values.mean(0), "low": values.min(0), "high": values.max(0)}
        curves[agent] = {name: column.tolist() for name, column in columns.items()}
    return curves


def _smoothed(records: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the mean of the last ``SMOOTHING`` returns at each."""
    returns = np.array([record["return"] for record in records], np.float64)
    means = [returns[max(0, last - SMOOTHING) : last].mean() for last in range(1, len(returns) + 1)]
    return np.array([record["step"] for record in records]), np.array(means)


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows for :func:`worldmodel.evaluation.report.table`."""
    rows = []
    for agent, row in result["agents"].items():
        runs = len(row["runs"])
        rows.append((f"{agent}, {runs} {'run' if runs == 1 else 'runs'}, {row['episodes']} episodes", ""))
        rows += [(title, number(row[name])) for name, (title, _, _) in MEASURES.items()]
    if result["pairs"]:
        rows.append(("Probability that the first agent returns more (ties count half); disjoint intervals", ""))
    for pair in result["pairs"]:
        measures = [title for name, (title, _, _) in MEASURES.items() if pair["apart"][name]]
        comparison = f"disjoint: {'; '.join(measures)}" if measures else "none disjoint"
        title = f"{pair['one']} over {pair['other']}"
        rows.append((title, f"{number(pair['probability_of_improvement'])}  {comparison}"))
    return rows


def save_chart(result: dict[str, Any], path: Path) -> Path:
    """Plot a panel of bars for each measure, one of the probabilities of improvement, and one of the training."""
    panels = [
        plots.Panel(title, {agent: plots.Bar.of(row[name]) for agent, row in result["agents"].items()})
        for name, (title, _, _) in MEASURES.items()
        if name != "success" or any(row["success"]["value"] for row in result["agents"].values())
    ]
    if result["pairs"]:
        improvements = {
            f"{pair['one']}\nover {pair['other']}": plots.Bar.of(pair["probability_of_improvement"], plots.COLOURS[-1])
            for pair in result["pairs"]
        }
        panels.append(plots.Panel("probability of a higher return", improvements, mark=0.5, mark_name="equal"))
    if result["learning"]:
        names = list(result["agents"])
        curves = {}
        for agent, curve in result["learning"].items():
            colour = plots.COLOURS[names.index(agent) % len(plots.COLOURS)]
            curves[agent] = plots.Line(curve["steps"], curve["return"], curve["low"], curve["high"], colour=colour)
        title = f"return during training, mean of {SMOOTHING} episodes"
        panels.append(plots.Panel(title, curves, xlabel="steps of the real environment"))
    return plots.save_panels(path, panels, title=result["env"], columns=2)
