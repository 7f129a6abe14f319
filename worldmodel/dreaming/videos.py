"""Videos of dreams: selection of the scene, dreaming, and output."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldmodel import media
from worldmodel.data.store import EpisodeStore
from worldmodel.dreaming.actions import parse_script
from worldmodel.dreaming.scenes import Place, Scene, check_place, random_place, replayed_scene, scripted_scene
from worldmodel.errors import DataError
from worldmodel.evaluation.metrics import psnr
from worldmodel.evaluation.openloop import reconstruct
from worldmodel.types import Spec
from worldmodel.util.output import options_in_name, words_in_name
from worldmodel.world import Dream, WorldModel

REPLAY_STEPS = 60  # longest replay without a horizon
REPORTED_STEPS = (1, 5, 10, 15, 30, 60)


@dataclasses.dataclass(frozen=True)
class Choice:
    """The options of a dream."""

    actions: str | None  # a script; None: a replay
    replay: str | None  # EPISODE[:FRAME]; None: a random place
    start: str | None  # the same for a script
    horizon: int | None
    context: int  # seen frames
    seed: int


def choose_scene(chosen: Choice, spec: Spec, store: EpisodeStore) -> Scene:
    """The scene that the options select. A random place in a damaged episode is replaced by another.

    Raises what :func:`~worldmodel.dreaming.actions.parse_script` and :mod:`worldmodel.dreaming.scenes` raise, and
    :class:`DataError` when the selected episode is damaged.
    """
    rng, context = np.random.default_rng(chosen.seed), chosen.context
    script = None if chosen.actions is None else parse_script(chosen.actions, spec).play(chosen.horizon)
    steps = REPLAY_STEPS if chosen.horizon is None else chosen.horizon
    selected = chosen.replay if script is None else chosen.start
    while True:
        least, wanted = (0, 0) if script is not None else (1, steps)
        place = Place.parse(selected) if selected is not None else random_place(store, context, least, wanted, rng)
        check_place(store, place, context, least)
        if not store.verify([place.episode]):
            break
        if selected is not None:
            raise DataError(
                f"episode {place.episode} is damaged and was set aside; choose another "
                "(indices of later episodes decrease by one)"
            )
    if script is not None:
        return scripted_scene(store, place, context, script)
    return replayed_scene(store, place, context, steps)


def imagine(
    world: WorldModel, scene: Scene, samples: int, seed: int, temperature: float, top_k: int | None, sampler: str
) -> Dream:
    """``samples`` dreams of one scene as a batch."""

    def batch(tensor: Tensor) -> Tensor:
        return tensor.expand(samples, *tensor.shape)

    return world.imagine(
        batch(scene.seen),
        batch(scene.actions),
        seen_actions=batch(scene.seen_actions),
        temperature=temperature,
        top_k=top_k,
        sampler=sampler,
        generator=torch.Generator(world.device).manual_seed(seed),
    )


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
) -> None:
    """Write dreams, frames (N, H, C, H, W) uint8, next to the recorded frames and their reconstruction, if any."""
    title = f"{spec.env_id} · {chosen.actions or f'actions of episode {scene.place.episode}'} · seed {chosen.seed}"
    strips = make_strips(spec, scene, frames, reconstruction)
    for path in paths:
        media.save(path, strips, spec.rate, labels, title)


def make_strips(spec: Spec, scene: Scene, frames: Tensor, reconstruction: Tensor | None) -> list[media.Strip]:
    """A strip for each dream, after the truth and its reconstruction, if any.

    ``frames`` (N, H, C, H, W) uint8 dreamt, ``reconstruction`` (T0 + H, C, H, W) uint8.
    """
    # The action that led to the first seen frame was not given to the model.
    names = (None, *media.action_names(torch.cat([scene.seen_actions[1:], scene.actions]), spec.action_names))
    captions = ["dream"] if len(frames) == 1 else [f"dream {n + 1}" for n in range(len(frames))]
    dreams = [
        media.dream_strip(scene.seen, dreamt, names, caption) for dreamt, caption in zip(frames, captions, strict=True)
    ]
    if scene.truth is None or reconstruction is None:
        return dreams
    return [*media.triptych(torch.cat([scene.seen, scene.truth]), reconstruction, dreams[0]), *dreams[1:]]


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
    yield f"start     episode {place.episode} ({of}), frames {place.first} to {place.first + seen - 1} seen"
    count = f"{len(frames)} × {steps} frames" if len(frames) > 1 else f"{steps} frames"
    rate, passes = frames.shape[:2].numel() / seconds, float(dreamt.passes.mean())
    yield f"dreamt    {count} in {seconds:.2f} s: {rate:.0f} frames/s with decoding, {passes:.1f} head passes a frame"
    if scene.truth is not None and reconstruction is not None:
        near = psnr(frames, scene.truth.expand_as(frames)).mean(0)  # (H,) dB
        bound = psnr(reconstruction[seen:], scene.truth).mean()
        figures = [f"{near[step - 1]:.1f} at {step}" for step in sorted({*REPORTED_STEPS, steps}) if step <= steps]
        yield f"PSNR      {', '.join(figures)} dB; reconstruction {bound:.1f} dB"
