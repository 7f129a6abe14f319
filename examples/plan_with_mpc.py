"""Play an episode with a planner, and compare the reward that it planned with the reward that it obtained::

    python examples/plan_with_mpc.py [RUN [STEPS]]

RUN is the folder of a run, such as the one that python -m worldmodel.quickstart trains. A step takes about half a
second on a CPU.
"""

import sys

import numpy as np

from worldmodel.agents.mpc import MPCAgent
from worldmodel.runs.data import env_maker


def main(run="runs/my_way_home-1", steps=100):
    """Play at most ``steps`` steps in the environment that the run was trained on."""
    env = env_maker(run)()  # its observations are (C, H, W) uint8 frames of the run's size
    agent = MPCAgent(run, candidates=16, horizon=8, iterations=2, elites=4)

    frame, _ = env.reset(seed=0)
    agent.begin(env.data_spec.action_names, np.random.default_rng(0))
    planned, obtained = [], []
    terminated = truncated = False
    while not (terminated or truncated) and len(obtained) < int(steps):
        action = agent.act(frame)
        plan = agent.plan  # its rewards and probabilities of the end, (8,), are those of the next eight steps
        reached = np.concatenate([[1.0], np.cumprod(1 - plan.ends)[:-1]])  # probability that a step takes place
        planned.append(plan.rewards * reached)
        frame, reward, terminated, truncated, _ = env.step(action)
        obtained.append(reward)
    env.close()

    end = "the environment ended the episode" if terminated or truncated else "the limit of steps was reached"
    print(f"return {sum(obtained):.3f} in {len(obtained)} steps; {end}")
    print("steps ahead   planned reward   obtained reward   (sums, mean over the episode)")
    for ahead in (1, 4, 8):
        starts = range(len(obtained) - ahead + 1)
        if starts:
            expected = np.mean([planned[start][:ahead].sum() for start in starts])
            received = np.mean([sum(obtained[start : start + ahead]) for start in starts])
            print(f"{ahead:11}{expected:17.3f}{received:18.3f}")
    return obtained


if __name__ == "__main__":
    main(*sys.argv[1:])
