"""Atari 2600 games with the standard protocol, directly on ALE.

As in Machado et al. (2018, arXiv:1709.06009) and gymnasium's AtariPreprocessing, an action is repeated for
``frame_skip`` frames, an observation is the maximum of the last two (sprites flicker), and an episode starts after up
to ``noops`` no-op frames. The 100k benchmark uses no sticky actions and 100,000 steps.
"""

from typing import Any, Literal

import ale_py
import gymnasium
import numpy as np
from ale_py import roms

from worldmodel.config.checks import checked
from worldmodel.errors import EnvError
from worldmodel.types import Info
from worldmodel.util.ranges import Count, ShareBelowOne, Whole

FRAMES_PER_SECOND = 60


class AtariEnv(gymnasium.Env[np.ndarray, Any]):
    """One game. Observations are (210, 160, 3) uint8, or (210, 160) in gray; actions are Discrete, with ALE's names.

    ``info["lives"]`` is the number of remaining lives, ``info["life_lost"]`` whether the step lost one. With
    ``life_loss="end"`` that step is terminal, although the game continues: the next :meth:`reset` takes one no-op step,
    whatever its seed, and starts a new game only after the last life (as in OpenAI's baselines and IRIS; gymnasium's
    AtariPreprocessing resets the game instead). ``options={"new_game": True}`` always starts a new game.

    Raises :class:`EnvError` for an unknown game and for settings out of their range.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own declaration)

    @checked
    def __init__(
        self,
        game: str,  # ALE's name, such as pong or ms_pacman
        frame_skip: Count = 4,
        sticky: ShareBelowOne = 0.0,  # probability that a frame repeats the previous action; Machado et al.: 0.25
        noops: Whole = 30,  # largest number of no-op frames at the start of a game
        life_loss: Literal["info", "end"] = "info",  # end: a lost life ends the episode but not the game
        full_action_space: bool = False,  # all 18 actions instead of those of the game
        gray: bool = False,
        max_frames: Count = 108_000,  # frames, 30 minutes, after which an episode is truncated
        render_mode: str | None = None,
    ):
        if game not in (games := sorted(roms.get_all_rom_ids())):
            raise EnvError(f"unknown Atari game {game!r}; ALE has {', '.join(games)}")
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", sticky)
        self._ale.setInt("max_num_frames_per_episode", max_frames)
        self._rom = str(roms.get_rom_path(game))
        self._ale.loadROM(self._rom)
        self._actions = self._ale.getLegalActionSet() if full_action_space else self._ale.getMinimalActionSet()
        self.frame_skip, self.noops, self.life_loss, self.gray = frame_skip, noops, life_loss, gray
        self.render_mode, self._lives = render_mode, 0
        self._screen = np.zeros((*self._ale.getScreenDims(), *([] if gray else [3])), np.uint8)
        names = tuple(action.name.lower() for action in self._actions)
        self.metadata = {**type(self).metadata, "render_fps": FRAMES_PER_SECOND / frame_skip, "action_names": names}
        self.observation_space = gymnasium.spaces.Box(0, 255, self._screen.shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(self._actions))

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Begin an episode: a new game, or the same game after a lost life."""
        super().reset(seed=seed)
        new = self.life_loss == "info" or self._lives == 0 or bool((options or {}).get("new_game"))
        if not new:
            self._play(ale_py.Action.NOOP, self.frame_skip)
        if new or self._ale.game_over():
            self._begin(reseed=seed is not None)
        self._lives = self._ale.lives()
        return self._screen.copy(), self._info(False)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Repeat one action for ``frame_skip`` frames or until the game is over. The reward is the game's score."""
        reward = self._play(self._actions[int(action)], self.frame_skip)
        over, truncated = self._ale.game_over(with_truncation=False), self._ale.game_truncated()
        lost = self._ale.lives() < self._lives
        self._lives = 0 if over or truncated else self._ale.lives()
        terminated = over or (lost and self.life_loss == "end")
        return self._screen.copy(), reward, terminated, truncated and not terminated, self._info(lost)

    def render(self) -> Any:
        """The last frame in colour, (210, 160, 3) uint8."""
        return self._ale.getScreenRGB() if self.render_mode == "rgb_array" else None

    def _begin(self, reseed: bool) -> None:
        if reseed:
            self._ale.setInt("random_seed", int(self.np_random.integers(2**31)))
            self._ale.loadROM(self._rom)  # ALE reads the seed when it loads the game
        self._ale.reset_game()
        self._grab(self._screen)
        if self.noops:
            self._play(ale_py.Action.NOOP, int(self.np_random.integers(1, self.noops + 1)))
            if self._ale.game_over():  # some games end during the no-ops
                self._ale.reset_game()
                self._grab(self._screen)

    def _play(self, action: ale_py.Action, frames: int) -> float:
        """Repeat an action; the screen is then the maximum of the last two frames."""
        reward, before = 0.0, None
        for remaining in reversed(range(frames)):
            reward += self._ale.act(action)
            if remaining == 1:
                before = self._grab(np.empty_like(self._screen))
            if self._ale.game_over():
                break
        self._grab(self._screen)
        if before is not None:
            np.maximum(self._screen, before, out=self._screen)
        return reward

    def _grab(self, screen: np.ndarray) -> np.ndarray:
        (self._ale.getScreenGrayscale if self.gray else self._ale.getScreenRGB)(screen)
        return screen

    def _info(self, life_lost: bool) -> dict[str, Any]:
        return {"lives": self._ale.lives(), "life_lost": life_lost, "frame": self._ale.getEpisodeFrameNumber()}
