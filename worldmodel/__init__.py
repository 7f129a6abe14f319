"""worldmodel: an action-conditioned latent world model for reinforcement-learning environments.

Importing it registers the dream of a run with gymnasium: ``gymnasium.make("worldmodel/Dream-v0", run=…)``.
"""

import os
import sys
from pathlib import Path

# Idle threads of torch spin for a long time on the cores that another process could use, which slows processes on the
# same cores (docs/benchmarks.md). OpenMP reads this when torch is loaded.
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2500")

import gymnasium

__version__ = "0.1.0"
IMPORTED_IN = os.getpid()  # of the process that imported the package; its forks have another number

# In a checkout the subpackages envs, agents and configs are folders of the repository's root (pyproject.toml maps
# them into the package); without this a checkout that is not installed could not import them.
_root = Path(__file__).resolve().parents[1]
if not (Path(__file__).parent / "configs").is_dir() and (_root / "configs").is_dir():
    __path__.append(str(_root))

gymnasium.register(
    id="worldmodel/Dream-v0",
    entry_point="worldmodel.envs.dreams:DreamEnv",
    vector_entry_point="worldmodel.envs.dream_vector:DreamVectorEnv",
    order_enforce=False,  # its own error names, in one line, what must come before a step
)
