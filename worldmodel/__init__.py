"""worldmodel: an action-conditioned latent world model for reinforcement-learning environments."""

__version__ = "0.1.0"
