"""Training: one optimisation loop, the objectives that it minimises, and the hooks that watch it."""
