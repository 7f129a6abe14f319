"""Dream: show the model some recorded frames, then let it imagine what the actions of the user's choice lead to::

python -m worldmodel.dream --actions forward,left
python -m worldmodel.dream --replay 4 --horizon 30
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from worldmodel import media
from worldmodel.config.cli import run_entry_point
from worldmodel.config.settings import COUNT, SEED, Number
from worldmodel.data.store import EpisodeStore
from worldmodel.dreaming.actions import ACTIONS_HELP, check_horizon, parse_script
from worldmodel.dreaming.scenes import Place, Scene, check_place, random_place, replayed_scene, scripted_scene
from worldmodel.dreaming.stills import dream_stills
from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.metrics import psnr
from worldmodel.evaluation.openloop import reconstruct
from worldmodel.runs.folder import PRIOR, TOKENIZER, choose_run, load_config, load_spec, open_episodes
from worldmodel.runs.kind import has_past
from worldmodel.speech.codec import command as sound_codec
from worldmodel.speech.dream import dream_sound
from worldmodel.speech.voice import is_sound
from worldmodel.types import Spec
from worldmodel.world import Dream, WorldModel

DESCRIPTION = """\
Dream a video: the model sees a few recorded frames, then only actions.

  --actions forward,left              dream under actions of your choice
  --replay 4                          dream under those of a recorded episode, beside the truth and the reconstruction
  --convert in.wav --actions p226     of a run of speech: the same words in the voice of a speaker
  --actions p225 --seconds 3          of a run of speech: what its prior says in that voice
  --encode in.wav --kbps 3            of a codec: a bitstream (.wmc), what it decodes to, and both spectrograms
  --decode in.wmc                     of a codec: the sound of a bitstream
Without either, a held-out episode is replayed. A run of images has no time: --actions airplane,frog --samples 16 draws
as many pictures of each class. Writes an mp4, a gif and a contact sheet; the same seed gives the same
video. Frames the model was shown have a blue edge, dreamt ones an orange edge; step 0 is the last frame shown."""

REPLAY_STEPS = 60  # longest replay without --horizon
FEW = Number(least=1, most=1000, whole=True)  # seen frames or dreams at once; more is taken for a slip of the finger
REPORTED_STEPS = (1, 5, 10, 15, 30, 60)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--actions", metavar="SCRIPT", help=ACTIONS_HELP)
    what.add_argument(
        "--replay", metavar="EPISODE[:FRAME]", help="dream under the recorded actions of an episode, from a frame (0)"
    )
    what.add_argument("--encode", metavar="FILE", help="of a codec: a WAV or FLAC file to be written in few bits")
    what.add_argument("--decode", metavar="FILE", help="of a codec: a bitstream that the same run wrote")
    parser.add_argument(
        "--kbps",
        type=float,
        metavar="N",
        help="with --encode: as many codebooks as fit into N kbit/s at fixed width (default: all of them)",
    )
    parser.add_argument(
        "--entropy",
        choices=sound_codec.ENTROPY,
        help="with --encode: what shortens the stream. counts: of the training codes (kept in the run's folder, "
        "made at first use); prior: the run's, which reads back on a like machine only; none: fixed width; auto: the "
        "shortest (default)",
    )
    parser.add_argument(
        "--horizon",
        type=int,
        metavar="STEPS",
        help=f"steps to dream (default: the script once; a replay until its end, at most {REPLAY_STEPS})",
    )
    parser.add_argument(
        "--start",
        metavar="EPISODE[:FRAME]",
        help="where the seen frames begin; default: in a held-out episode, by seed",
    )
    parser.add_argument(
        "--context",
        type=int,
        metavar="FRAMES",
        help="number of seen frames (default: as many as the prior learnt with)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="dreams of one start, side by side (1), or pictures of a class (8)",
    )
    parser.add_argument("--convert", metavar="FILE", help="of speech: a WAV or FLAC file whose words are to be spoken")
    parser.add_argument("--seconds", type=float, metavar="S", help="of speech: length of what the prior says (3)")
    parser.add_argument(
        "--voice-temperature",
        type=float,
        default=1.0,
        help="of speech: of the decoder's samples; below 1 less noise, and duller (%(default)s)",
    )
    parser.add_argument("--seed", type=int, help="of the dream and of the default start (default: the setting)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="below 1 more likely frames, 0 the expected ones (%(default)s)",
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="draw each code from the K most likely ones only")
    parser.add_argument(
        "--sampler",
        default="auto",
        choices=("auto", "ancestral", "predictive"),
        help="both return the same codes; auto takes the faster one",
    )
    parser.add_argument(
        "--labels",
        default="arrows",
        choices=("arrows", "names", "none"),
        help="actions under the pictures (%(default)s)",
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        help=f"one file ({' '.join(media.SUFFIXES)}), a folder, or a name without suffix for all three",
    )


def dream(args: argparse.Namespace, config: DictConfig) -> None:
    """Load the run, choose the scene, imagine, write, report."""
    check_flags(args)
    seed = config.seed if args.seed is None else args.seed
    coding = args.encode is not None or args.decode is not None
    run = choose_run(args.overrides, config, holding=TOKENIZER if args.convert or coding else PRIOR)
    spec = load_spec(run)
    if is_sound(spec) and coding:
        sound_codec.code_sound(args, run, config.device)
        return
    if is_sound(spec):
        dream_sound(args, run, config.device, seed)
        return
    refuse_flags_of_sound(args, run)
    if not has_past(load_config(run)):
        dream_stills(args, run, config.device, seed)
        return
    if args.output is not None and Path(args.output).suffix:
        media.check_path(args.output)
    args.samples = args.samples or 1
    world = WorldModel.load(run, device=config.device)
    store = open_data(args.overrides, config, run, world.spec)
    usual = max(1, world.prior.context)
    context = usual if args.context is None else args.context
    scene = choose_scene(args, context, world.spec, store, np.random.default_rng(seed))
    started = time.perf_counter()
    dreamt = imagine(world, scene, args, seed)
    frames = dreamt.frames.cpu()  # (N, H, C, H, W); on the host, so that the clock has waited for the device
    seconds = time.perf_counter() - started
    paths = output_paths(args.output, run / "dreams", file_name(args, scene, seed, usual))
    title = f"{world.spec.env_id} · {args.actions or f'actions of episode {scene.place.episode}'} · seed {seed}"
    reconstruction = None if scene.truth is None else reconstruct(world, torch.cat([scene.seen, scene.truth]))
    strips = make_strips(world.spec, scene, frames, reconstruction)
    for path in paths:
        media.save(path, strips, world.spec.rate, args.labels, title)
    print(f"run       {run}")
    print("\n".join(describe(scene, dreamt, frames, reconstruction, seconds)))
    if args.horizon is not None and len(scene.actions) < args.horizon:
        print(f"note      the episode ends {len(scene.actions)} steps on; --horizon {args.horizon} asked for more")
    print("\n".join(f"{'written' if path is paths[0] else '':<10}{path}" for path in paths))


def refuse_flags_of_sound(args: argparse.Namespace, run: Path) -> None:
    """Raises :class:`ConfigError` for a flag that says nothing of a run of pictures."""
    for name in ("convert", "seconds", "encode", "decode"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} goes with sound, and the run {run.name} is of pictures; give --actions")


def check_flags(args: argparse.Namespace) -> None:
    """Raises :class:`ConfigError` for what is wrong whatever the run; before anything slow is loaded."""
    for flag, value, rule in (
        ("--context", args.context, FEW),
        ("--samples", args.samples, FEW),
        ("--temperature", args.temperature, Number(least=0)),
        ("--voice-temperature", args.voice_temperature, Number(above=0)),
        ("--top-k", args.top_k, COUNT),
        ("--seed", args.seed, SEED),
    ):
        if value is not None:
            rule.check(flag, value)
    sound_codec.check_flags(args)
    if args.horizon is not None:
        check_horizon(args.horizon)
    if args.start is not None and args.actions is None:
        raise ConfigError(
            f"--start {args.start} goes with --actions; a replay starts where --replay EPISODE:FRAME says"
        )


def open_data(overrides: Sequence[str], config: DictConfig, run: Path, spec: Spec) -> EpisodeStore:
    """The episodes that the run was trained on, or those of data=… when it was given on the command line.

    Raises :class:`DataError` when there are none or when they are not of the run's kind.
    """
    given = any(override.startswith("data=") for override in overrides)
    return open_episodes(run, spec, str(config.data) if given else None)


def choose_scene(
    args: argparse.Namespace, context: int, spec: Spec, store: EpisodeStore, rng: np.random.Generator
) -> Scene:
    """``context`` seen frames and the actions that the flags ask for. A damaged episode is set aside for another.

    Raises what :func:`~worldmodel.dreaming.actions.parse_script` and :mod:`worldmodel.dreaming.scenes` raise, and
    :class:`DataError` when the very episode that was asked for is damaged.
    """
    script = None if args.actions is None else parse_script(args.actions, spec).play(args.horizon)
    steps = REPLAY_STEPS if args.horizon is None else args.horizon
    asked = args.replay if script is None else args.start
    while True:
        behind = (0, 0) if script is not None else (1, steps)
        place = Place.parse(asked) if asked is not None else random_place(store, context, *behind, rng)
        check_place(store, place, context, behind[0])
        if not store.verify([place.episode]):
            break
        if asked is not None:
            raise DataError(
                f"episode {place.episode} is damaged and was set aside; choose another (those behind it move up by one)"
            )
    if script is not None:
        return scripted_scene(store, place, context, script)
    return replayed_scene(store, place, context, steps)


def imagine(world: WorldModel, scene: Scene, args: argparse.Namespace, seed: int) -> Dream:
    """``--samples`` dreams of one scene as a batch."""

    def batch(tensor: Tensor) -> Tensor:
        return tensor.expand(args.samples, *tensor.shape)

    return world.imagine(
        batch(scene.seen),
        batch(scene.actions),
        seen_actions=batch(scene.seen_actions),
        temperature=args.temperature,
        top_k=args.top_k,
        sampler=args.sampler,
        generator=torch.Generator(world.device).manual_seed(seed),
    )


def make_strips(spec: Spec, scene: Scene, frames: Tensor, reconstruction: Tensor | None) -> list[media.Strip]:
    """One strip a dream; before them the truth and its reconstruction where there is a truth.

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


def file_name(args: argparse.Namespace, scene: Scene, seed: int, context: int) -> str:
    """A name that tells dreams apart: what is dreamt, where it starts, and every setting that is not the default.

    ``context``: the prior's own.
    """
    what = re.sub(r"[^\w,*-]+", "", args.actions or "replay").replace("*", "").replace(",", "-")[:60]
    parts = [what, f"ep{scene.place.episode}.{scene.place.first}", f"h{len(scene.actions)}", f"seed{seed}"]
    for text, value, default in (
        ("t", args.temperature, 1.0),
        ("k", args.top_k, None),
        ("c", len(scene.seen), context),
        ("x", args.samples, 1),
    ):
        if value != default:
            parts.append(f"{text}{value:g}")
    return "-".join(parts)


def output_paths(output: str | None, folder: Path, name: str) -> list[Path]:
    """``--output`` with a suffix is one file, without one the stem of three, or a folder for them when there is one."""
    given = folder if output is None else Path(output)
    if output is not None and given.suffix:
        return [media.check_path(given)]
    stem = given / name if output is None or given.is_dir() else given
    return [stem.with_name(stem.name + suffix) for suffix in media.SUFFIXES]


def describe(
    scene: Scene, dreamt: Dream, frames: Tensor, reconstruction: Tensor | None, seconds: float
) -> Iterator[str]:
    """What was dreamt, how fast, and how near the truth it came, in a few lines."""
    seen, steps = len(scene.seen), len(scene.actions)
    of = "held out" if scene.held_out else "the model was trained on it"
    place = scene.place
    yield f"start     episode {place.episode} ({of}), frames {place.first} to {place.first + seen - 1} seen"
    count = f"{len(frames)} × {steps} frames" if len(frames) > 1 else f"{steps} frames"
    rate, passes = frames.shape[:2].numel() / seconds, float(dreamt.passes.mean())
    yield f"dreamt    {count} in {seconds:.2f} s: {rate:.0f} frames/s with decoding, {passes:.1f} head passes a frame"
    if scene.truth is not None and reconstruction is not None:
        near = psnr(frames, scene.truth.expand_as(frames)).mean(0)  # (H,) dB
        bound = psnr(reconstruction[seen:], scene.truth).mean()
        told = [f"{near[step - 1]:.1f} at {step}" for step in sorted({*REPORTED_STEPS, steps}) if step <= steps]
        yield f"PSNR      {', '.join(told)} dB; the tokenizer's own reconstruction {bound:.1f} dB"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_entry_point(dream, "dream", DESCRIPTION, add_flags, argv)


if __name__ == "__main__":
    sys.exit(main())
