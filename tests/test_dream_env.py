"""The dream as an environment: gymnasium's and Stable-Baselines3's own checkers, and one dream against many."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from omegaconf import OmegaConf
from tiny import SMALL_PRIOR

from worldmodel.config.cli import compose_config
from worldmodel.data.store import EpisodeStore
from worldmodel.envs import make_frames
from worldmodel.envs.dream_vector import DreamVectorEnv
from worldmodel.envs.dreams import DreamEnv
from worldmodel.errors import ConfigError, DataError, EnvError, RunError
from worldmodel.priors.prior import BINS
from worldmodel.runs.folder import PRIOR, TOKENIZER, new_run
from worldmodel.runs.models import build_prior, build_tokenizer
from worldmodel.training.checkpoint import save_tensors
from worldmodel.types import Episode, Spec
from worldmodel.world import WorldModel

SPEC = Spec("test:noise", (3, 40, 40), ("noop", "forward", "left"), 10.0)
ID = "worldmodel/Dream-v0"
CODES, PLACES = 16, 25
MODES = [mode.value for mode in AutoresetMode]


def random_episode(seed: int, steps: int = 12) -> Episode:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (steps + 1, *SPEC.frame_shape), dtype=np.uint8)
    return Episode.from_steps(
        frames, rng.integers(3, size=steps), rng.normal(size=steps).astype(np.float32), True, False
    )


@pytest.fixture(scope="module", params=["conv_memory"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights, blown up so that distributions are far from flat; about every tenth frame ends."""
    folder = tmp_path_factory.mktemp("dreams")
    with EpisodeStore.writer(folder / "data", SPEC) as store:
        for seed in range(6):
            store.append(random_episode(seed), held_out=seed >= 4)
    widths = ("tokenizer.widths=[8,8,8]", "tokenizer.blocks=1", f"tokenizer.num_codes={CODES}", "prior.trunk.blocks=1")
    where = (f"data={folder / 'data'}", f"runs={folder}", "run=noise")
    config = compose_config([f"prior={request.param}", *SMALL_PRIOR, *widths, *where])
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config, SPEC)
    prior = build_prior(config, SPEC, tokenizer)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        outcomes = prior.outcomes
        outcomes.end.weight.mul_(0.1)
        outcomes.end.bias.fill_(-2.2)
        outcomes.reward.bias.copy_(-0.5 * (torch.arange(BINS) - BINS // 2).abs())  # rewards of some units
    made = new_run(config, SPEC)
    save_tensors(made / TOKENIZER, tokenizer.state_dict())
    save_tensors(made / PRIOR, prior.state_dict())
    return made


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    """What gymnasium or Stable-Baselines3 warns of is a fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def settings(run: Path, **more: Any) -> dict[str, Any]:
    return {"run": run, "device": "cpu", "precision": "fp32", **more}


def play(env: gymnasium.Env[Any, Any], seed: int, steps: int = 20) -> list[Any]:
    actions = np.random.default_rng(1).integers(3, size=steps)
    told = [env.reset(seed=seed)]
    for action in actions:
        told.append(env.step(action))
        if told[-1][2] or told[-1][3]:
            told.append(env.reset())
    return told


@pytest.mark.parametrize("kind", ["pixels", "codes"])
def test_gymnasiums_checker_has_nothing_to_say(run: Path, kind: str) -> None:
    env = gymnasium.make(ID, observations=kind, render_mode="rgb_array", **settings(run)).unwrapped
    assert env.action_space == Discrete(3) and env.metadata["action_names"] == SPEC.action_names
    wanted = Box(0, 255, (40, 40, 3), np.uint8) if kind == "pixels" else MultiDiscrete([CODES] * PLACES)
    assert env.observation_space == wanted and env.metadata["grid"] == (5, 5)
    check_env(env)


@pytest.mark.parametrize("kind", ["pixels", "codes"])
def test_stable_baselines_checker_has_nothing_to_say(run: Path, kind: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="needs stable-baselines3")
    checker.check_env(gymnasium.make(ID, observations=kind, render_mode="rgb_array", **settings(run)).unwrapped)


@pytest.mark.parametrize(("kind", "policy"), [("codes", "MlpPolicy"), ("pixels", "CnnPolicy")])
def test_a_foreign_agent_learns_in_it(run: Path, kind: str, policy: str) -> None:
    baselines = pytest.importorskip("stable_baselines3", reason="needs stable-baselines3")
    env = gymnasium.make(ID, observations=kind, horizon=10, **settings(run))
    agent = baselines.PPO(policy, env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(64)
    changed = [not torch.equal(*pair) for pair in zip(before, agent.policy.parameters(), strict=True)]
    assert agent.num_timesteps == 64 and any(changed)
    assert all(parameter.isfinite().all() for parameter in agent.policy.parameters())


def test_it_is_made_by_its_id(run: Path) -> None:
    """Gymnasium imports the package that stands before the colon, which registers the id."""
    names = (f"worldmodel:{ID}", ID)
    made = f"type(gymnasium.make(name, run='noise', runs={str(run.parent)!r}).unwrapped).__name__"
    code = f"import gymnasium; print(*({made} for name in {names}))"
    root = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": root})  # fmt: skip
    assert done.stdout.strip() == "DreamEnv DreamEnv", done.stderr


def test_the_same_seed_and_actions_dream_the_same_whoever_else_dreams(run: Path) -> None:
    alone = play(DreamEnv(**settings(run)), 3)
    env, other = DreamEnv(**settings(run)), DreamEnv(**settings(run))
    other.reset(seed=5)
    told = [env.reset(seed=3)]
    for action in np.random.default_rng(1).integers(3, size=20):
        torch.rand(3)
        _, _, terminated, truncated, _ = other.step(0)
        if terminated or truncated:
            other.reset()
        told.append(env.step(action))
        if told[-1][2] or told[-1][3]:
            told.append(env.reset())
    assert data_equivalence(alone, told, exact=True)
    assert not data_equivalence(alone, play(env, 4))


def test_a_dream_starts_from_recorded_frames_and_goes_on_as_the_world_model_does(run: Path) -> None:
    env = DreamEnv(observations="codes", temperature=0.0, end_threshold=1.0, render_mode="rgb_array",
                   **settings(run))  # fmt: skip
    world, store = WorldModel.load(run, "cpu", "fp32"), EpisodeStore.open(run.parent / "data")
    seen, info = env.reset(seed=0)
    episode, now = store.episode(info["dream_episode"]), info["dream_frame"]
    assert info["dream_episode"] in store.split("train") and 3 <= now < episode.steps
    frames = torch.tensor(episode.frames[now - 3 : now + 1])
    assert seen.tolist() == world.tokenizer.encode(frames)[-1].flatten().tolist()
    seen_actions = episode.actions[now - 3 : now + 1]
    dream = world.imagine(frames, [1, 2, 0], seen_actions=seen_actions, temperature=0.0)
    for t, action in enumerate([1, 2, 0]):
        codes, reward, terminated, truncated, told = env.step(action)
        assert codes.tolist() == dream.codes[0, t].flatten().tolist()
        assert reward == pytest.approx(float(dream.rewards[0, t]), rel=1e-5)
        assert told["dream_end_probability"] == pytest.approx(float(dream.ends[0, t]), rel=1e-5)
        assert not terminated and not truncated
        picture = env.render()
        assert picture is not None and np.array_equal(picture, dream.frames[0, t].permute(1, 2, 0).numpy())


def test_starts_are_spread_over_the_split(run: Path) -> None:
    env = DreamEnv(split="held_out", observations="codes", **settings(run))
    env.reset(seed=0)
    places = {tuple(env.reset()[1].values()) for _ in range(150)}
    assert places == {(e, f) for e in (4, 5) for f in range(3, 12)}
    longest = DreamEnv(context=12, **settings(run)).reset(seed=0)[1]
    assert longest["dream_frame"] == 11  # the last frame is where the episode ended
    with pytest.raises(DataError, match=r"no episode of split=train .* has 14 frames .*smaller context"):
        DreamEnv(context=13, **settings(run))


def test_a_damaged_episode_is_set_aside(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent / "data", tmp_path / "data")
    with (tmp_path / "data" / "shard-00000.frames").open("r+b") as file:
        file.write(b"\0" * 1000)  # of episode 0
    env = DreamEnv(observations="codes", data=tmp_path / "data", **settings(run))
    env.reset(seed=0)
    for _ in range(30):
        env.reset()
    assert (tmp_path / "data" / "damaged.jsonl").exists()
    assert len(EpisodeStore.open(tmp_path / "data")) == 5


def test_the_horizon_truncates_and_the_end_terminates(run: Path) -> None:
    env = DreamEnv(horizon=3, end_threshold=1.0, observations="codes", **settings(run))
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    env = DreamEnv(horizon=1, end_threshold=1e-9, observations="codes", **settings(run))
    env.reset(seed=0)
    assert env.step(0)[2:4] == (True, False)
    env, ends, drawn = DreamEnv(horizon=1, observations="codes", **settings(run)), [], []
    env.reset(seed=0)
    for _ in range(80):
        *_, terminated, _, info = env.step(0)
        ends.append(info["dream_end_probability"])
        drawn.append(terminated)
        env.reset()
    assert abs(np.sum(drawn) - np.sum(ends)) < 4 * np.sqrt(np.sum(np.array(ends) * (1 - np.array(ends))))
    assert 0 < np.sum(drawn) < 40


def vector(run: Path, mode: str, **more: Any) -> DreamVectorEnv:
    env = gymnasium.make_vec(ID, num_envs=4, autoreset_mode=mode, **settings(run, **{"horizon": 5, **more}))
    assert isinstance(env, DreamVectorEnv)
    return env


def alike(one: Any, two: Any, path: str = "") -> None:
    """The same but for the rounding of floating-point numbers."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one:
            alike(one[key], two[key], f"{path}/{key}")
    elif isinstance(one, tuple):
        for index, pair in enumerate(zip(one, two, strict=True)):
            alike(*pair, f"{path}/{index}")
    elif one is None or one.dtype != object:
        assert one is None or (one.dtype == two.dtype and one.shape == two.shape), path
        assert one is two or np.allclose(one, two, rtol=1e-5, atol=1e-5), path
    else:
        alike(tuple(one), tuple(two), path)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("mode", MODES)
def test_many_dreams_in_one_pass_are_single_dreams_side_by_side(run: Path, mode: str, temperature: float) -> None:
    """Against gymnasium's own loop over single environments: its seeds, infos and way of beginning anew."""
    more = {"temperature": temperature, "observations": "codes"}
    many = vector(run, mode, horizon=4, **more)
    loop = SyncVectorEnv([lambda: DreamEnv(**settings(run, horizon=4, **more))] * 4, autoreset_mode=mode)
    assert many.observation_space == loop.observation_space and many.action_space == loop.action_space
    for dreams in (many._dreams, *(env._dreams for env in loop.envs)):  # type: ignore[attr-defined]
        dreams.world.prior.double()  # so that what rounding does is far below what a mistake would do
    alike(many.reset(seed=7), loop.reset(seed=7))
    assert many.np_random_seed == loop.np_random_seed == (7, 8, 9, 10)
    rng, ended = np.random.default_rng(0), 0
    for _ in range(9):
        actions = rng.integers(3, size=4)
        found = many.step(actions)
        alike(found, loop.step(actions))
        done = found[2] | found[3]
        ended += int(done.sum())
        if mode == "Disabled" and done.any():
            alike(many.reset(options={"reset_mask": done}), loop.reset(options={"reset_mask": done}))
    assert ended > 5


def test_a_step_of_many_is_one_pass(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = vector(run, "NextStep", observations="codes", end_threshold=1.0)
    env.reset(seed=0)
    calls: list[int] = []
    step = WorldModel.step
    monkeypatch.setattr(
        WorldModel, "step", lambda self, state, *rest: calls.append(len(rest[0])) or step(self, state, *rest)
    )
    for _ in range(7):
        env.step(np.zeros(4, np.int64))
    assert calls == [4] * 6  # after five steps all begin anew, in a step without a pass


@pytest.mark.parametrize("mode", MODES)
def test_pixels_of_many_dreams(run: Path, mode: str) -> None:
    env = vector(run, mode, render_mode="rgb_array", end_threshold=1.0)
    assert env.metadata["autoreset_mode"] is AutoresetMode(mode)
    seen, _ = env.reset(seed=0)
    assert seen.shape == (4, 40, 40, 3) and seen in env.observation_space
    for _ in range(5):
        seen, _, _, truncated, infos = env.step(np.zeros(4, np.int64))
    shown = np.stack(env.render() or ())
    assert truncated.all() and np.array_equal(shown, seen)
    assert ("final_obs" in infos) == (mode == "SameStep")
    if mode == "SameStep":
        assert infos["_final_obs"].all() and infos["final_obs"][2].shape == (40, 40, 3)
        assert not np.array_equal(infos["final_obs"][2], seen[2])


def test_observations_are_the_callers_own(run: Path) -> None:
    env, twin = (vector(run, "NextStep", observations="codes") for _ in range(2))
    first, _ = env.reset(seed=0)
    assert np.array_equal(first, twin.reset(seed=0)[0])
    first[:] = 0
    assert np.array_equal(env.step(np.ones(4, np.int64))[0], twin.step(np.ones(4, np.int64))[0])


def test_gymnasiums_vector_wrappers_take_it(run: Path) -> None:
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(
        vector(run, "NextStep", observations="codes", end_threshold=1.0)
    )
    env.reset(seed=0)
    infos = [env.step(np.zeros(4, np.int64))[-1] for _ in range(5)]
    assert infos[-1]["episode"]["l"].tolist() == [5] * 4


def test_the_data_of_a_dream_can_be_collected(run: Path) -> None:
    env = make_frames(ID, {**settings(run), "run": str(run)}, size=20)
    assert env.reset(seed=0)[0].shape == (3, 20, 20)
    assert env.data_spec.action_names == SPEC.action_names and env.data_spec.rate == 10.0


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"run": "nowhere"}, RunError, "unknown run 'nowhere'"),
        ({"observations": "sounds"}, EnvError, "observations='sounds'; choose pixels or codes"),
        ({"horizon": 0}, EnvError, "horizon=0: give a whole number of at least 1"),
        ({"context": 1.5}, EnvError, "context=1.5: give a whole number of at least 1"),
        ({"end_threshold": 0}, EnvError, "end_threshold=0: give a probability above 0"),
        ({"split": "test"}, DataError, "unknown split 'test'; choose train, held_out or all"),
        ({"temperature": -1}, ConfigError, "temperature -1 is no finite number"),
        ({"device": "abacus"}, ConfigError, "device 'abacus' is not available here"),
        ({"data": "nowhere"}, DataError, "no data at nowhere"),
        ({"num_envs": 0}, EnvError, "num_envs=0: give a whole number of at least 1"),
        ({"num_envs": 2, "autoreset_mode": "Never"}, EnvError, "'Never'; choose NextStep, SameStep, Disabled"),
    ],
)
def test_what_cannot_be_dreamt_is_one_line(run: Path, more: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        (gymnasium.make_vec if "num_envs" in more else gymnasium.make)(
            ID, **settings(run) | {"runs": run.parent} | more
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "prior", "what"), [((1, 640), "conv", "speech"), ((3, 40, 40), "pixelcnn", "images")]
)
def test_a_run_without_actions_is_refused(
    run: Path, tmp_path: Path, shape: tuple[int, ...], prior: str, what: str
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(run, folder)
    (folder / "spec.json").write_text(Spec("test:other", shape, SPEC.action_names, 10.0).to_json())
    config = OmegaConf.load(folder / "config.yaml")
    config.prior = compose_config([f"prior={prior}"]).prior
    OmegaConf.save(config, folder / "config.yaml")
    with pytest.raises(RunError, match=f"is of {what}, not of an environment; use python -m worldmodel"):
        gymnasium.make(ID, run=folder)


def test_steps_out_of_turn_are_refused(run: Path) -> None:
    env = gymnasium.make(ID, render_mode="rgb_array", horizon=1, observations="codes", **settings(run))
    for call in (lambda: env.step(0), env.render):
        with pytest.raises(EnvError, match="before the first reset; call reset"):
            call()
    env.reset(seed=0)
    for wrong in (3, -1):
        with pytest.raises(EnvError, match=rf"unknown action {wrong}; this run has 0 to 2 \(noop, forward, left\)"):
            env.step(wrong)
    for unfit in (1.0, np.zeros(2, np.int64)):
        with pytest.raises(EnvError, match=r"give \(1,\) integers"):
            env.step(unfit)
    env.step(0)
    with pytest.raises(EnvError, match="after the end of the dream; call reset"):
        env.step(0)
    env.close()
    env.close()


def test_steps_of_many_out_of_turn_are_refused(run: Path) -> None:
    env = vector(run, "Disabled", observations="codes", end_threshold=1.0)
    with pytest.raises(EnvError, match="before the first reset"):
        env.step(np.zeros(4, np.int64))
    with pytest.raises(EnvError, match="leaves out rows that were never reset"):
        env.reset(options={"reset_mask": np.array([True, False, True, True])})
    env.reset(seed=0)
    for mask, message in ((np.ones(4), "give a numpy array"), ([True] * 4, "give a numpy array"),
                          (np.zeros(4, bool), "selects no row")):  # fmt: skip
        with pytest.raises(EnvError, match=message):
            env.reset(options={"reset_mask": mask})
    with pytest.raises(EnvError, match="3 seeds for num_envs=4"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(EnvError, match=r"give \(4,\) integers"):
        env.step(np.zeros(3, np.int64))
    for _ in range(5):
        env.step(np.zeros(4, np.int64))
    env.reset(options={"reset_mask": np.array([True, False, True, False])})
    with pytest.raises(EnvError, match=r"after the end of the dreams 1, 3; reset them"):
        env.step(np.zeros(4, np.int64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": None}, "temperature is null; it must be a finite number"),
        ({"temperature": float("nan")}, "temperature is nan; it must be a finite number"),
        ({"top_k": [1]}, "top_k"),
        ({"end_threshold": "a"}, "end_threshold is 'a'"),
        ({"split": {"a": 1}}, "split is"),
        ({"device": 1}, "device is 1; it must be a text"),
        ({"data": 0.5}, "data is 0.5"),
        ({"observations": np.zeros(2)}, "observations="),
        ({"horizon": 10**20}, "horizon=100000000000000000000: give a whole number"),
    ],
)
def test_settings_of_another_type_are_one_clear_line(run: Path, settings: dict[str, Any], message: str) -> None:
    for make in (DreamEnv, DreamVectorEnv):
        with pytest.raises((ConfigError, EnvError)) as caught:
            make(run, **settings)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert DreamEnv(run, temperature=np.float32(1), horizon=np.int64(2)).action_space.n == 3


def test_calls_with_another_type_are_one_clear_line(run: Path) -> None:
    many = DreamVectorEnv(run, 2)
    for words in ({"options": b"x"}, {"options": [1]}, {"seed": 0.5}, {"seed": "ab"}, {"seed": object()}):
        with pytest.raises(EnvError, match=r"options are|seed is"):
            many.reset(**words)
    many.reset()
    with pytest.raises(EnvError, match=r"actions are \[\[0\], \[1, 2\]\]; give \(2,\) integers"):
        many.step([[0], [1, 2]])  # type: ignore[arg-type]
