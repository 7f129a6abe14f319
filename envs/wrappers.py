"""Wraps any gymnasium environment with images as a source of (C, H, W) uint8 frames with numbered actions."""

import dataclasses
import operator
import os
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from worldmodel.config.checks import checked
from worldmodel.data import validate
from worldmodel.data.pictures import frame_shape, own_action_names, resize
from worldmodel.envs.discrete import Actions, discrete
from worldmodel.errors import DataError, EnvError, UnknownActionError, WorldModelError
from worldmodel.types import DEFAULT_RATE, Info, Spec
from worldmodel.util.ranges import MOST_FPS, Names, PassedTo, Pixels, Text

# Prefix of an id → package that registers it.
_PACKAGES = {"ALE/": "ale_py", "MiniGrid-": "minigrid", "BabyAI-": "minigrid", "MiniWorld-": "miniworld"}
_CONTRACT = {
    "reset": "reset(*, seed=None, options=None) → (observation, info)",
    "step": "step(action) → (observation, reward, terminated, truncated, info)",
    "render": "render() → an image (H, W, 3) uint8, with render_mode rgb_array",
}
_RESULTS = {"reset": 2, "step": 5}
_INSTALLED_AS = {"ale_py": "ale-py", "minigrid": "minigrid", "miniworld": "miniworld", "crafter": "crafter"}

_OWN = "if your own module registers it, name the module, which is then imported: env.id=my_module:{id}"


@dataclasses.dataclass
class _Moment:
    """Where an environment is, for error messages."""

    env_id: str
    seed: int | None = None
    step: int = 0

    def __str__(self) -> str:
        return f"{self.env_id}, step {self.step} of the episode with seed {self.seed}"


class FrameEnv(gymnasium.Wrapper[np.ndarray, int, Any, Any]):
    """An environment whose observations are (C, size, size) uint8 frames; :attr:`data_spec` describes its data.

    ``source`` is the ``"observation"`` (an image or a dict that holds one) or the ``"render"`` of the environment, for
    environments with other observations. Actions are numbered; ``actions`` selects them, see
    :mod:`worldmodel.envs.discrete`. Raises :class:`EnvError` for actions that cannot be numbered, a source without an
    image and a size below 1.

    What the environment returns is checked (:mod:`worldmodel.data.validate`): :meth:`reset` and :meth:`step` raise
    :class:`DataError`, with the method and what gymnasium expects, for what cannot be recorded, and
    :class:`UnknownActionError`.
    """

    @checked
    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        size: Pixels,
        source: Literal["observation", "render"] = "observation",
        action_names: Names | None = None,
        env_id: str | None = None,  # id passed to gymnasium.make, with the module before the colon
        env_kwargs: Mapping[str, Any] | None = None,  # settings passed to it; None: those of env.spec
        actions: Mapping[str, Any] | None = None,
    ):
        super().__init__(env)
        self.size, self.source = size, source
        env_id = env_id or (env.spec.id if env.spec else type(env.unwrapped).__name__)
        self._moment = _Moment(env_id)
        self._actions = discrete(env.action_space, actions, env_id)
        self._key: str | None = None
        self._channels_first = False
        if source == "observation":
            self._key, shape = _find_picture(env.observation_space, env_id)
            self._channels_first = validate.channel_axis(shape) == 0
            channels = shape[0] if self._channels_first else (*shape, 1)[2]
        else:
            if env.render_mode != "rgb_array":
                raise EnvError(f"{env_id} cannot render images; choose an environment with render_mode rgb_array")
            channels = 3
        self.observation_space = Box(0, 255, (channels, size, size), np.uint8)
        self.action_space = Discrete(len(self._actions))  # type: ignore[assignment]
        names = _action_names(env, self._actions, action_names, env_id)
        settings = dict(env_kwargs if env_kwargs is not None else env.spec.kwargs if env.spec else {})
        self.data_spec = Spec(env_id, (channels, size, size), names, _rate(env, env_id), settings)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        self._moment.seed, self._moment.step = seed, 0
        observation, info = self._call("reset", seed=seed, options=options)
        return self._frame(observation), info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Info]:
        moment = self._moment
        moment.step += 1
        try:
            number = operator.index(action)
        except TypeError:  # such as 1.0 or an array
            number = -1
        if not 0 <= number < len(self._actions.values):
            raise UnknownActionError(action, self.data_spec.action_names)
        observation, reward, terminated, truncated, info = self._call("step", self._actions.values[number])
        frame, reward = self._frame(observation), validate.reward(reward, moment)
        terminated = validate.flag(terminated, moment, "terminated")
        return frame, reward, terminated, validate.flag(truncated, moment, "truncated"), info

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What ``reset``, ``step`` or ``render`` returns; for the first two, a tuple of as many values as gymnasium
        states, the last one a dict."""
        try:
            result = getattr(self.env, method)(*args, **kwargs)
        except (WorldModelError, gymnasium.error.Error, OSError, MemoryError):
            raise
        except Exception as error:  # an environment may raise anything
            last = list(traceback.walk_tb(error.__traceback__))[-1][0]
            module, place = str(last.f_globals.get("__name__")), f"{last.f_code.co_filename}, line {last.f_lineno}"
            if not module.startswith((__name__, "gymnasium.core", "gymnasium.wrappers")):
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise WorldModelError(f"{self._moment}: {method}() raised {reason} ({place})") from error
            reason = f"cannot be called ({error})"  # or gymnasium cannot use what it returned
        else:
            whole = isinstance(result, tuple) and len(result) == _RESULTS.get(method)
            if method == "render" or (whole and isinstance(result[-1], dict)):
                return result
            reason = f"returned {validate.described(result[-1] if whole else result)}{' as info' * whole}"
        raise DataError(f"{self._moment}: {method}() {reason}; gymnasium expects {_CONTRACT[method]}")

    def _frame(self, observation: Any) -> np.ndarray:
        what = "the observation is"
        if self.source == "render":
            observation, what = self._call("render"), "render() returned"
            if not hasattr(observation, "dtype"):
                reason = f"{self._moment}: render() returned {validate.described(observation)}"
                raise DataError(f"{reason}; gymnasium expects {_CONTRACT['render']}")
        elif self._key is not None:
            if not isinstance(observation, Mapping) or self._key not in observation:
                reason = f"{self._moment}: the observation is {validate.described(observation)}"
                raise DataError(f"{reason}, without the image {self._key!r} of the observation space")
            observation = observation[self._key]
        picture = validate.pixels(observation, self._moment, what)
        shape = picture.shape
        if picture.ndim == 2:
            picture = picture[..., None]
        if self._channels_first and picture.ndim == 3:
            picture = picture.transpose(1, 2, 0)
        if picture.ndim != 3 or picture.shape[2] != self.data_spec.frame_shape[0] or not picture.size:
            wanted = f"{self.data_spec.frame_shape[0]} channels; fix it, or wrap it"
            space = "gymnasium expects (H, W, 3)," if self.source == "render" else "its space has"
            raise DataError(f"{self._moment}: {what} an image of shape {shape}, but {space} {wanted}")
        # A copy in any case, because an environment may return the same array in every step.
        return np.array(resize(picture, self.size).transpose(2, 0, 1), order="C")


def _rate(env: gymnasium.Env[Any, Any], env_id: str) -> float:
    """Frames a second according to the metadata. Raises :class:`EnvError` for what is none."""
    rate = (env.metadata or {}).get("render_fps") or DEFAULT_RATE
    try:
        if 0 < float(rate) <= MOST_FPS:
            return float(rate)
    except (TypeError, ValueError):
        pass
    raise EnvError(f"{env_id} has metadata with render_fps {rate!r}; it must be a number above 0")


def _render_without_display(module: str | None) -> None:
    """Prepares what renders on a machine without a display, where a program cannot have windows of its own."""
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if module == "miniworld" or not display:
        os.environ.setdefault("PYGLET_HEADLESS", "True")  # read when pyglet is imported
    if not display:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # without it, SDL reports an error


@checked
def make_frames(
    id: Text,
    kwargs: Annotated[Mapping[str, Any], PassedTo(by_id=True)] | None = None,
    size: Pixels = 64,
    source: Literal["observation", "render"] = "observation",
    action_names: Names | None = None,
    actions: Mapping[str, Any] | None = None,
) -> FrameEnv:
    """Make an environment by its gymnasium id and wrap it in :class:`FrameEnv`.

    ``action_names`` (one per action) replaces the environment's names, ``actions`` selects actions. Raises
    :class:`EnvError` in one line for an unknown id, a missing package, settings that the environment rejects, and as
    :class:`FrameEnv` does.
    """
    id, settings = str(id), dict(kwargs or {})
    if source == "render":
        settings.setdefault("render_mode", "rgb_array")
    module = next((module for start, module in _PACKAGES.items() if id.startswith(start)), None)
    _render_without_display(module)
    full_id = f"{module}:{id}" if module else id
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gymnasium warns about newer versions of the environment
            env = gymnasium.make(full_id, disable_env_checker=True, **settings)
    except WorldModelError:
        raise
    except ModuleNotFoundError as error:
        name = error.name or full_id.partition(":")[0]  # gymnasium's own error lacks the name
        hint = f": pip install {_INSTALLED_AS[name]}" if name in _INSTALLED_AS else ""
        raise EnvError(f"environment {id!r} needs the Python package {name!r}, which is not installed{hint}") from error
    except (gymnasium.error.Error, ImportError, TypeError, ValueError, AssertionError, KeyError) as error:
        unknown = isinstance(error, gymnasium.error.UnregisteredEnv) and ":" not in full_id
        hint = f"; {_OWN.format(id=id)}" if unknown else ""
        raise EnvError(f"cannot make environment {id!r}: {' '.join(str(error).split())}{hint}") from error
    except Exception as error:  # of the environment's own making: its module or its constructor may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise EnvError(f"cannot make environment {id!r}: {reason}") from error
    try:
        return FrameEnv(env, size, source, action_names, full_id, settings, actions)
    except Exception:
        env.close()
        raise


def _find_picture(space: gymnasium.Space[Any], env_id: str) -> tuple[str | None, tuple[int, ...]]:
    """The key of the image in a dict observation, or None if the observation is the image, and its shape."""
    spaces = space.spaces if isinstance(space, Dict) else {None: space}
    pictures = [(key, part.shape) for key, part in spaces.items() if isinstance(part, Box) and _is_picture(part)]
    if not pictures:
        reason = f"{env_id} observes {' '.join(str(space).split())[:160]}, no {validate.READABLE}"
        raise EnvError(f"{reason}; env.source=render records the rendered frames instead")
    if len(pictures) > 1:
        raise EnvError(f"{env_id} observes several images ({', '.join(str(key) for key, _ in pictures)}); wrap it")
    return pictures[0]


def _is_picture(box: Box) -> bool:
    return box.dtype == np.uint8 and frame_shape(box.shape) is not None


def _action_names(
    env: gymnasium.Env[Any, Any], actions: Actions, given: Sequence[str] | None, env_id: str
) -> tuple[str, ...]:
    """The given names, or those of the environment, or numbers.

    The environment's names apply only to its own actions; other actions have their own names.
    """
    count = len(actions)
    names = list(map(validate.action_name, given or ()))
    if given is None and actions.native:
        try:
            names = own_action_names(env, actions.values)
        except (TypeError, ValueError, AttributeError) as error:
            reason = f"{env_id} gives no list of the names of its actions ({error})"
            raise EnvError(f"{reason}; env.action_names=[…] gives them") from error
    names = names or list(actions.names)
    if len(names) != count or len(set(names)) != count:
        fault = f"{env_id} has {count} actions, which need as many different names"
        raise EnvError(f"{fault}; got {', '.join(names)}: give them with env.action_names=[…]")
    return tuple(names)
