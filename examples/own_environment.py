"""Record an environment of your own, train a world model of it, and dream::

    python examples/own_environment.py [key=value …]

It takes about five minutes on two CPU cores. The episodes are written to data/, the run and its dreams to runs/.
"""

import sys

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from worldmodel import collect, dream, train

MOVES = ((0, 0), (0, -4), (0, 4), (-4, 0), (4, 0))  # (x, y) in pixels


class Squares(gymnasium.Env):
    """The agent moves a green square to a red square."""

    metadata = {"action_names": ["noop", "up", "down", "left", "right"], "render_fps": 10}  # noqa: RUF012
    observation_space = Box(0, 255, (64, 64, 3), np.uint8)
    action_space = Discrete(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.agent, self.goal = self.np_random.integers(4, 60, (2, 2))
        self.steps = 0
        return self.frame(), {}

    def step(self, action):
        self.agent = np.clip(self.agent + MOVES[action], 4, 60)
        self.steps += 1
        terminated = bool(abs(self.agent - self.goal).max() < 6)
        return self.frame(), float(terminated), terminated, self.steps >= 100, {}

    def frame(self):
        frame = np.full((64, 64, 3), 40, np.uint8)
        for (x, y), colour in ((self.goal, (220, 60, 60)), (self.agent, (60, 200, 90))):
            frame[y - 4 : y + 4, x - 4 : x + 4] = colour
        return frame


if "Squares-v0" not in gymnasium.registry:  # Python loads this file twice: as the script and as the module in env.id
    gymnasium.register("Squares-v0", Squares)

SETTINGS = ["env=gym", "env.id=own_environment:Squares-v0", "tokenizer=vqvae_4x4"]
BUDGETS = ["collect.steps=20000", "training.tokenizer.max_seconds=90", "training.prior.max_seconds=180"]


def main(*settings):
    """Run three commands; each returns 0, or prints what is wrong and returns another exit code."""
    words = [*SETTINGS, *BUDGETS, *settings]
    return collect.main(words) or train.main(words) or dream.main([*words, "--actions", "right*10,down*10"])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
