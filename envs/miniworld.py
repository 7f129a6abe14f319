"""MiniWorld without a screen: first person, in rooms, drawn by OpenGL at the size that is recorded."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

import gymnasium
from worldmodel.envs.discrete import discrete

from worldmodel.config.checks import checked
from worldmodel.errors import EnvError
from worldmodel.util.ranges import Pixels, Text

os.environ.setdefault("PYGLET_HEADLESS", "True")  # pyglet reads it when it is imported; EGL needs no X server
_CALLED = {"turn_left": "left", "turn_right": "right", "move_forward": "forward", "move_back": "backward"}


class MiniWorldEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment of MiniWorld by its own id; observations are (size, size, 3) uint8, actions named as elsewhere.

    Further settings are the environment's own. Raises :class:`EnvError` in one line where OpenGL is missing. Not to be
    forked: processes that record are spawned.
    """

    @checked
    def __init__(self, task: Text, size: Pixels = 64, render_mode: str | None = None, **settings: Any):
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints how many samples a pixel it settles for
                import miniworld  # noqa: F401 (registers the environments)

                env = gymnasium.make(
                    task, obs_width=size, obs_height=size, render_mode=render_mode, disable_env_checker=True, **settings
                )
        except ModuleNotFoundError:
            raise
        except ImportError as error:  # pyglet's, of the libraries of the system
            reason = " ".join(str(error).split())
            raise EnvError(f"MiniWorld draws with OpenGL, which is missing ({reason}); {REMEDY}") from error
        except Exception as error:
            if not type(error).__module__.startswith("pyglet"):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise EnvError(f"MiniWorld draws with OpenGL, which does not start ({reason}); {REMEDY}") from error
        super().__init__(env)
        count = len(discrete(env.action_space, None, task))  # the first so many of all that MiniWorld has
        names = [action.name for action in env.get_wrapper_attr("actions")][:count]
        self.metadata = {**env.metadata, "action_names": tuple(_CALLED.get(name, name) for name in names)}


REMEDY = "install EGL and GLU, on Debian: apt install libegl1 libglu1-mesa libgl1"
