"""Minari data sets of pictures and discrete actions, on disk, in HDF5 or Arrow."""

import importlib
import json
import warnings
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Space

from worldmodel.data.pictures import frame_shape, own_action_names, to_frames
from worldmodel.data.records import Item
from worldmodel.data.sources.base import Source, recorded_spec
from worldmodel.data.validate import READABLE, described, pixels, short
from worldmodel.errors import DataError
from worldmodel.types import NO_ACTION, Episode, Spec, plain_name
from worldmodel.util.files import expanded
from worldmodel.util.ranges import FramesPerSecond, Names, Pixels, Text

SPEC = "worldmodel_spec"
"""Key of an export's Spec in the metadata of a data set."""
PACKAGES = {"ALE/": "ale_py", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}  # prefix of an id → package


def package(name: str = "minari") -> ModuleType:
    """The package, or a module of it. Raises :class:`DataError` where it is not installed."""
    try:
        importlib.import_module("minari")
        return importlib.import_module(name)
    except ImportError as error:
        reason = f"Minari data sets need the Python package {error.name or name!r}, which is not installed"
        raise DataError(f"{reason}: pip install 'minari[hdf5]', with minari[arrow] for data sets in Arrow") from error


class Minari(Source):
    """The episodes of a Minari data set: a folder, or the id of a local data set.

    Observations are an image (uint8, channels last or first, or grey) or a Dict with one; ``observation`` names it if
    there are several. ``download`` fetches what is not on this machine. Nothing that a data set names is imported
    or built, but an environment that installed packages registered may be asked what its actions are called. Raises
    :class:`DataError` for a data set that is not there, is damaged, or is of something else.
    """

    def __init__(
        self,
        path: Text,
        name: Text = "minari",
        size: Pixels | None = None,
        observation: Text | None = None,
        action_names: Names | None = None,
        fps: FramesPerSecond | None = None,
        download: bool = False,
    ):
        self._data = _open(path, download)
        space = self._data.action_space
        if not isinstance(space, Discrete):
            raise DataError(f"{path} has actions {_short(space)}; only Discrete ones can be read")
        self._start, self._size = int(space.start), size
        self._part, shape = _picture(self._data.observation_space, observation, path, size)
        raw = self._data.storage.metadata.get(SPEC)
        known = Spec.from_json(json.dumps(raw)) if raw is not None else None
        self._ours = known is not None
        env = self._data.env_spec
        if action_names is None and known is None and env is not None:
            action_names = names_of(env.id, int(space.n))
        self.spec = recorded_spec(env.id if env else name, shape, int(space.n), known, action_names, fps)
        if len(self.spec.action_names) != space.n:
            raise DataError(f"{path} has {space.n} actions and {len(self.spec.action_names)} names were given")
        self._numbers = [int(number) for number in self._data.episode_indices]
        self.keys = [f"{self._data.id}/{number}" for number in self._numbers]

    def read(self, index: int) -> Item:
        number = self._numbers[index]
        try:
            (stored,) = self._data.iterate_episodes([number])
            (facts,) = self._data.storage.get_episode_metadata([number])
            episode = self._episode(stored, int(facts["total_steps"]), facts)
        except Exception as error:  # h5py and pyarrow may raise anything for invalid files
            raise DataError(f"episode {number} of {self._data.id} cannot be read ({error})") from error
        return Item(episode, bool(facts["held_out"]) if self._ours else None, self.keys[index])

    def _episode(self, stored: Any, length: int, facts: dict[str, Any]) -> Episode:
        """Raises ValueError when the parts do not fit together."""
        pictures = stored.observations if self._part is None else stored.observations[self._part]
        frames = to_frames(pixels(pictures, "its frames"), self._size)
        parts = stored.rewards, stored.terminations, stored.truncations
        rewards, terminations, truncations = (np.asarray(part).reshape(-1) for part in parts)
        actions = np.asarray(stored.actions)
        if actions.dtype.kind not in "iu":
            raise ValueError(f"its actions are {described(actions)}, not whole numbers")
        actions = actions.astype(np.int64).reshape(-1) - self._start
        counts = {len(frames) - 1, len(actions), len(rewards), len(terminations), len(truncations)}
        if counts != {length}:
            raise ValueError(f"of {length} steps, its parts have {', '.join(map(str, sorted(counts)))}")
        if (terminations | truncations)[:-1].any():
            raise ValueError("it ends before its last step")
        terminated, truncated = bool(terminations[-1:].any()), bool(truncations[-1:].any())
        condition = int(facts["condition"]) if self._ours else NO_ACTION
        return Episode.from_steps(frames, actions, rewards, terminated, truncated, condition)


def _open(path: str, download: bool) -> Any:
    """The data set in a folder, or known by an id."""
    minari = package()
    folder = expanded(path)
    try:
        if not folder.is_dir():
            if download:
                minari.load_dataset(path, download=True)
            folder = package("minari.storage").get_dataset_path(path)
        if not (folder / "metadata.json").is_file():
            folder /= "data"
        facts = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = "source.path=… names a folder or an id that minari list local shows"
        raise DataError(f"there is no Minari data set {path}; {known}, and source.download=true fetches one") from error
    except Exception as error:  # of the network, or of what stands in the file
        raise DataError(f"the Minari data set {path} cannot be read ({error})") from error
    # Minari would build the environment that the file describes, which may be any module.
    if missing := {"observation_space", "action_space"} - set(facts):
        raise DataError(f"{path} does not state its {', '.join(sorted(missing))}; a newer Minari writes them")
    try:
        return minari.MinariDataset(folder.resolve())
    except ImportError as error:
        raise DataError(f"{path} is in {facts.get('data_format')}: {error}") from error
    except Exception as error:
        raise DataError(f"the Minari data set {path} cannot be read ({error})") from error


def _picture(
    space: Space[Any], wanted: str | None, path: str, size: int | None
) -> tuple[str | None, tuple[int, int, int]]:
    """The key of the image in an observation (None: the observation itself), and the shape of its frame."""
    parts = dict(space.spaces) if isinstance(space, Dict) else {None: space}
    shapes = {
        key: shape
        for key, part in parts.items()
        if isinstance(part, Box) and part.dtype == np.uint8 and (shape := frame_shape(part.shape, size))
    }
    if wanted is not None and wanted not in shapes:
        raise DataError(f"{path} has no picture {wanted!r}; choose {', '.join(map(str, shapes)) or 'another data set'}")
    if not shapes:
        raise DataError(f"{path} has observations {_short(space)}, no {READABLE}")
    if len(shapes) > 1 and wanted is None:
        raise DataError(f"{path} has several pictures; choose with source.observation={'|'.join(map(str, shapes))}")
    key = wanted if wanted is not None else next(iter(shapes))
    return key, shapes[key]


def _short(space: Space[Any]) -> str:
    return short(" ".join(str(space).split()))


def names_of(env_id: str, count: int) -> tuple[str, ...] | None:
    """What an environment that is installed calls its ``count`` actions; None where that cannot be known."""
    try:
        for start, registrar in PACKAGES.items():
            if env_id.startswith(start):
                importlib.import_module(registrar)
        if env_id not in gymnasium.registry:  # a file may only build registered environments
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = gymnasium.make(env_id, disable_env_checker=True)
        names = own_action_names(env, range(count))
        env.close()
    except Exception:  # an environment may raise anything; actions are numbered then
        return None
    return tuple(map(plain_name, names)) if len(names) == count else None
