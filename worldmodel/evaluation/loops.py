"""Loops: scripts of actions that return to where they began. Does a dream return to the frame that it left?

An episode of a recorded loop (``explorer=script``) ends with the actions of the script; the frame before them is the
*start* of the loop. The model receives the last frames up to the start, and dreams under the script. Competitors:

==================  ============================================================================================
environment         the recorded frames of the loop; the last one need not equal the start (walls, other objects)
reconstruction      the tokenizer's reconstruction of the true frame, an upper limit for dreams
dream_tT_sS         a dream at temperature T after S seen frames
last_frame          the start of the loop, repeated
==================  ============================================================================================

The *revisit gain* shows without a dream whether a memory is used: bits per code on recorded frames that show again what
was seen earlier in the loop, with only a few frames before each of them seen, minus with all frames of the episode.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Len
from torch import Tensor

from worldmodel.data.store import EpisodeStore
from worldmodel.dreaming.actions import Script, parse_script
from worldmodel.errors import DataError
from worldmodel.evaluation.metrics import bits, decibels, mean_interval, mse, ssim
from worldmodel.evaluation.openloop import Progress, reconstruct, silent
from worldmodel.media import Strip, action_names, contact_sheet
from worldmodel.util.output import words_in_name
from worldmodel.util.ranges import Count, NonNegative
from worldmodel.world import WorldModel, without_first

SHOWN = 2  # episodes of a picture
ROWS = 8  # episodes whose likelihood is computed at once, to limit the memory of logits


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """What is measured of each loop."""

    temperatures: Annotated[tuple[NonNegative, ...], Len(1)] = (1.0, 0.0)
    seen: Annotated[tuple[Count, ...], Len(1)] = (4, 28)  # frames, fewer where an episode has fewer before its loop
    few: Count = 4  # frames that the revisit gain is measured against


@dataclasses.dataclass(frozen=True)
class Recorded:
    """E recorded episodes of T frames, whose last n steps are a loop."""

    script: Script
    frames: Tensor  # (E, T, C, *size) uint8
    actions: Tensor  # (E, T) int64, that led to each frame

    @property
    def steps(self) -> int:
        return len(self.script)

    @property
    def start(self) -> int:
        """Index of the frame where the loop begins."""
        return self.frames.shape[1] - 1 - self.steps

    @property
    def revisits(self) -> range:
        """Indices of the frames that show something of the loop again: its second half, or, where one action is
        repeated (a full turn), its last quarter."""
        part = 3 * self.steps // 4 if len(set(self.script.play().tolist())) == 1 else self.steps // 2
        return range(self.start + 1 + part, self.frames.shape[1])


@dataclasses.dataclass(frozen=True)
class Loop:
    """Errors of each competitor, along the loop against the recorded frames, and at its end against its start."""

    recorded: Recorded
    dreams: dict[str, tuple[float, int]]  # name → temperature, seen frames
    along: dict[str, tuple[np.ndarray, np.ndarray]]  # name → squared error and SSIM, both (E, n)
    end: dict[str, tuple[np.ndarray, np.ndarray]]  # name → the same of the last frame, (E,)
    bits_all: np.ndarray  # (E,) bits per code of the revisits with all earlier frames seen
    bits_few: np.ndarray  # (E,) the same with few frames seen
    shown: list[int]  # episodes whose frames are kept
    pictures: dict[str, Tensor]  # reconstruction and dreams: (P, n, C, *size) uint8


def read_loop(world: WorldModel, store: EpisodeStore, text: str) -> Recorded:
    """The episodes of a store that was recorded with a script. Raises :class:`DataError` if they do not fit."""
    script = parse_script(text, world.spec)
    fitting = (store.spec.frame_shape, store.spec.action_names) == (world.spec.frame_shape, world.spec.action_names)
    if not fitting or len(store) < 2 or len(set(store.frame_counts)) > 1 or store.frame_counts[0] < len(script) + 1:
        raise DataError(f"{store.path} does not hold recordings of {text} that fit the model; remove this folder")
    episodes = [store.episode(index) for index in range(len(store))]
    actions = torch.from_numpy(np.stack([episode.actions for episode in episodes]))
    if not (actions[:, -len(script) :] == torch.from_numpy(script.play())).all():
        raise DataError(f"the episodes at {store.path} do not end with {text}; remove this folder")
    return Recorded(script, torch.from_numpy(np.stack([episode.frames for episode in episodes])), actions)


def measure(
    world: WorldModel, recorded: Recorded, settings: LoopSettings, seed: int = 0, progress: Progress = silent
) -> Loop:
    """Dream each loop at every temperature after every number of seen frames, and compare."""
    start, total = recorded.start, len(recorded.frames)
    truth, origin = recorded.frames[:, start + 1 :], recorded.frames[:, start]
    predictions = {"reconstruction": reconstruct(world, truth), "last_frame": origin[:, None].expand_as(truth)}
    dreams = {
        f"dream_t{heat:g}_s{seen}": (heat, seen)
        for heat in settings.temperatures
        for seen in sorted({min(seen, start + 1) for seen in settings.seen})
    }
    for number, (name, (heat, seen)) in enumerate(dreams.items()):
        predictions[name] = _dream(world, recorded, heat, seen, seed)
        progress("loops", number + 1, len(dreams) + 1)
    ends = {"environment": truth[:, -1], "reconstruction": reconstruct(world, origin)}
    ends |= {name: predictions[name][:, -1] for name in dreams}
    shown = np.linspace(0, total - 1, min(SHOWN, total)).round().astype(int).tolist()
    everything, few = revisit_bits(world, recorded, settings.few)
    progress("loops", len(dreams) + 1, len(dreams) + 1)
    along = {name: _errors(frames, truth) for name, frames in predictions.items()}
    end = {name: _errors(frames, origin) for name, frames in ends.items()}
    pictures = {name: predictions[name][shown] for name in ("reconstruction", *dreams)}
    return Loop(recorded, dreams, along, end, everything, few, shown, pictures)


def _errors(frames: Tensor, truth: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return mse(frames, truth).numpy(), ssim(frames, truth).numpy()


def _dream(world: WorldModel, recorded: Recorded, temperature: float, seen: int, seed: int) -> Tensor:
    """(E, n, C, *size) uint8, on the host."""
    first, last = recorded.start + 1 - seen, recorded.start + 1
    generator = torch.Generator(world.device).manual_seed(seed)
    options: dict[str, Any] = {"temperature": temperature, "generator": generator}
    options["seen_actions"] = without_first(recorded.actions[:, first:last])
    return world.imagine(recorded.frames[:, first:last], recorded.actions[:, last:], **options).frames.cpu()


@torch.inference_mode()
def revisit_bits(world: WorldModel, recorded: Recorded, few: int) -> tuple[np.ndarray, np.ndarray]:
    """Bits per code of the frames that are seen again, mean over the frames of an episode: two (E,) float64, with all
    earlier frames of the episode seen, and with the last ``few`` of them."""
    positions, revisits = int(np.prod(world.tokenizer.grid)), recorded.revisits
    results = []
    for frames, actions in zip(recorded.frames.split(ROWS), recorded.actions.split(ROWS), strict=True):
        flat = world.tokenizer.encode(frames.flatten(0, 1).to(world.device))
        codes, actions = flat.unflatten(0, frames.shape[:2]), actions.to(world.device)
        everything = world.prior.log_likelihood(codes, without_first(actions))[:, revisits.start :]
        last = []
        for index in revisits:
            window = slice(max(0, index - few), index + 1)
            last.append(world.prior.log_likelihood(codes[:, window], without_first(actions[:, window]))[:, -1])
        nats = -torch.stack([everything, torch.stack(last, 1)]).double().mean(2)  # (2, rows)
        results.append(bits(nats.cpu().numpy()) / positions)
    everything, few_seen = np.concatenate(results, 1)
    return everything, few_seen


def summary(loop: Loop, few: int, seed: int = 0) -> dict[str, Any]:
    """Figures of one loop with 95 % intervals over episodes."""

    def figures(errors: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
        quality, similarity = decibels(errors[0]), errors[1]
        found = {"psnr": mean_interval(quality, seed).to_json(), "ssim": mean_interval(similarity, seed).to_json()}
        if quality.ndim > 1:  # also the mean over the loop
            found |= {f"mean_{name}": mean_interval(values.mean(1), seed).to_json()
                      for name, values in (("psnr", quality), ("ssim", similarity))}  # fmt: skip
        return found

    return {
        "episodes": len(loop.recorded.frames),
        "steps": loop.recorded.steps,
        "dreams": {name: {"temperature": heat, "seen": seen} for name, (heat, seen) in loop.dreams.items()},
        "end": {name: figures(errors) for name, errors in loop.end.items()},
        "along": {name: figures(errors) for name, errors in loop.along.items()},
        "revisit": {
            "frames": len(loop.recorded.revisits),
            "few": few,
            "bits_per_code": mean_interval(loop.bits_all, seed).to_json(),
            "bits_per_code_few_seen": mean_interval(loop.bits_few, seed).to_json(),
            "gain": mean_interval(loop.bits_few - loop.bits_all, seed).to_json(),
        },
    }


def sheet(loop: Loop, title: str, names: tuple[str, ...]) -> np.ndarray:
    """An image (height, width, 3) uint8: of some episodes, the recorded frames above their reconstructions and the
    dreams after most seen frames. The first frame is the start of the loop."""
    recorded, most = loop.recorded, max(seen for _, seen in loop.dreams.values())
    captions = {name: f"dream, T = {heat:g}" for name, (heat, seen) in loop.dreams.items() if seen == most}
    sheets = []
    for place, episode in enumerate(loop.shown):
        actions = (None, *action_names(recorded.actions[episode, recorded.start + 1 :], names))
        truth = recorded.frames[episode, recorded.start :]
        lines = [Strip(truth.numpy(), "truth", actions, seen=1)]
        for name, caption in {"reconstruction": "reconstruction", **captions}.items():
            frames = torch.cat([truth[:1], loop.pictures[name][place]])
            lines.append(Strip(frames.numpy(), caption, actions, seen=1, dreamt=name in captions))
        columns = -(-len(truth) // -(-len(truth) // 13))  # lines of equal length
        sheets.append(contact_sheet(lines, size=64, title=f"{title}, episode {episode + 1}", columns=columns))
    return np.concatenate(sheets)


def picture_name(script: str) -> str:
    """The name of the picture of a loop, without suffix."""
    return f"loop-{words_in_name(script)}"


def measure_all(
    world: WorldModel, stores: Mapping[str, EpisodeStore], settings: LoopSettings | None, seed: int, progress: Progress
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Figures of each script, and its picture by the name of its file; nothing without settings.

    Raises :class:`DataError` for a store that does not fit.
    """
    figures, pictures = {}, {}
    for text, store in stores.items() if settings else ():
        assert settings is not None
        loop = measure(world, read_loop(world, store, text), settings, seed, progress)
        figures[text] = summary(loop, settings.few, seed)
        pictures[picture_name(text)] = sheet(loop, f"loop {text}", world.spec.action_names)
    return figures, pictures
