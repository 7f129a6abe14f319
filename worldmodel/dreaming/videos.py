"""Videos of dreams: selection of the scene (recorded frames and actions), dreaming, and output."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel import media
from worldmodel.data.store import EpisodeStore
from worldmodel.dreaming.actions import parse_script
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.metrics import psnr
from worldmodel.evaluation.openloop import reconstruct
from worldmodel.priors import Prior
from worldmodel.types import Spec
from worldmodel.util.output import options_in_name, words_in_name
from worldmodel.world import Dream, WorldModel

CANDIDATES = 64  # random places from which one is chosen
CELLS = 16  # frames are reduced to CELLS × CELLS cells to judge what is to be seen at a place
STRIDE = 3  # of the recorded steps at a place, every third is read
CONTRAST = 30.0  # in intensity values; greater contrast adds little to the structure of a frame
ENOUGH_RECORDED = 0.4  # a candidate with this share of the highest score is good enough for recorded actions
ENOUGH_CHOSEN = 0.8  # the same for chosen actions
REPLAY_STEPS = 60  # longest replay without a horizon
REPORTED_STEPS = (1, 5, 10, 15, 30, 60)


@dataclasses.dataclass(frozen=True)
class Place:
    """A position in a store."""

    episode: int  # index of the episode
    first: int  # index of the first seen frame

    @classmethod
    def parse(cls, text: str) -> Place:
        """``4`` → the start of episode 4, ``4:20`` → its frame 20. Raises :class:`ConfigError`."""
        match = re.fullmatch(r"(\d{1,12})(?::(\d{1,12}))?", text.strip(), re.ASCII)
        if match is None:
            raise ConfigError(f"{text!r} is no place in the data; write EPISODE or EPISODE:FRAME, as in 4 or 4:20")
        return cls(int(match[1]), int(match[2] or 0))


@dataclasses.dataclass(frozen=True)
class Scene:
    """The seen frames and the actions of a dream."""

    place: Place
    held_out: bool  # whether the episode is held out
    earlier: Tensor  # (E, C, H, W) uint8: frames that the model sees before those that are shown as seen
    earlier_actions: Tensor  # (E,) int64: the action that led to each of them
    seen: Tensor  # (T0, C, H, W) uint8
    seen_actions: Tensor  # (T0,) int64: the action that led to each seen frame
    actions: Tensor  # (H,) int64: the action that leads to each frame to be dreamt
    truth: Tensor | None  # (H, C, H, W) uint8, the recorded frames; None for chosen actions


def remembered(prior: Prior, context: int) -> int:
    """Frames before the ``context`` seen ones that the memory of a prior keeps, too."""
    return max(0, prior.lead - context)


def read_scene(
    store: EpisodeStore,
    place: Place,
    context: int,
    steps: int = 0,
    script: np.ndarray | None = None,
    earlier: int = 0,
) -> Scene:
    """``context`` frames from a place on, then a ``script`` of chosen actions (H,), or else at most ``steps`` recorded
    actions; also up to ``earlier`` frames before the place, as far as the episode has them. The place is one that
    :func:`check_place` accepts."""
    last = min(place.first + context + steps, int(store.frame_counts[place.episode]))
    begin = max(0, place.first - earlier)
    stored, records = store.read(place.episode, begin, last)
    frames, actions = torch.tensor(stored), torch.tensor(records["action"].astype(np.int64))
    first, dreamt = place.first - begin, place.first - begin + context
    future = (actions[dreamt:], frames[dreamt:]) if script is None else (torch.tensor(script), None)
    known = (frames[:first], actions[:first], frames[first:dreamt], actions[first:dreamt])
    return Scene(place, store.entries[place.episode].held_out, *known, *future)


def check_place(store: EpisodeStore, place: Place, context: int, steps: int) -> None:
    """Raises :class:`ConfigError` unless ``context`` frames and then ``steps`` steps start at the place."""
    if not 0 <= place.episode < len(store):
        there = f"choose from 0 to {len(store) - 1}" if len(store) else "there are no episodes"
        raise ConfigError(f"episode {place.episode} is not in {store.path}; {there}")
    frames = int(store.frame_counts[place.episode])
    last = frames - context - steps
    if last < 0:
        raise ConfigError(f"episode {place.episode} has {frames} frames, too few for --context {context}; give fewer")
    if not 0 <= place.first <= last:
        raise ConfigError(f"frame {place.first} of episode {place.episode} is too late; choose from 0 to {last}")


def random_place(store: EpisodeStore, context: int, least: int, wanted: int, rng: np.random.Generator) -> Place:
    """A random place with ``context`` frames and then ``wanted`` steps, or at least ``least``.

    Held-out episodes are preferred, and :data:`CANDIDATES` places are drawn evenly from all that are long enough. The
    first one drawn is chosen whose :func:`_score` is at least a share of the highest, to avoid views of a wall. The
    share is :data:`ENOUGH_RECORDED` for a replay: places of nearly the highest score are not typical, since they show
    the finest texture in the fastest motion, which is reconstructed worst. It is :data:`ENOUGH_CHOSEN` for chosen
    actions (no steps): fine structure belongs to distant views, from which the agent can walk. Only recorded frames are
    read. Raises :class:`DataError` when no episode is long enough.
    """
    available = store.frame_counts - context  # (E,) steps that follow the first frames of each episode
    for episodes in (store.split("held_out"), store.split("train")):
        for steps in (wanted, least):
            choices = episodes[available[episodes] >= steps]
            if len(choices):
                drawn = [int(index) for index in np.resize(rng.permutation(choices), CANDIDATES)]
                places = [Place(index, int(rng.integers(available[index] - steps + 1))) for index in drawn]
                scores = np.array([_score(store, place, context, steps) for place in places])
                enough = ENOUGH_RECORDED if steps else ENOUGH_CHOSEN
                return places[int((scores >= enough * scores.max()).argmax())]
    raise DataError(f"no episode in {store.path} has {context + least} frames; give a smaller --context")


def _score(store: EpisodeStore, place: Place, context: int, steps: int) -> float:
    """Structure of the last seen frame times change of the recorded frames up to ``steps`` steps later; no unit.

    Frames are reduced to cells. Structure is the mean absolute difference of neighbouring cells across or down,
    whichever is less, over the standard deviation of the cells plus :data:`CONTRAST`. A wall close up has differences
    in one direction only, or in details that are smaller than a cell, or it has few, large areas of great contrast.
    Change is the Jensen-Shannon divergence of the frames' colours, each channel quantized to eight values: small where
    an agent only turns in front of a wall. Without steps, structure alone counts.
    """
    last = place.first + context - 1
    stored = store.read(place.episode, last, last + steps + 1)[0][::STRIDE]
    shown = torch.tensor(media.colours(stored.transpose(0, 2, 3, 1))).movedim(-1, 1)  # (n, 3, H, W)
    cells = F.adaptive_avg_pool2d(shown.float(), CELLS)  # (n, 3, CELLS, CELLS)
    across, down = (float(cells[0].diff(dim=dim).abs().mean()) for dim in (2, 1))
    structure = min(across, down) / (float(cells[0].flatten(1).std(1).mean()) + CONTRAST)
    if len(cells) == 1:
        return structure
    red, green, blue = (cells.flatten(2).long() >> 5).unbind(1)  # (n, CELLS²) of 8 values
    colours = 64 * red + 8 * green + blue + 512 * torch.arange(len(cells))[:, None]
    shares = colours.flatten().bincount(minlength=512 * len(cells)).reshape(-1, 512) / CELLS**2
    entropies = torch.special.entr(shares).sum(1)  # (n,) nats
    return structure * float(torch.special.entr(shares.mean(0)).sum() - entropies.mean())


@dataclasses.dataclass(frozen=True)
class Choice:
    """The options of a dream."""

    actions: str | None  # a script; None: a replay
    replay: str | None  # EPISODE[:FRAME]; None: a random place
    start: str | None  # the same for a script
    horizon: int | None
    context: int  # seen frames
    seed: int
    earlier: int = 0  # largest number of frames before these that the model sees, too


def choose_scene(chosen: Choice, spec: Spec, store: EpisodeStore) -> Scene:
    """The scene that the options select. A random place in a damaged episode is replaced by another.

    Raises what :func:`~worldmodel.dreaming.actions.parse_script`, :func:`check_place` and :func:`random_place` raise,
    and :class:`DataError` when the selected episode is damaged.
    """
    rng, context = np.random.default_rng(chosen.seed), chosen.context
    script = None if chosen.actions is None else parse_script(chosen.actions, spec).play(chosen.horizon)
    steps, least, selected = chosen.horizon or REPLAY_STEPS, 1, chosen.replay
    if script is not None:
        steps, least, selected = 0, 0, chosen.start
    while True:
        place = Place.parse(selected) if selected is not None else random_place(store, context, least, steps, rng)
        check_place(store, place, context, least)
        if not store.verify([place.episode]):
            return read_scene(store, place, context, steps, script, chosen.earlier)
        if selected is not None:
            raise DataError(
                f"episode {place.episode} is damaged and was set aside; choose another "
                "(indices of later episodes decrease by one)"
            )


def imagine(
    world: WorldModel, scene: Scene, samples: int, seed: int, temperature: float, top_k: int | None, sampler: str
) -> Dream:
    """``samples`` dreams of one scene as a batch."""
    known = torch.cat([scene.earlier, scene.seen])
    led_by = torch.cat([scene.earlier_actions, scene.seen_actions])
    generator = torch.Generator(world.device).manual_seed(seed)
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "sampler": sampler, "generator": generator}
    return world.imagine(known, scene.actions, seen_actions=led_by, samples=samples, **options)


def reconstruction(world: WorldModel, scene: Scene) -> Tensor | None:
    """The reconstruction of the recorded frames, (T0 + H, C, H, W) uint8; None for chosen actions."""
    return None if scene.truth is None else reconstruct(world, torch.cat([scene.seen, scene.truth]))


def save(
    paths: Sequence[Path],
    spec: Spec,
    scene: Scene,
    frames: Tensor,
    reconstruction: Tensor | None,
    labels: media.Labels,
    chosen: Choice,
    caption: str = "dream",
) -> None:
    """Write dreams, frames (N, H, C, H, W) uint8, next to the recorded frames and their reconstruction
    (T0 + H, C, H, W) uint8, if any."""
    # The action that led to the first seen frame was not given to the model.
    names = (None, *media.action_names(torch.cat([scene.seen_actions[1:], scene.actions]), spec.action_names))
    captions = [caption] if len(frames) == 1 else [f"{caption} {n + 1}" for n in range(len(frames))]
    strips = [
        media.dream_strip(scene.seen, dreamt, names, title) for dreamt, title in zip(frames, captions, strict=True)
    ]
    if scene.truth is not None and reconstruction is not None:
        truth = torch.cat([scene.seen, scene.truth])
        strips = [*media.triptych(truth, reconstruction, strips[0]), *strips[1:]]
    title = f"{spec.env_id} · {chosen.actions or f'actions of episode {scene.place.episode}'} · seed {chosen.seed}"
    for path in paths:
        media.save(path, strips, spec.rate, labels, title)


def file_name(chosen: Choice, scene: Scene, *options: tuple[str, float | None, float | None]) -> str:
    """A unique file name: actions, place, and every option that is not the default."""
    what = words_in_name(chosen.actions or "replay")
    place = f"ep{scene.place.episode}.{scene.place.first}"
    return f"{what}-{place}-h{len(scene.actions)}-seed{chosen.seed}{options_in_name(*options)}"


def describe(
    scene: Scene, dreamt: Dream, frames: Tensor, reconstruction: Tensor | None, seconds: float
) -> Iterator[str]:
    """A report in a few lines: start, speed, and PSNR."""
    seen, steps = len(scene.seen), len(scene.actions)
    of = "held out" if scene.held_out else "training data"
    place = scene.place
    memory = f"; {len(scene.earlier)} before them in the memory" if len(scene.earlier) else ""
    yield f"start     episode {place.episode} ({of}), frames {place.first} to {place.first + seen - 1} seen{memory}"
    samples = len(dreamt.codes)
    count = f"{samples} × {steps} frames" if samples > 1 else f"{steps} frames"
    rate, passes = samples * steps / seconds, float(dreamt.passes.mean())
    yield f"dreamt    {count} in {seconds:.2f} s: {rate:.0f} frames/s with decoding, {passes:.1f} head passes a frame"
    if scene.truth is not None and reconstruction is not None:
        near = psnr(frames, scene.truth.expand_as(frames)).mean(0)  # (H,) dB
        bound = psnr(reconstruction[seen:], scene.truth).mean()
        figures = [f"{near[step - 1]:.1f} at {step}" for step in sorted({*REPORTED_STEPS, steps}) if step <= steps]
        yield f"PSNR      {', '.join(figures)} dB; reconstruction {bound:.1f} dB"
