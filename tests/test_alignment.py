"""One marked episode on its way through the package: every frame shows its index and the action that led to it.

The reward of a frame follows from the two, so a frame, an action or a reward that is shifted by one is found wherever
it happens: recorder, pipe between processes, store, windows of frames and of codes, what a prior is given, dreams,
the dream environment, exports and imports.
"""

from __future__ import annotations

from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from recordings import numbered
from torch import Tensor, nn

from worldmodel.agents.base import Agent
from worldmodel.agents.dreamt_returns import episode_windows
from worldmodel.data.codes import encode_store
from worldmodel.data.export import to_minari, to_npz
from worldmodel.data.sources import Arrays, Minari
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import Windows
from worldmodel.dreaming.videos import Place, read_scene
from worldmodel.envs import dreams as dream_module
from worldmodel.envs.dreams import DreamBatch, DreamEnv
from worldmodel.envs.starts import Starts
from worldmodel.envs.wrappers import FrameEnv
from worldmodel.heads import make_sampler
from worldmodel.priors import Step
from worldmodel.recording.recorder import receive, record_episode, send
from worldmodel.types import NO_ACTION, Episode
from worldmodel.world import WorldModel

END, CUT = 9, 5  # the first episode ends by itself, the second is cut off
NAMES = ("noop", "left", "right")


def mark(index: Any, action: Any) -> Any:
    """The reward received on arriving at a frame; none at the first, to which no action led."""
    return (100 + 10 * index + action) * (action != NO_ACTION)


class Marked(gymnasium.Env[np.ndarray, int]):
    metadata: dict[str, Any] = {"render_fps": 10, "action_names": NAMES}  # noqa: RUF012
    observation_space = Box(0, 255, (16, 16, 3), np.uint8)
    action_space = Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.index = 0
        return self._frame(NO_ACTION), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.index += 1
        return self._frame(int(action)), float(mark(self.index, int(action))), self.index == END, False, {}

    def _frame(self, action: int) -> np.ndarray:
        frame = numbered(self.index)[0]
        frame[..., 1] = action + 1
        return frame


class Varied(Agent):
    """Actions in which no two neighbours are alike."""

    def begin(self, action_names: Any, rng: np.random.Generator) -> None:
        self.count = 0

    def act(self, frame: np.ndarray) -> int:
        self.count += 1
        return (self.count * self.count + self.count // 3) % 3


def record(longest: int) -> Episode:
    env = FrameEnv(Marked(), size=16)
    recording = record_episode(env, Varied(), np.random.default_rng(0), longest, lambda: True)
    assert recording is not None
    ours, theirs = Pipe(duplex=False)
    send(theirs, recording)  # few enough bytes for the buffer of a pipe
    return receive(ours.recv(), ours).episode


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    with EpisodeStore.writer(tmp_path / "data", FrameEnv(Marked(), size=16).data_spec) as store:
        store.append(record(100), held_out=False)
        store.append(record(CUT), held_out=False)
    return EpisodeStore.open(tmp_path / "data")


def shown(frames: Any) -> tuple[np.ndarray, np.ndarray]:
    """The index that frames (..., C, H, W) show, and the action."""
    frames = np.asarray(frames)
    return frames[..., 0, 3, 3].astype(np.int64), frames[..., 1, 3, 3].astype(np.int64) - 1


def check(frames: Any, actions: Any, rewards: Any = None) -> None:
    indices, led_by = shown(frames)
    np.testing.assert_array_equal(np.asarray(actions), led_by)
    if rewards is not None:
        np.testing.assert_array_equal(np.asarray(rewards), mark(indices, led_by))


def check_episode(episode: Episode, length: int, terminated: bool) -> None:
    check(episode.frames, episode.actions, episode.rewards)
    assert shown(episode.frames)[0].tolist() == list(range(length + 1))
    assert (episode.steps, episode.condition) == (length, NO_ACTION)
    assert (episode.terminated, episode.truncated) == (terminated, not terminated)


def test_recorder_pipe_and_store(store: EpisodeStore) -> None:
    check_episode(store.episode(0), END, True)
    check_episode(store.episode(1), CUT, False)
    assert len(set(store.episode(0).actions[1:].tolist())) == 3


class MarkTokenizer(nn.Module):
    """The codes of a frame are its index and the action that it shows, plus 1."""

    grid, num_codes, joined, frame_shape = (2,), 256, False, (3, 16, 16)

    def encode(self, frames: Tensor) -> Tensor:
        return frames[:, :2, 3, 3].long()


class State(NamedTuple):
    previous: Tensor


class MarkPrior(nn.Module):
    """Refuses codes with another action than the one that they show; imagines the frame that really follows."""

    grid, num_codes, positions, context = (2,), 256, 2, 3

    def begin(self, batch: int) -> State:
        return State(torch.full((batch, 2), -1))

    def observe(self, state: State, codes: Tensor, actions: Tensor) -> State:
        first = state.previous[:, 0] < 0  # what led to the first seen frame is not given
        assert torch.equal(actions, torch.where(first, NO_ACTION, codes[:, 1] - 1))
        assert torch.equal(codes[~first, 0], state.previous[~first, 0] + 1)
        return State(codes)

    def step(self, state: State, actions: Tensor, *rest: Any) -> tuple[Step, State]:
        index = state.previous[:, 0] + 1
        codes = torch.stack([index, actions + 1], 1)
        ends = (index == END).float()
        return Step(codes, mark(index, actions).float(), ends, torch.ones(len(codes))), State(codes)


class World(WorldModel):
    device = torch.device("cpu")


@pytest.fixture
def world(store: EpisodeStore) -> World:
    return World(store.spec, MarkTokenizer(), MarkPrior())  # type: ignore[arg-type]


def test_windows_of_frames_and_of_codes(store: EpisodeStore, tmp_path: Path) -> None:
    codes = encode_store(store, MarkTokenizer(), tmp_path / "codes")  # type: ignore[arg-type]
    for source in (store, codes):
        windows = Windows(source, "all", length=4, lead=1)
        for batch in (windows.sample(64, torch.Generator().manual_seed(0)), windows.fixed(8), *windows.cover(3)):
            if batch.frames is None:
                assert batch.codes is not None
                indices, led_by = batch.codes.unbind(-1)
                led_by = led_by - 1
            else:
                indices, led_by = map(torch.from_numpy, shown(batch.frames))
            valid = batch.valid
            assert torch.equal(batch.actions[valid], led_by[valid])
            assert torch.equal(batch.rewards[valid], mark(indices, led_by).float()[valid])
            assert torch.equal(batch.terminated[valid], (indices == END)[valid])
            assert (indices[batch.truncated] == CUT).all() and not (batch.truncated & batch.terminated).any()


def test_scenes_starts_and_foresight_lead_to_dreams_that_come_true(store: EpisodeStore, world: World) -> None:
    scene = read_scene(store, Place(0, 2), 3, 4)
    assert scene.truth is not None
    dream = world.imagine(scene.seen, scene.actions, seen_actions=scene.seen_actions)
    check(scene.seen, scene.seen_actions)
    check(scene.truth, scene.actions, dream.rewards[0])
    assert torch.equal(world.tokenizer.encode(scene.truth), dream.codes[0])
    assert dream.seen_actions[0].tolist() == [NO_ACTION, *scene.seen_actions[1:].tolist()]
    scene = read_scene(store, Place(0, 2), 3, script=np.array([2, 0]))
    check(scene.seen, scene.seen_actions)
    assert world.imagine(scene.seen, scene.actions, seen_actions=scene.seen_actions).codes[0, :, 1].tolist() == [3, 1]

    check(*Starts(store, "train", 3).read([(0, 4), (1, 0)]))

    for window in episode_windows(store.episode(0), 0, context=3, horizon=4, count=6, seed=0):
        frames = torch.from_numpy(window.seen)
        check(frames, window.seen_actions)
        dream = world.imagine(frames, torch.from_numpy(window.actions), seen_actions=window.seen_actions)
        assert float(dream.rewards.sum()) == window.obtained
        assert (int(dream.codes[0, 0, 0]), float(dream.ends.max())) == (
            window.start + 1,
            float(window.start + 4 >= END),
        )


def test_the_dream_environment(store: EpisodeStore, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dreams = DreamBatch(world, Starts(store, "train", 3), 1, 50, make_sampler(), 0.5)
    monkeypatch.setattr(dream_module, "open_dreams", lambda run: dreams)
    env = DreamEnv(observations="codes")
    (index, led_by), info = env.reset(seed=3)
    episode = store.episode(info["dream_episode"])
    assert (index, led_by) == (info["dream_frame"], episode.actions[info["dream_frame"]] + 1)
    terminated = False
    while not terminated:
        action = int(index * index) % 3
        (index, led_by), reward, terminated, _, _ = env.step(action)
        assert led_by == action + 1 and reward == mark(int(index), action)
        assert terminated == (index == END)


def test_npz_files_hold_steps_and_are_read_back(store: EpisodeStore, tmp_path: Path) -> None:
    (tmp_path / "npz").mkdir()
    to_npz(store, [0, 1], tmp_path / "npz")
    with np.load(tmp_path / "npz" / "ep00000.npz") as arrays:
        check_steps(arrays["obs"], arrays["action"], arrays["reward"], arrays["terminated"])
    source = Arrays(str(tmp_path / "npz"))
    check_episode(source.read(0).episode, END, True)
    check_episode(source.read(1).episode, CUT, False)


def test_minari_data_sets_hold_steps_and_are_read_back(store: EpisodeStore, tmp_path: Path) -> None:
    pytest.importorskip("minari", reason="the extra minari is not installed")
    (tmp_path / "minari").mkdir()
    to_minari(store, [0, 1], tmp_path / "minari", "toy/marked-v0")
    source = Minari(str(tmp_path / "minari"))
    (raw,) = source._data.iterate_episodes([0])
    check_steps(raw.observations, raw.actions, raw.rewards, raw.terminations)
    check_episode(source.read(0).episode, END, True)
    check_episode(source.read(1).episode, CUT, False)


def check_steps(observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, ends: np.ndarray) -> None:
    """What others expect: an action is taken at the observation of the same index, and leads to the next one."""
    assert len(observations) == END + 1 and ends.tolist() == [False] * (END - 1) + [True]
    check(observations.transpose(0, 3, 1, 2)[1:], actions, rewards)
