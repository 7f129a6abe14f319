"""worldmodel: an action-conditioned latent world model for reinforcement-learning environments.

Importing it registers the dream of a run with gymnasium: ``gymnasium.make("worldmodel/Dream-v0", run=…)``.
"""

import gymnasium

__version__ = "0.1.0"

gymnasium.register(
    id="worldmodel/Dream-v0",
    entry_point="envs.dream:DreamEnv",
    vector_entry_point="envs.dream_vector:DreamVectorEnv",
    order_enforce=False,  # it says itself, in one line, what must come before a step
)
