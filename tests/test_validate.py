"""What enters a store is checked: the axis of channels, the type and range of pixels, rewards, flags and actions."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers import OrderEnforcing, TimeLimit

from worldmodel.data.pictures import frame_shape, to_frames
from worldmodel.data.validate import flag, reward
from worldmodel.envs import FrameEnv
from worldmodel.errors import DataError, EnvError, UnknownActionError, WorldModelError

IMAGE = np.arange(16 * 18 * 3, dtype=np.uint16).reshape(16, 18, 3) % 256


class Quirk(gymnasium.Env[Any, Any]):
    """Returns what the test passes to it; by default, what gymnasium expects."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, space: Any = None, **wanted: Any):
        self.observation_space = space or Box(0, 255, IMAGE.shape, np.uint8)
        self.action_space = Discrete(2)
        self.render_mode = render_mode
        self.wanted = {"observation": IMAGE.astype(np.uint8), "reward": 1, "ends": (False, False), "info": {}} | wanted

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.wanted.get("reset", (self.wanted["observation"], self.wanted["info"]))

    def step(self, action: Any) -> Any:
        parts = self.wanted["observation"], self.wanted["reward"], *self.wanted["ends"], self.wanted["info"]
        return self.wanted.get("step", parts)

    def render(self) -> Any:
        return self.wanted["render"]


class NoSeed(Quirk):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


def play(env: gymnasium.Env[Any, Any], **settings: Any) -> tuple[Any, ...]:
    frames = FrameEnv(env, size=16, env_id="quirk:Quirk-v0", **settings)
    frames.reset(seed=5)
    return frames.step(1)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((9, 64, 48), (9, 64, 48)),
        ((12, 84, 84), (12, 84, 84)),
        ((84, 84, 12), (12, 84, 84)),
        ((3, 20, 16), (3, 20, 16)),
        ((40, 30), (1, 40, 30)),
        ((15, 16, 16), (15, 16, 16)),
        ((16, 16, 16), None),  # channels of either end
        ((20, 24, 16), None),
        ((64, 3, 64), None),
        ((0, 64, 64), None),
        ((64, 64, 3, 1), None),
        ((3, 64, 8), None),
    ],
)
def test_the_axis_of_the_channels_is_never_guessed(shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> None:
    assert frame_shape(shape) == wanted
    env = Quirk(space=Box(0, 255, shape, np.uint8), observation=np.zeros(shape, np.uint8))
    if wanted is None:
        with pytest.raises(EnvError, match="1 to 15 channels"):
            FrameEnv(env, size=16)
    else:
        assert play(env)[0].shape == (wanted[0], 16, 16)
        marked = np.zeros((2, *shape), np.uint8)
        marked[0, 0] = 1  # the first channel, or the first row
        assert to_frames(marked)[0].sum() == marked.sum() and (to_frames(marked)[0, 0, 0] == 1).all()


def test_integers_and_arrays_of_one_number_are_taken_as_they_are() -> None:
    frame, got, terminated, truncated, _ = play(
        Quirk(observation=IMAGE.astype(np.int64), reward=np.array([0.5]), ends=(np.bool_(True), np.array([0])))
    )
    assert frame.dtype == np.uint8 and (got, terminated, truncated) == (0.5, True, False)
    assert np.array_equal(frame, play(Quirk())[0])
    assert [reward(value, "") for value in (np.float32(0.5), np.int64(2), True, 3)] == [0.5, 2, 1, 3]
    assert (flag(0, "", ""), flag(np.True_, "", "")) == (False, True)


WHERE = "quirk:Quirk-v0, step 1 of the episode with seed 5: "
STEP = r"; gymnasium expects step\(action\) → \(observation, reward, terminated, truncated, info\)"
RESET = r"; gymnasium expects reset\(\*, seed=None, options=None\) → \(observation, info\)"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"observation": IMAGE / 255},
            r"step 0 .*: the observation is float64 \(16, 18, 3\) from 0 to 1; an image needs",
        ),
        (
            {"observation": IMAGE.astype(np.int16) - 1},
            r"int16 \(16, 18, 3\) from -1 to 254; .*scale, round and cast it",
        ),
        ({"observation": IMAGE * 2}, r"uint16 \(16, 18, 3\) from 0 to 510"),
        ({"observation": IMAGE > 9}, r"bool \(16, 18, 3\)"),
        ({"observation": None}, "the observation is None"),
        ({"observation": [[1], [2, 3]]}, "the observation is a list of 2 values"),
        ({"reward": np.nan}, WHERE + "the reward is nan; it must be a finite number"),
        ({"reward": np.float32("-inf")}, WHERE + "the reward is -inf"),
        ({"reward": 1e39}, r"the reward is 1e\+39"),
        ({"reward": np.zeros(2)}, r"reward is float64 \(2,\) from 0 to 0; one number is needed"),
        ({"reward": None}, "reward is None; one number is needed"),
        ({"reward": "1"}, "reward is '1'; one number is needed"),
        ({"ends": (None, False)}, "terminated is None; one number is needed"),
        ({"ends": (False, {})}, "truncated is a dict of 0 values"),
        ({"ends": (False, 2)}, "truncated is 2; it must be true or false"),
        ({"step": (IMAGE, 0.0, False, {})}, WHERE + r"step\(\) returned a tuple of 4 values" + STEP),
        ({"step": None}, r"step\(\) returned None" + STEP),
        ({"step": (IMAGE, 0.0, False, {}, False)}, r"step\(\) returned False as info" + STEP),
        ({"reset": IMAGE}, r"step 0 .*: reset\(\) returned uint16 \(16, 18, 3\) from 0 to 255" + RESET),
        ({"reset": {"image": 1, "pose": 2}}, r"reset\(\) returned a dict of 2 values" + RESET),
        ({"reset": (IMAGE, None)}, r"reset\(\) returned None as info" + RESET),
    ],
)
def test_what_cannot_be_recorded_is_one_error_that_names_the_step(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        play(Quirk(**wanted))


@pytest.mark.parametrize(
    ("rendered", "message"),
    [
        (None, r"render\(\) returned None; gymnasium expects render\(\) → an image \(H, W, 3\)"),
        ([IMAGE], r"render\(\) returned a list of 1 value; gymnasium expects"),
        ("image", r"render\(\) returned 'image'; gymnasium expects"),
        (np.zeros((16, 16, 4), np.uint8), r"render\(\) returned an image of shape \(16, 16, 4\), but .* 3 channels"),
        (IMAGE / 255, r"render\(\) returned float64 \(16, 18, 3\) from 0 to 1; an image needs"),
    ],
)
def test_an_image_that_cannot_be_rendered_names_the_method(rendered: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        play(Quirk("rgb_array", render=rendered), source="render")


def test_errors_of_wrappers_of_gymnasium_name_the_method_and_those_of_the_environment_pass() -> None:
    with pytest.raises(DataError, match=r"step\(\) cannot be called \(not enough values to unpack.*" + STEP):
        play(TimeLimit(Quirk(step=(IMAGE, 0.0, False, {})), 9))
    for env in (NoSeed(), TimeLimit(NoSeed(), 9)):
        with pytest.raises(
            DataError, match=r"reset\(\) cannot be called \(.* unexpected keyword argument 'seed'\)" + RESET
        ):
            play(env)
    message = r"step 0 of .*: render\(\) raised KeyError: 'render' \(.*test_validate\.py, line \d+\)"
    with pytest.raises(WorldModelError, match=message) as caught:
        play(Quirk("rgb_array"), source="render")
    assert not isinstance(caught.value, (DataError, EnvError))  # another process may succeed
    with pytest.raises(gymnasium.error.ResetNeeded):
        FrameEnv(OrderEnforcing(Quirk()), 16).step(0)


@pytest.mark.parametrize("shape", [(16, 16), (3, 16, 16), (16, 16, 3), (16, 16, 1), (20, 20)])
def test_a_frame_does_not_change_with_the_array_of_the_environment(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 7, np.uint8)
    frame = play(Quirk(space=Box(0, 255, shape, np.uint8), observation=array))[0]
    array[:] = 9
    assert (frame == 7).all() and frame.flags.c_contiguous


def test_names_of_actions_that_are_none_are_refused_with_the_remedy() -> None:
    for names, message in ((5, "no list of the names"), (["a", "a"], "as many different names; got a, a")):
        env = Quirk()
        env.metadata = {"action_names": names}
        with pytest.raises(EnvError, match=rf"{message}.*env\.action_names="):
            FrameEnv(env, size=16)


def test_a_dict_without_its_image_and_an_action_out_of_range_are_named() -> None:
    space = Dict(image=Box(0, 255, IMAGE.shape, np.uint8))
    with pytest.raises(DataError, match="the observation is a dict of 1 value, without the image 'image'"):
        play(Quirk(space=space, observation={"picture": IMAGE}))
    env = FrameEnv(Quirk(), size=16)
    env.reset()
    assert env.step(np.int64(1))[1] == 1
    for action in (-1, 2, 1.0, None, "left"):
        with pytest.raises(UnknownActionError, match=f"unknown action '{action}'; choose 0, 1"):
            env.step(action)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [-1, float("nan"), "fast", 1e7])
def test_a_rate_that_is_none_is_refused(rate: Any) -> None:
    env = Quirk()
    env.metadata = {"render_fps": rate}
    with pytest.raises(EnvError, match=r"render_fps .*; it must be a number above 0"):
        FrameEnv(env, size=16)
