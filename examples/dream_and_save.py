"""Dream on from recorded frames, print the expected rewards, and save a video and a contact sheet::

    python examples/dream_and_save.py [RUN [OUTPUT]]

RUN is the folder of a run, such as the one that python -m worldmodel.quickstart trains; OUTPUT is a file name without
suffix.
"""

import sys

import torch

from worldmodel.runs.folder import open_episodes
from worldmodel.world import WorldModel

HORIZON = 20


def main(run="runs/my_way_home-1", output="dream"):
    """Dream a part of a held-out episode under the actions that were recorded."""
    world = WorldModel.load(run)
    store = open_episodes(run, world.spec)  # the episodes that the run was trained on
    held_out = store.split("held_out")
    episode = store.episode(held_out[store.frame_counts[held_out].argmax()])  # the longest of them

    # actions[t] led to frames[t]: the model receives the first frames, and dreams under the actions after them.
    seen = max(1, min(world.prior.context, len(episode.actions) // 2))
    actions = episode.actions[seen : seen + HORIZON]
    dream = world.imagine(
        torch.tensor(episode.frames[:seen]),
        actions,  # or names: ["forward"] * 20
        seen_actions=episode.actions[:seen],
        temperature=1.0,
        generator=torch.Generator(world.device).manual_seed(0),
    )
    print("step  action        reward: dreamt  recorded   probability of the end")
    rows = zip(actions, dream.rewards[0], episode.rewards[seen:], dream.ends[0], strict=False)
    for step, (action, dreamt, recorded, end) in enumerate(rows, 1):
        print(f"{step:4}  {world.spec.action_names[action]:<14}{dreamt:14.3f}{recorded:10.3f}{end:14.3f}")

    difference = dream.frames[0].cpu().float() - torch.tensor(episode.frames[seen : seen + HORIZON])
    print(f"mean absolute difference from the recorded frames: {difference.abs().mean():.1f} of 255")
    for suffix in (".mp4", ".png"):
        print(f"written {dream.save(output + suffix)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
