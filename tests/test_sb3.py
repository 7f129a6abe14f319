"""Stable-Baselines3's PPO, trained and played through the commands, in the real environment and in a dream."""

from __future__ import annotations

import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corridor
import numpy as np
import pytest
import torch
from corridor_run import save_run

from worldmodel.agents import evaluate, train
from worldmodel.agents.sb3 import SETTINGS, WEIGHTS, PolicyInfo, SB3Agent
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import RunError
from worldmodel.runs.folder import claim
from worldmodel.types import Episode
from worldmodel.world import WorldModel

Say = Callable[..., str]
PLAIN = (*corridor.CHOOSE, "agent=sb3_ppo", "agent.learner.policy=MlpPolicy", "agent.learner.ppo.n_steps=16",
         "agent.learner.ppo.batch_size=16", "agent.learner.envs=2", "agent.learner.dream.envs=4",
         "agent.learner.dream.steps=64", "agent.learner.dream.horizon=6")  # fmt: skip
OWN = "sb3_ppo-corridor-corridor-v0"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A run with recorded episodes."""
    run = save_run(tmp_path / "runs")
    rng = np.random.default_rng(0)
    with EpisodeStore.writer(tmp_path / "data" / "corridor-corridor-v0", corridor.SPEC) as store:
        for _ in range(4):
            frames = rng.integers(0, 256, (9, *corridor.SPEC.frame_shape), dtype=np.uint8)
            actions, rewards = rng.integers(2, size=8), np.zeros(8, np.float32)
            store.append(Episode.from_steps(frames, actions, rewards, True, False), held_out=False)
    return run


def test_the_package_is_named_where_it_is_missing(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    for command in (train, evaluate):
        err = say(command, *PLAIN, code=2)
        assert "pip install 'stable-baselines3>=2.4,<3'" in err and err.count("\n") == 1


class TestWithThePackage:
    @pytest.fixture(autouse=True)
    def package(self) -> None:
        pytest.importorskip("stable_baselines3", reason="needs stable-baselines3")

    def test_it_learns_in_the_real_environment_and_is_played(self, say: Say, tmp_path: Path) -> None:
        folder = tmp_path / "runs" / "agents" / OWN
        folder.mkdir(parents=True)
        with claim(folder):
            assert "another process is training" in say(train, *PLAIN, "steps=100", code=2)
            assert [path.name for path in folder.iterdir()] == ["lock"]
        assert "real environment: 100 steps" in say(train, *PLAIN, "steps=100")
        known = PolicyInfo.load(folder)
        assert (known.steps, known.done, known.view, known.stack) == (
            128,
            True,
            "frames",
            4,
        )  # whole rollouts
        returns = [json.loads(line) for line in (folder / "returns.jsonl").read_text().splitlines()]
        assert returns and all(-1.21 <= one["return"] <= 1 for one in returns)  # as they are, not scaled
        assert "trained already, 128 steps" in say(train, *PLAIN, "steps=100")
        assert "129 steps, 128 already taken" in say(train, *PLAIN, "steps=129")
        assert PolicyInfo.load(folder).steps == 160 and PolicyInfo.load(folder).done
        say(evaluate, *PLAIN, "episodes=3", "--videos", "0")
        assert len(json.loads((folder / "metrics.json").read_text())["episodes"]) == 3
        assert (folder / "returns.png").is_file() and (folder / "report.png").is_file()

    def test_it_goes_on_after_an_interruption(self, say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from worldmodel.agents import sb3_training

        folder = tmp_path / "runs" / "agents" / OWN
        with monkeypatch.context() as patch:
            patch.setattr(sb3_training, "deferred", Stopped)
            say(train, *PLAIN, "steps=128", code=130)
        cut = PolicyInfo.load(folder)
        assert (cut.steps, cut.done) == (70, False) and cut.reward is not None and cut.reward[2] > 70
        kept = weights_of(folder)
        with (folder / "returns.jsonl").open("a") as file:
            file.write('{"step": 71, "return": 5.0}\n')  # of what the interruption took back
        seen: list[Any] = []
        with monkeypatch.context() as patch:
            first = sb3_training.restore

            def watched(model: Any, *args: Any) -> None:
                first(model, *args)
                seen.extend([model.num_timesteps, {k: v.clone() for k, v in model.policy.state_dict().items()}])

            patch.setattr(sb3_training, "restore", watched)
            say(train, *PLAIN, "steps=128")
        assert seen[0] == 70 and all(torch.equal(seen[1][name], value) for name, value in kept.items())
        assert PolicyInfo.load(folder).steps == 134 and PolicyInfo.load(folder).done  # 70 and two rollouts of 32
        assert '"return": 5.0' not in (folder / "returns.jsonl").read_text()

    @pytest.mark.parametrize("kind", ["pixels", "codes"])
    def test_it_learns_in_a_dream_and_plays_the_real_environment(self, kind: str, say: Say, world: Path) -> None:
        stack = "2" if kind == "pixels" else "1"
        words = (*PLAIN, "run=tiny", f"agent.learner.dream.observations={kind}", f"agent.learner.stack={stack}")
        assert "in the dream of tiny: 64 steps" in say(train, *words)
        folder = world / "agents" / OWN
        assert PolicyInfo.load(folder).steps == 64 and PolicyInfo.load(folder).view == kind
        say(evaluate, *words, "episodes=2", "--videos", "0")
        assert json.loads((folder / "metrics.json").read_text())["dream"]["first"]["windows"] == 2
        agent = SB3Agent(folder)
        agent.begin(("left", "right"), np.random.default_rng(0))
        model = WorldModel.load(world, "cpu", "fp32")
        frames = np.random.default_rng(1).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)
        views = [agent._observation(frame) for frame in frames]
        codes = model.tokenizer.encode(torch.from_numpy(frames))
        if kind == "codes":
            assert [view.tolist() for view in views] == codes.flatten(1).tolist()
        else:  # as the dream would show them; before the first frame, nothing
            shown = model.tokenizer.decode(codes).numpy()
            assert np.array_equal(views[2], np.concatenate([shown[1], shown[2]]))
            assert np.array_equal(views[0], np.concatenate([np.zeros_like(shown[0]), shown[0]]))

    def test_it_learns_to_go_to_the_right(self, say: Say, tmp_path: Path) -> None:
        words = (*PLAIN, "agent.learner.stack=1", "agent.learner.ppo.learning_rate=3e-3", "agent.learner.envs=8")
        say(train, *words, "steps=1500")
        say(evaluate, *words, "episodes=10", "agent.greedy=true", "--videos", "0")
        found = json.loads((tmp_path / "runs" / "agents" / OWN / "metrics.json").read_text())
        assert found["success"]["value"] == 1 and found["length"]["value"] < corridor.PLACES

    def test_rows_of_a_dream_end_and_begin_as_the_package_expects(self, world: Path) -> None:
        from worldmodel.agents.sb3_training import dream_envs

        own = {"end_threshold": 1.0, "data": str(world.parents[1] / "data" / OWN[8:])}
        envs = dream_envs(world, "cpu", envs=3, horizon=4, **own)
        envs.seed(5)
        seen = envs.reset()
        assert seen.shape == (3, 3, 16, 16) and envs.observation_space.shape == (3, 16, 16)
        for step in range(1, 9):
            seen, rewards, done, infos = envs.step(np.zeros(3, np.int64))
            assert rewards.dtype == np.float32 and (done == (step % 4 == 0)).all()
            for row in range(3):
                if done[row]:
                    assert infos[row]["TimeLimit.truncated"] and infos[row]["terminal_observation"].shape == (3, 16, 16)
                    assert not np.array_equal(infos[row]["terminal_observation"], seen[row])
                else:
                    assert infos[row] == {}
        envs.close()

    def test_nothing_is_unpickled(self, say: Say, tmp_path: Path) -> None:
        folder = tmp_path / "runs" / "agents" / OWN
        say(train, *PLAIN, "steps=32")
        whole = (folder / WEIGHTS).read_bytes()
        spoil(folder / WEIGHTS, "data", b'{"policy_class": {":type:": "x", ":serialized:": "gASVCw=="}}')
        say(evaluate, *PLAIN, "episodes=1", "--videos", "0")  # what would be unpickled is not read
        evil = io.BytesIO()
        torch.save(Evil(), evil)
        (folder / WEIGHTS).write_bytes(whole)
        spoil(folder / WEIGHTS, "policy.pth", evil.getvalue())
        err = say(evaluate, *PLAIN, "episodes=1", code=2)
        assert "is missing or damaged" in err and not Path("evil").exists()

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["agent.learner.policy=Transformer"], "agent.learner.policy is 'Transformer'; choose CnnPolicy, Mlp"),
            (["agent.learner.stack=0"], "agent.learner.stack is 0"),
            (["run=tiny", "agent.learner.dream.observations=codes"], "agent.learner.stack=1 agent.learner.policy=Mlp"),
            (["run=tiny", "agent.learner.dream.observations=smells"], "'smells'; choose pixels, codes"),
            (["steps=0"], "steps is 0; PPO needs steps in the real environment or in the dream of a run"),
            (["agent.learner.policy=CnnPolicy"], "PPO does not work with agent.learner"),
            (["+agent.learner.ppo.speed=9"], "there is no agent.learner.ppo.speed; choose policy, env, "),
            (["run=gone"], "unknown run 'gone'"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, argv: list[str], message: str, say: Say, world: Path) -> None:
        err = say(train, *PLAIN, *argv, code=2)
        assert message in err and err.count("\n") == 1

    def test_one_that_is_not_there_or_of_something_else(self, say: Say, tmp_path: Path) -> None:
        assert "there is no trained PPO in runs/agents" in say(evaluate, *PLAIN, "episodes=1", code=2)
        say(train, *PLAIN, "steps=32")
        folder = tmp_path / "runs" / "agents" / OWN
        assert "holds a PPO with other settings" in say(train, *PLAIN, "agent.learner.stack=2", code=2)
        with pytest.raises(
            RunError, match="was trained with the actions left, right, and this environment has up, down"
        ):
            SB3Agent(folder).begin(("up", "down"), np.random.default_rng(0))
        shutil.copy(folder / SETTINGS, tmp_path / "kept")
        (folder / SETTINGS).write_text("[]")
        assert "is damaged" in say(evaluate, *PLAIN, "episodes=1", code=2)
        shutil.copy(tmp_path / "kept", folder / SETTINGS)
        (folder / WEIGHTS).write_bytes(b"nothing")
        assert "is missing or damaged" in say(evaluate, *PLAIN, "episodes=1", code=2)


class Stopped:
    """What :func:`worldmodel.util.progress.deferred` gives when Ctrl-C came."""

    def __enter__(self) -> Callable[[], bool]:
        self.asked = 0
        return self.tell

    def tell(self) -> bool:
        self.asked += 1
        return self.asked >= 35  # of 2 environments: after 70 steps

    def __exit__(self, *error: object) -> None:
        pass


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


def weights_of(folder: Path) -> dict[str, Any]:
    with zipfile.ZipFile(folder / WEIGHTS) as archive, archive.open("policy.pth") as file:
        return torch.load(io.BytesIO(file.read()), weights_only=True)


def spoil(path: Path, name: str, data: bytes) -> None:
    """Replace one file of an archive."""
    with zipfile.ZipFile(path) as archive:
        files = {other: archive.read(other) for other in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for other, content in {**files, name: data}.items():
            archive.writestr(other, content)
