"""Dream a video: the model receives a few recorded frames, then only actions. Without --actions and
--replay, a held-out episode is replayed. Writes an mp4, a gif and a contact sheet; seen frames
have a blue edge, dreamt frames an orange edge; step 0 is the last seen frame.

A script of actions is 'forward*12,left*4', or 'forward,left' for 8 steps of each action. With
--horizon the script is repeated until the dream has this number of steps.

  python -m worldmodel.dream --replay 4 --horizon 30
"""

import argparse
import sys
import time
from typing import Annotated

from annotated_types import Ge, Le

from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import Few, add_number, add_output, add_sampling, add_seed
from worldmodel.dreaming.actions import MAX_STEPS, REPEAT
from worldmodel.errors import ConfigError
from worldmodel.util.output import VIDEO_SUFFIXES, output_of

MOVED = {
    "--convert": "a command: python -m worldmodel.convert FILE --speakers …",
    "--seconds": "a flag of python -m worldmodel.speak",
    "--voice-temperature": "a flag of python -m worldmodel.speak and convert",
    "--encode": "a command: python -m worldmodel.codec encode FILE",
    "--decode": "a command: python -m worldmodel.codec decode FILE",
    "--kbps": "a flag of python -m worldmodel.codec encode FILE",
    "--entropy": "a flag of python -m worldmodel.codec encode FILE",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    script = f"actions of the dream ({REPEAT} steps of each if no number is given)"
    what.add_argument("--actions", metavar="SCRIPT", help=script)
    replay = "dream under the actions of an episode, beside its recorded frames"
    what.add_argument("--replay", metavar="EPISODE[:FRAME]", help=replay)
    steps = Annotated[int, Ge(1), Le(MAX_STEPS)]
    add_number(parser, "--horizon", steps, "steps of the dream (the script once; a replay to its end, at most 60)")
    start = "with --actions: first seen frame (held out, chosen by the seed)"
    parser.add_argument("--start", metavar="EPISODE[:FRAME]", help=start)
    add_number(parser, "--context", Few, "number of seen frames (as in training, and those in the memory)")
    add_number(parser, "--samples", Few, "number of dreams from the same start, side by side (1)", 1)
    add_number(parser, "--mean-of", Few, "show the mean of this number of dreams: what is uncertain is blurred")
    add_sampling(parser)
    add_seed(parser)
    labels = ("arrows", "names", "none")
    parser.add_argument("--labels", default=labels[0], choices=labels, help="how actions are shown (arrows)")
    add_output(parser, VIDEO_SUFFIXES)


@entry_point("dream", __doc__, add_flags, moved=MOVED)
def main(args: argparse.Namespace, config: Config) -> None:
    """Load the run, choose the scene, imagine, write, report."""
    if args.start is not None and args.actions is None:
        raise ConfigError(
            f"--start {args.start} goes with --actions; --replay EPISODE:FRAME states where a replay starts"
        )
    if args.mean_of is not None and args.temperature == 0:
        raise ConfigError(
            f"--mean-of {args.mean_of}: all dreams at temperature 0 are equal; give a higher --temperature"
        )
    if args.mean_of is not None and args.samples > 1:
        raise ConfigError(f"--mean-of {args.mean_of} shows one mean, --samples {args.samples} dreams: give one of them")

    from worldmodel.dreaming import videos  # only now, since it imports torch
    from worldmodel.runs.folder import PRIOR, given_data, open_episodes
    from worldmodel.runs.kind import Kind, choose_run
    from worldmodel.world import WorldModel

    run = choose_run(args.overrides, config, PRIOR, Kind.WORLD)
    world = WorldModel.load(run, device=config.device)
    store = open_episodes(run, world.spec, given_data(args.overrides, config))
    usual = max(1, world.prior.context)
    context, earlier = (args.context, 0) if args.context else (usual, videos.remembered(world.prior, usual))
    chosen = videos.Choice(args.actions, args.replay, args.start, args.horizon, context, config.seed, earlier)
    scene = videos.choose_scene(chosen, world.spec, store)
    options = ("t", args.temperature, 1.0), ("k", args.top_k, None), ("c", chosen.context, usual)
    name = videos.file_name(chosen, scene, *options, ("x", args.samples, 1), ("mean", args.mean_of, None))
    paths = output_of(args.output, run / "dreams", name, VIDEO_SUFFIXES).paths(VIDEO_SUFFIXES)
    started = time.perf_counter()
    samples = args.mean_of or args.samples
    dreamt = videos.imagine(world, scene, samples, config.seed, args.temperature, args.top_k, args.sampler)
    frames = dreamt.frames if args.mean_of is None else dreamt.mean_frames(samples)
    frames = frames.cpu()  # (N, H, C, H, W); on the host, so that the clock has waited for the device
    seconds = time.perf_counter() - started
    reconstruction = videos.reconstruction(world, scene)
    caption = f"mean of {samples} dreams" if args.mean_of else "dream"
    videos.save(paths, world.spec, scene, frames, reconstruction, args.labels, chosen, caption)
    print(f"run       {run}")
    print("\n".join(videos.describe(scene, dreamt, frames, reconstruction, seconds)))
    if args.horizon is not None and len(scene.actions) < args.horizon:
        print(f"note      the episode ends {len(scene.actions)} steps on; --horizon {args.horizon} is longer")
    print("\n".join(f"{'written' if path is paths[0] else '':<10}{path}" for path in paths))


if __name__ == "__main__":
    sys.exit(main())
