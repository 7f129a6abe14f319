"""MiniWorld without a display: first-person 3-D environments, rendered by OpenGL at the recorded size."""

import contextlib
import io
import os
from typing import Any

import gymnasium

from worldmodel.config.checks import checked
from worldmodel.envs.discrete import discrete
from worldmodel.errors import EnvError
from worldmodel.util.ranges import Pixels, Text

os.environ.setdefault("PYGLET_HEADLESS", "True")  # pyglet reads it when it is imported; EGL needs no X server
_ACTION_NAMES = {"turn_left": "left", "turn_right": "right", "move_forward": "forward", "move_back": "backward"}


class MiniWorldEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment of MiniWorld by its own id; observations are (size, size, 3) uint8, actions have the usual names.

    Further settings are those of the environment. Raises :class:`EnvError` if OpenGL is missing. The environment must
    not be forked.
    """

    @checked
    def __init__(self, task: Text, size: Pixels = 64, render_mode: str | None = None, **settings: Any):
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints the number of samples per pixel
                import miniworld  # noqa: F401 (registers the environments)

                env = gymnasium.make(
                    task, obs_width=size, obs_height=size, render_mode=render_mode, disable_env_checker=True, **settings
                )
        except ModuleNotFoundError:
            raise
        except ImportError as error:  # raised by pyglet for missing system libraries
            reason = " ".join(str(error).split())
            raise EnvError(f"MiniWorld draws with OpenGL, which is missing ({reason}); {REMEDY}") from error
        except Exception as error:
            if not type(error).__module__.startswith("pyglet"):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise EnvError(f"MiniWorld draws with OpenGL, which does not start ({reason}); {REMEDY}") from error
        super().__init__(env)
        count = len(discrete(env.action_space, None, task))  # an environment uses the first of all actions of MiniWorld
        names = [action.name for action in env.get_wrapper_attr("actions")][:count]
        self.metadata = {**env.metadata, "action_names": tuple(_ACTION_NAMES.get(name, name) for name in names)}


REMEDY = "install EGL and GLU, on Debian: apt install libegl1 libglu1-mesa libgl1"
