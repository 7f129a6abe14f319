"""The complete evaluation of a world model on the held-out episodes of a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import Windows
from worldmodel.errors import DataError
from worldmodel.evaluation import inverse, long, long_report, loops, onestep, openloop
from worldmodel.evaluation.figures import panels
from worldmodel.evaluation.metrics import CodeUsage
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.evaluation.report import heading, rows, strips, write_report
from worldmodel.priors import Prior
from worldmodel.types import Segment
from worldmodel.world import WorldModel

NOTE = " · bands and whiskers: 95 %"  # in the title of the plots
REMEMBERED = 32  # seen frames of the open loop, if the prior has a memory
DEFINITIONS = {
    "held out": "Episodes that are not used for training, about one in ten, chosen by checksum. All competitors "
    "predict the same windows.",
    "psnr": "10 log10(255² / MSE) of each uint8 frame, then the mean over frames; the main figure. An MSE below 1/12, "
    "the variance of rounding to 8 bits, counts as 1/12 (58.9 dB).",
    "psnr_of_mean_mse": "The same formula once, of the mean MSE over frames; always the lower of the two.",
    "ssim": "Wang et al. 2004: Gaussian window 11×11 (or the frame, if smaller), σ 1.5, K1 0.01, K2 0.03, "
    "mean over channels.",
    "intervals": "95 %, percentile bootstrap, 1000 resamples of whole windows (pairs and starts for actions). "
    "Windows of one episode are not independent, so intervals are slightly too narrow. Gains are paired by window.",
    "codes": "Codes of the whole vocabulary that occur in the scored frames; perplexity is exp of their entropy.",
    "bits": "Exact -log2 p(codes of a frame | true past, actions), frames with at least the context before them; "
    "bits per code divide by the positions of the grid. Shuffled: the episode's own actions in another order in time.",
    "rewards": "One step ahead with the true past. An event is any reward but the usual one; it is predicted when "
    "the prediction is nearer to an event of median size. The baseline is a constant, the median reward.",
    "ends": "Probability that a frame is terminal (truncation does not count); predicted above 0.5.",
    "open loop": "The model receives context frames, then only the recorded actions. Dream: temperature 0. Mean: of "
    "several dreams at temperature 1, pixel by pixel, an estimate of the expected frame. Shuffled: "
    "the future actions of another window (a derangement). Last frame: the last seen frame, repeated.",
    "obeyed": "A classifier, trained on real training pairs only, predicts the action between two dreamt frames. "
    "Actions are random and equally frequent. Ratio: its accuracy over that on real held-out pairs with equally "
    "frequent pairs of actions, as in the dreams; the first temperature is the main figure. Coded: reconstructions of "
    "the same real pairs. Unchanged: pairs that differ by less than one intensity value, such as a blocked step.",
    "long dreams": "Dreams from held-out episodes, under their recorded actions, continued with those of further "
    "episodes, and under random actions that are each held for some steps. The actions of the last frames are those of "
    "the first frames again. Obeyed: accuracy of the classifier above; intervals over dreams. Distance: Jensen-Shannon "
    "divergence of the frequencies of codes from those of as many held-out frames, in runs of the same length, mean "
    "over random samples; the reference is the distance between two such samples, with the range of 95 % of them. "
    "Plainer: the contrast (standard deviation of the means of 8×8 patches) is below the 5th percentile of real "
    "frames.",
    "loops": "Scripts that return to where they began, recorded in the environment after a free walk. The model sees "
    "the last frames before the script and dreams under it. End: the last frame against the one where the loop began, "
    "also for the recorded frames themselves (a wall may stop them). Along: every frame against the recorded one. "
    "Intervals are over episodes.",
    "revisit gain": "Bits per code on recorded frames that show again what was seen earlier in the loop (its second "
    "half; the last quarter of a full turn), with only the last few frames seen, minus with all earlier frames of the "
    "episode seen. A prior without a longer memory has exactly 0.",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Extent of the evaluation. The defaults are those of the published figures."""

    windows: int = 384  # held-out windows of the open loop, at most as long as the median held-out episode
    context: int = 0  # 0: see default_context
    horizon: int = 30  # steps dreamt; fewer where held-out episodes are shorter
    steps: tuple[int, ...] = (1, 5, 10, 15, 30)  # of the table
    samples: int | None = 16  # dreams at temperature 1 whose mean is compared, too; None: no mean
    top_k: int | None = None  # of the dreams at temperature 1
    frames: int = 20000  # maximum number scored one step ahead, in whole episodes
    budget: inverse.Budget | None = dataclasses.field(default_factory=inverse.Budget)  # None: no action classifier
    starts: int = 200
    dream_steps: int = 8
    temperatures: tuple[float, ...] = (1.0, 0.0)  # of the dreams for the action classifier
    long_dreams: long.Extent | None = dataclasses.field(default_factory=long.Extent)  # None: no long dreams
    loops: loops.LoopSettings | None = dataclasses.field(default_factory=loops.LoopSettings)  # None: no loops
    batch: int = 64
    seed: int = 0


COMPLETE = Settings()
QUICK = Settings(windows=48, horizon=15, samples=4, frames=1000, budget=None, long_dreams=None, loops=None)
"""Takes some seconds: open loop to 15 steps on 48 windows, a few episodes one step ahead, no classifier, no long dreams
and no loops."""


def evaluate(
    world: WorldModel,
    store: EpisodeStore,
    settings: Settings = COMPLETE,
    *,
    recorded_loops: Mapping[str, EpisodeStore] | None = None,
    folder: Path | None = None,
    run: str = "run",
    command: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Evaluate ``world`` on the held-out episodes of ``store``; returns the figures as plain numbers.

    ``recorded_loops``: scripts that return to where they began, and their recordings in the environment
    (:mod:`worldmodel.evaluation.loops`). The report (metrics.json, report.png, other pictures, report.html) and the
    classifier of actions are written to ``folder``, if given. Raises :class:`DataError` when the data do not fit the
    model or no episode is held out.
    """
    held_out = _held_out(world, store)
    reach = int(np.median(store.frame_counts[held_out]))
    context = settings.context or default_context(world.prior, reach)
    settings = dataclasses.replace(settings, context=context)
    windows = _windows(store, settings, held_out, reach)
    kinds: dict[str, Any] = {"seed": settings.seed, "progress": progress}
    episodes = (store.episode(int(i)) for i in held_out)
    frames = min(settings.frames, int(store.frame_counts[held_out].sum()))
    one = onestep.one_step(world, episodes, context, context + settings.horizon, frames, **kinds)
    sizes = {name: getattr(settings, name) for name in ("samples", "top_k", "batch")}
    loop = openloop.open_loop(world, windows, context, **sizes, **kinds)
    obeyed, classifier = _action_figures(world, store, held_out, settings, folder, progress)
    far = _long_dreams(world, store, held_out, settings, classifier, progress)
    returns, pictures = loops.measure_all(world, recorded_loops or {}, settings.loops, **kinds)
    positions = int(np.prod(world.tokenizer.grid))
    figures: dict[str, Any] = {
        **heading(run, world.spec.env_id, world.device, command),
        "actions": list(world.spec.action_names),
        "settings": dataclasses.asdict(settings),
        "one_step": onestep.summary(one, context, world.tokenizer.num_codes, positions, settings.seed),
        "codes": CodeUsage(one.code_counts).to_json(),
        "open_loop": openloop.summary(loop, settings.steps, settings.seed),
        "inverse": obeyed,
        "long_dreams": far.figures if far else None,
        "loops": returns,
        "definitions": DEFINITIONS,
    }
    if folder is not None:
        pictures = {"strips": strips(loop, figures["actions"]), **pictures}
        pictures |= {"long_dreams": long_report.picture(far)} if far else {}
        write_report(folder, figures, rows(figures), panels(figures), pictures, NOTE, columns=4 if obeyed else 3)
    return figures


def default_context(prior: Prior, reach: int) -> int:
    """Seen frames of the open loop: as many as the prior was trained with; with a longer memory :data:`REMEMBERED`, or
    what it keeps, if that is less. At most a third of ``reach``, the length of an episode."""
    return max(1, min(max(prior.context, min(prior.lead, REMEMBERED)), reach // 3))


def _held_out(world: WorldModel, store: EpisodeStore) -> np.ndarray:
    """Indices of the held-out episodes, after checking that they fit."""
    for name in ("frame_shape", "action_names"):
        mine, theirs = getattr(world.spec, name), getattr(store.spec, name)
        if mine != theirs:
            trained = f"the run was trained on {name} {mine}"
            raise DataError(f"{trained}, the data at {store.path} have {theirs}; choose data=…")
    return store.require("held_out")


def _windows(store: EpisodeStore, settings: Settings, held_out: np.ndarray, reach: int) -> Segment:
    """The windows of the open loop, of at most ``reach`` frames."""
    length = min(settings.context + settings.horizon, reach)
    if length <= settings.context:
        raise DataError(f"held-out episodes of {reach} frames are too short to dream after {settings.context}")
    windows = Windows(store, held_out).fixed(settings.windows, length, settings.seed)
    if len(windows.actions) < 2:
        raise DataError(f"only one window of {length} held-out frames at {store.path}; collect more")
    return windows


def _action_figures(
    world: WorldModel,
    store: EpisodeStore,
    held_out: np.ndarray,
    settings: Settings,
    folder: Path | None,
    progress: Progress,
) -> tuple[dict[str, Any] | None, inverse.InverseDynamics | None]:
    """Train or load the classifier of actions, apply it to real, coded and dreamt pairs, and return it, too."""
    if settings.budget is None:
        return None, None
    count, seed = len(world.spec.action_names), settings.seed
    generator = np.random.default_rng(seed)
    training = [store.episode(int(i)) for i in store.split("train")]
    pairs = inverse.balanced_pairs(training, count, settings.budget.pairs, generator)
    path = folder / "inverse.safetensors" if folder else None
    model = inverse.train_classifier(pairs, count, settings.budget, world.device, seed, progress, path)
    total = settings.starts * settings.dream_steps
    real = inverse.balanced_pairs([store.episode(int(i)) for i in held_out], count, total, generator)
    before, after = (openloop.reconstruct(world, part) for part in (real.before, real.after))
    coded = inverse.Pairs(before, after, real.actions)
    reading = inverse.read(model, real, count)
    seen = Windows(store, held_out).fixed(settings.starts, settings.context, seed + 1)
    assert seen.frames is not None
    deck = inverse.balanced_actions(len(seen.actions), settings.dream_steps, pairs.actions.unique().tolist(), generator)
    dreamt = {}
    for heat in settings.temperatures:
        dream = inverse.dream_pairs(
            world, seen.frames, seen.actions, deck, temperature=heat, seed=seed, progress=progress
        )
        dreamt[f"{heat:g}"] = inverse.obeyed(inverse.read(model, dream, count), reading, settings.dream_steps, seed)
    figures = {
        "starts": len(seen.actions),
        "steps": settings.dream_steps,
        "chance": 1 / len(pairs.actions.unique()),
        "training_pairs": len(pairs.actions),
        "real": reading.to_json(),
        "real_coded": inverse.read(model, coded, count).to_json(),
        "headline": f"{settings.temperatures[0]:g}",
        "dreamt": dreamt,
    }
    return figures, model


def _long_dreams(
    world: WorldModel,
    store: EpisodeStore,
    held_out: np.ndarray,
    settings: Settings,
    classifier: inverse.InverseDynamics | None,
    progress: Progress,
) -> long.Long | None:
    """Dream far beyond the horizon of the open loop, unless the settings omit it."""
    if settings.long_dreams is None:
        return None
    extent, heats, seed = settings.long_dreams, settings.temperatures, settings.seed
    return long.measure(world, store, held_out, settings.context, extent, heats, classifier, seed, progress)
