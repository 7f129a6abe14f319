"""ViZDoom as a gymnasium environment: headless, software rendering, named actions, terminations and truncations.

It uses ``DoomGame`` directly because ViZDoom's own gymnasium classes return a black frame at the end of an episode,
report a timeout as terminal, and number the buttons in reverse order.
"""

import os
import re
import shlex
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
import vizdoom
from annotated_types import Ge, Len, Lt
from vizdoom import GameVariable, ScreenFormat, ScreenResolution

from worldmodel.config.checks import checked
from worldmodel.data.pictures import resize
from worldmodel.envs.buttons import make_actions
from worldmodel.errors import EnvError
from worldmodel.types import POSE, Info
from worldmodel.util.ranges import Count, Pixels, Positive

_POSE = (GameVariable.POSITION_X, GameVariable.POSITION_Y, GameVariable.ANGLE)
# Strafing looks similar to turning and is not needed to reach every position, so the default scenario omits it.
_BUTTONS: dict[str, tuple[str, ...]] = {"my_way_home": ("MOVE_FORWARD", "TURN_LEFT", "TURN_RIGHT")}
_GAUGES = ((255, 72, 72), (255, 208, 64), (80, 160, 255), (255, 255, 255))  # colours of the first, the second, …
_GAUGE_HEIGHT = 8  # a gauge has 1/8 of the height, like Doom's status bar and one row of 8 × 8 codes
_RESOLUTIONS = {120: ScreenResolution.RES_160X120, 240: ScreenResolution.RES_320X240, 480: ScreenResolution.RES_640X480}


class VizdoomEnv(gymnasium.Env[np.ndarray, Any]):
    """One scenario of ViZDoom. Observations are (size, size, 3) uint8, actions are Discrete: no-op, then one per
    button, then combinations. A frame is the view without status bar, numbers, crosshair and messages. Each of
    ``gauges`` adds a bar at the bottom, whose length is the variable's fraction of its full value. At a terminal state
    the frame and the gauges are those of the previous step.

    ``info["worldmodel_pose"]`` is (x, y, angle): the position in map units and the heading in degrees.

    Raises :class:`EnvError` for an unknown scenario, button or variable, and from :meth:`step` if the engine died; the
    next :meth:`reset` starts a new engine.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own declaration)

    @checked
    def __init__(
        self,
        scenario: str = "my_way_home",
        size: Pixels = 64,
        frame_skip: Count = 4,  # tics for which an action is repeated; Doom has 35 per second
        turn_degrees: Annotated[float, Ge(0), Lt(180)] = 15.0,  # per action; 0 keeps Doom's own turning
        buttons: Sequence[str] | None = None,  # names of ViZDoom's buttons; None: those of the scenario
        combine: bool | Sequence[Annotated[Sequence[str], Len(2)]] | None = None,  # pressed together; True: all
        weapon: bool = True,  # show the player's weapon
        gauges: Mapping[str, Positive] | None = None,  # game variables and their full values: {HEALTH: 100}
        map: str | None = None,  # of a scenario with several maps, such as E1M2 of freedoom1; None: the first
        render_mode: str | None = None,
    ):
        self.render_mode, self.size, self.frame_skip = render_mode, size, frame_skip
        self._game = _configured_game(scenario, size, map)
        self._game.set_render_weapon(weapon)
        self._gauges = tuple(_gauge_maxima(gauges or {}))
        # With Doom's own timeout there would be no last frame, so it is counted here.
        self._timeout = self._game.get_episode_timeout()
        self._game.set_episode_timeout(0)
        names = buttons or _BUTTONS.get(scenario) or [button.name for button in self._game.get_available_buttons()]
        actions = make_actions(names, turn_degrees / frame_skip, combine)
        self._actions = actions.values
        self._game.set_available_buttons(actions.buttons)
        self._screen = np.zeros((1, 1, 3), np.uint8)
        self._gauge_fractions: tuple[float, ...] = ()
        own = {"render_fps": vizdoom.DEFAULT_TICRATE / frame_skip, "action_names": actions.names}
        self.metadata = {**type(self).metadata, **own}
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(self._actions))

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Begin an episode; starts the engine where there is none. Raises :class:`EnvError` if it cannot start."""
        super().reset(seed=seed)
        try:
            if not self._game.is_running():
                self._game.close()
                _start_engine(self._game)
            # Seeded for every episode, so one seed fixes all that follow; a seed set before the start counts otherwise.
            self._game.set_seed(int(self.np_random.integers(2**31)))
            self._game.new_episode()
            state = self._game.get_state()
        except _ENGINE_ERRORS as error:
            raise EnvError(f"ViZDoom's engine does not start: {_reason(error)}") from error
        if state is None:
            raise EnvError("ViZDoom's engine starts but returns no frame")
        return self._observe(state), self._info(state)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Repeat one action for ``frame_skip`` tics. At a terminal state the last frame is returned."""
        try:
            reward = self._game.make_action(self._actions[int(action)], self.frame_skip)
            state = None if self._game.is_episode_finished() else self._game.get_state()
        except _ENGINE_ERRORS as error:
            self._game.close()
            raise EnvError(f"ViZDoom's engine died: {_reason(error)}; reset starts a new one") from error
        if state is None:
            return self._draw_gauges(resize(self._screen, self.size)), reward, True, False, {}
        truncated = 0 < self._timeout <= self._game.get_episode_time()
        return self._observe(state), reward, False, truncated, self._info(state)

    def render(self) -> Any:
        """The last frame at the engine's resolution, (H, W, 3) uint8."""
        return self._draw_gauges(self._screen.copy()) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._game.close()

    def _observe(self, state: vizdoom.GameState) -> np.ndarray:
        self._screen = state.screen_buffer
        self._gauge_fractions = tuple(self._game.get_game_variable(variable) / full for variable, full in self._gauges)
        return self._draw_gauges(resize(self._screen, self.size))

    def _draw_gauges(self, view: np.ndarray) -> np.ndarray:
        """The view, (H, W, 3) uint8, with the gauges drawn into it from the bottom upwards."""
        if not self._gauge_fractions:
            return view
        height, width, _ = view.shape
        thick = max(1, height // _GAUGE_HEIGHT)
        view = np.array(view)
        for i, share in enumerate(self._gauge_fractions):
            rows = slice(height - (i + 1) * thick, height - i * thick)
            view[rows] = 0
            view[rows, : round(width * min(max(share, 0), 1))] = _GAUGES[i % len(_GAUGES)]
        return view

    def _info(self, state: vizdoom.GameState) -> dict[str, Any]:
        return {POSE: np.asarray(state.game_variables, np.float32)[-len(_POSE) :]}


_ENGINE_ERRORS = (vizdoom.ViZDoomErrorException, vizdoom.ViZDoomIsNotRunningException,
                  vizdoom.ViZDoomUnexpectedExitException, vizdoom.MessageQueueException,
                  vizdoom.SharedMemoryException, vizdoom.FileDoesNotExistException)  # fmt: skip


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def _gauge_maxima(gauges: Mapping[str, float]) -> Iterator[tuple[GameVariable, float]]:
    """Each gauge's variable and its full value."""
    variables = GameVariable.__members__
    for name, full in gauges.items():
        if str(name).upper() not in variables:
            some = "HEALTH, ARMOR, AMMO2, SELECTED_WEAPON_AMMO, KILLCOUNT"
            raise EnvError(f"gauges: unknown game variable {name!r}; choose from vizdoom.GameVariable: {some}, …")
        yield variables[name.upper()], full
    if len(gauges) > _GAUGE_HEIGHT // 2:
        raise EnvError(f"gauges: {len(gauges)} would hide the view; {_GAUGE_HEIGHT // 2} fit")


def _configured_game(scenario: str, size: int, map: str | None) -> vizdoom.DoomGame:
    """A configured game without buttons and weapon, not yet running."""
    scenarios = _scenarios()
    if scenario not in scenarios:
        raise EnvError(f"unknown ViZDoom scenario {scenario!r}; the bundled ones are {', '.join(scenarios)}")
    game = vizdoom.DoomGame()
    game.load_config(str(Path(vizdoom.scenarios_path, f"{scenario}.cfg")))
    maps = _maps(scenarios[scenario])
    if map is not None and map.upper() not in maps:
        raise EnvError(f"the scenario {scenario} has no map {map!r}; it has {', '.join(maps)}")
    game.set_doom_map(map or next((name for name in maps if name == game.get_doom_map().upper()), maps[0]))
    game.set_mode(vizdoom.Mode.PLAYER)  # synchronous: the engine waits for every action
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    game.set_screen_format(ScreenFormat.RGB24)
    game.set_render_hud(False)  # it would show game variables as digits
    game.set_render_crosshair(False)
    game.set_render_messages(False)
    game.set_audio_buffer_enabled(False)  # some scenarios enable these buffers; they cost time and are not recorded
    game.set_automap_buffer_enabled(False)
    game.set_notifications_buffer_enabled(False)
    # The smallest resolution that need not be enlarged; a larger one only costs time.
    game.set_screen_resolution(_RESOLUTIONS[next((height for height in _RESOLUTIONS if height >= size), 480)])
    game.set_available_game_variables([*game.get_available_game_variables(), *_POSE])
    return game


_MULTIPLAYER = {"cig", "multi_duel"}  # without a start for one player: ViZDoom ends the process

# Runs in the child before exec, in an isolated interpreter: 1 is PR_SET_PDEATHSIG, 9 is SIGKILL. The signal is sent
# when the parent's thread ends, which is ViZDoom's own and lives as long as the engine should. The process number
# shows whether the parent died before the call.
_GUARD = """
import ctypes, os, sys
folder, parent, engine = sys.argv[1:4]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(parent):
    sys.exit(1)
os.chdir(folder)
os.execv(engine, [engine, *sys.argv[4:]])
"""


def _start_engine(game: vizdoom.DoomGame) -> None:
    """Initialise a configured game with an engine that ends with its parent process and leaves no files. Raises what
    ``DoomGame.init`` raises.

    ViZDoom runs its engine as a child process. By itself, it survives the death of its parent by SIGKILL or SIGTERM
    (and ignores SIGTERM), writes ``_vizdoom/`` and ``_vizdoom.ini`` into the working directory, and leaves its shared
    memory when it is killed. So the engine is started by a small guard, which asks the kernel to kill it when its
    parent dies (only on Linux) and moves it to a temporary directory. The directory and the names of the shared memory
    are removed as soon as both processes have opened them. (If the process is killed before that, 20 kB remain.)
    """
    engine = Path(vizdoom.__file__).with_name("vizdoom")
    with tempfile.TemporaryDirectory(prefix="worldmodel-vizdoom-") as folder:
        guard = Path(folder, "engine")
        command = [sys.executable, "-ISc", _GUARD, folder, str(os.getpid()), str(engine)]
        guard.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        guard.chmod(0o700)
        game.set_vizdoom_path(str(guard))
        game.set_doom_config_path(os.devnull)  # the user's Doom settings must not change the frames
        game.init()
    for kind in ("SM", "MQCtr", "MQDoom"):  # the memory itself is freed when both processes have ended
        Path("/dev/shm", f"ViZDoom{kind}{game.get_instance_id()}").unlink(missing_ok=True)


def _scenarios() -> dict[str, Path]:
    """The bundled scenarios for one player: name → WAD, the file of its maps."""
    folder, games = Path(vizdoom.scenarios_path), Path(vizdoom.__file__).parent
    wads = {path.stem: path for path in [*folder.glob("*.wad"), *games.glob("freedoom*.wad")]}
    return {name: wads[name] for name in sorted(wads) if (folder / f"{name}.cfg").exists() and name not in _MULTIPLAYER}


def _maps(wad: Path) -> list[str]:
    """Names of the maps in a WAD, in its order. With an unknown map the engine would wait forever."""
    with wad.open("rb") as file:
        _, count, offset = struct.unpack("<4sii", file.read(12))
        file.seek(offset)
        entries = struct.iter_unpack("<ii8s", file.read(16 * count))
    names = [name.rstrip(b"\0").decode("ascii", "replace") for _, _, name in entries]
    return [name for name in names if re.fullmatch(r"E\dM\d|MAP\d\d", name)]
