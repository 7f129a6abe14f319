"""The whole evaluation of a world model on the held-out episodes of a store."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import Windows
from worldmodel.errors import DataError
from worldmodel.evaluation import inverse, onestep, openloop
from worldmodel.evaluation.figures import panels
from worldmodel.evaluation.metrics import CodeUsage
from worldmodel.evaluation.openloop import Progress, silent
from worldmodel.evaluation.report import heading, rows, strips, write_report
from worldmodel.types import Segment
from worldmodel.world import WorldModel

DEFINITIONS = {
    "held out": "Episodes never trained on: about one in ten, chosen by its checksum. All competitors answer for "
    "the same windows.",
    "psnr": "10 log10(255² / MSE) of each uint8 frame, then the mean over frames: the headline. An MSE below 1/12, the "
    "variance of rounding to 8 bits, counts as 1/12 (58.9 dB).",
    "psnr_of_mean_mse": "The same formula once, of the mean MSE over frames; always the lower of the two.",
    "ssim": "Wang et al. 2004: Gaussian window 11×11, σ 1.5, K1 0.01, K2 0.03, each channel alone, then the mean.",
    "intervals": "95 %, percentile bootstrap, 1000 resamples of whole windows (of pairs and of starts for obedience). "
    "Windows of one episode are not independent, so the truth is somewhat wider. Gains are paired by window.",
    "codes": "Codes of the whole vocabulary that occur in the scored frames; perplexity is exp of their entropy.",
    "bits": "Exact -log2 p(codes of a frame | true past, actions), frames with at least the context before them; "
    "bits per code divide by the positions of the grid. Shuffled: the episode's own actions in another order in time.",
    "rewards": "One step ahead with the true past. An event is any reward but the usual one; it is said when the "
    "prediction is nearer to an event of median size. The rival is a constant, the median reward.",
    "ends": "Probability that a frame is terminal (truncation does not count); said above 0.5.",
    "open loop": "The context is seen, then only the recorded actions. Dream: temperature 0. Shuffled: the future "
    "actions of another window (a derangement of the windows). Last frame: the last seen frame, raw, repeated.",
    "obeyed": "A classifier trained on real training pairs only reads the action between two dreamt frames, decoded "
    "both. Actions are random, every one equally often. Ratio: its accuracy there over that on real held-out pairs in "
    "which every action follows every other equally often, as in the dreams; the first temperature is the headline. "
    "Coded: the same real pairs through the tokenizer. Unchanged: pairs that differ by less than one grey level; a "
    "blocked forward then cannot be told from standing still.",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is measured. The defaults are those of the published figures."""

    windows: int = 384  # held-out windows of the open loop
    context: int = 0  # frames seen; 0: as many as the prior was trained to see
    horizon: int = 30  # steps dreamt; fewer where held-out episodes are shorter
    steps: tuple[int, ...] = (1, 5, 10, 15, 30)  # of the table
    top_k: int | None = None  # of the dream at temperature 1
    frames: int = 20000  # at most so many are scored one step ahead, in whole episodes
    budget: inverse.Budget | None = dataclasses.field(default_factory=inverse.Budget)  # None: obedience is not read
    starts: int = 200
    dream_steps: int = 8
    temperatures: tuple[float, ...] = (1.0, 0.0)  # at which obedience is read
    batch: int = 64
    seed: int = 0


QUICK = Settings(windows=48, horizon=15, frames=1000, budget=None)
"""Some seconds: open loop to 15 steps on 48 windows, a few episodes one step ahead, no classifier."""


def evaluate(
    world: WorldModel,
    store: EpisodeStore,
    settings: Settings | None = None,
    *,
    folder: Path | None = None,
    run: str = "run",
    command: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure ``world`` on the held-out episodes of ``store``; everything found as plain numbers.

    With ``folder`` the report is written there (metrics.json, report.png, strips.png, report.html) and the classifier
    of actions is kept there. Raises :class:`DataError` when the data do not fit the model or hold nothing out.
    """
    settings = settings or Settings()
    held_out = _held_out(world, store)
    settings = dataclasses.replace(settings, context=settings.context or _context(world, store, held_out))
    windows = _windows(store, settings, held_out)
    kinds: dict[str, Any] = {"seed": settings.seed, "progress": progress}
    one = onestep.one_step(
        world,
        (store.episode(int(i)) for i in held_out),
        settings.context,
        settings.context + settings.horizon,
        settings.frames,
        **kinds,
    )
    loop = openloop.open_loop(world, windows, settings.context, top_k=settings.top_k, batch=settings.batch, **kinds)
    positions = int(np.prod(world.tokenizer.grid))
    found: dict[str, Any] = {
        **heading(run, world.spec.env_id, world.device, command),
        "actions": list(world.spec.action_names),
        "settings": dataclasses.asdict(settings),
        "one_step": onestep.summary(one, settings.context, world.tokenizer.num_codes, positions, settings.seed),
        "codes": CodeUsage(one.code_counts).to_json(),
        "open_loop": openloop.summary(loop, settings.steps, settings.seed),
        "inverse": _obedience(world, store, held_out, settings, folder, progress) if settings.budget else None,
        "definitions": DEFINITIONS,
    }
    if folder is not None:
        pictures, columns = {"strips": strips(loop, found["actions"])}, 4 if found["inverse"] else 3
        write_report(folder, found, rows(found), panels(found), pictures, " · bands and whiskers: 95 %", columns)
    return found


def _held_out(world: WorldModel, store: EpisodeStore) -> np.ndarray:
    """Indices of the held-out episodes, after checking that they fit."""
    for name in ("frame_shape", "action_names"):
        mine, theirs = getattr(world.spec, name), getattr(store.spec, name)
        if mine != theirs:
            raise DataError(
                f"the run was trained on {name} {mine}, the data at {store.path} have {theirs}; choose data=…"
            )
    held_out = store.split("held_out")
    if not len(held_out):
        raise DataError(f"{len(store)} episodes at {store.path}, none of them held out; collect more first")
    return held_out


def _context(world: WorldModel, store: EpisodeStore, held_out: np.ndarray) -> int:
    """Frames that the prior was trained to see; no more than a third of what the usual held-out episode has."""
    return max(1, min(world.prior.context, int(np.median(store.frame_counts[held_out])) // 3))


def _windows(store: EpisodeStore, settings: Settings, held_out: np.ndarray) -> Segment:
    """The windows of the open loop, shorter than asked where half of the held-out episodes are shorter."""
    reach = int(np.median(store.frame_counts[held_out]))
    length = min(settings.context + settings.horizon, reach)
    if length <= settings.context:
        raise DataError(f"held-out episodes of {reach} frames are too short to see {settings.context} and dream on")
    windows = Windows(store, held_out).fixed(settings.windows, length, settings.seed)
    if len(windows.actions) < 2:
        raise DataError(f"only one window of {length} held-out frames at {store.path}; collect more")
    return windows


def _obedience(
    world: WorldModel,
    store: EpisodeStore,
    held_out: np.ndarray,
    settings: Settings,
    folder: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Train or fetch the classifier of actions, then let it read real, coded and dreamt pairs."""
    assert settings.budget is not None
    count, seed = len(world.spec.action_names), settings.seed
    generator = np.random.default_rng(seed)
    training = [store.episode(int(i)) for i in store.split("train")]
    pairs = inverse.balanced_pairs(training, count, settings.budget.pairs, generator)
    learn = (pairs, count, settings.budget, world.device, seed, progress)
    path = folder / "inverse.safetensors" if folder else None
    model = inverse.cached_classifier(path, *learn) if path else inverse.train_classifier(*learn)
    total = settings.starts * settings.dream_steps
    real = inverse.balanced_pairs([store.episode(int(i)) for i in held_out], count, total, generator)
    coded = inverse.Pairs(
        openloop.reconstruct(world, real.before), openloop.reconstruct(world, real.after), real.actions
    )
    reading = inverse.read(model, real, count)
    seen = Windows(store, held_out).fixed(settings.starts, settings.context, seed + 1)
    assert seen.frames is not None
    deck = inverse.balanced_actions(len(seen.actions), settings.dream_steps, pairs.actions.unique().tolist(), generator)
    dreamt = {}
    for temperature in settings.temperatures:
        dream = inverse.dream_pairs(
            world, seen.frames, seen.actions, deck, temperature=temperature, seed=seed, progress=progress
        )
        dreamt[f"{temperature:g}"] = inverse.obeyed(
            inverse.read(model, dream, count), reading, settings.dream_steps, seed
        )
    return {
        "starts": len(seen.actions),
        "steps": settings.dream_steps,
        "chance": 1 / len(pairs.actions.unique()),
        "training_pairs": len(pairs.actions),
        "real": reading.to_json(),
        "real_coded": inverse.read(model, coded, count).to_json(),
        "headline": f"{settings.temperatures[0]:g}",
        "dreamt": dreamt,
    }
